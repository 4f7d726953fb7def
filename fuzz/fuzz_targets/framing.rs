//! Both framings of the echo, compared with a model that knows no chunks but only bytes.
//!
//! The input is a prefix and then chunks, each behind a `|`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tinyloop::{Framer, Framing};

fuzz_target!(|input: &[u8]| {
    let mut parts = input.split(|&byte| byte == b'|');
    let prefix = parts.next().unwrap_or_default();
    let chunks: Vec<&[u8]> = parts.collect();

    let expected: Vec<u8> = chunks
        .iter()
        .filter(|chunk| !chunk.is_empty())
        .flat_map(|chunk| [prefix, chunk].concat())
        .collect();
    assert_eq!(framed(Framing::Chunk, prefix, &chunks), expected);

    let mut expected = Vec::new();
    let mut before = b'\n';
    for byte in chunks.concat() {
        if before == b'\n' {
            expected.extend_from_slice(prefix);
        }
        expected.push(byte);
        before = byte;
    }
    assert_eq!(framed(Framing::Line, prefix, &chunks), expected);
});

/// The replies to `chunks`, one behind the other.
fn framed(framing: Framing, prefix: &[u8], chunks: &[&[u8]]) -> Vec<u8> {
    let mut framer = Framer::new(prefix, framing);
    let mut reply = Vec::new();
    for chunk in chunks {
        framer.frame(chunk, &mut reply);
    }
    reply
}
