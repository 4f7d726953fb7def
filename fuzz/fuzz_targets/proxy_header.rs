//! PROXY headers, compared with the tests' model: what they say, and where they end.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/proxy_protocol/model.rs"]
mod model;
#[path = "../../src/connection/proxy_header.rs"]
mod proxy_header_look;

use model::{Expected, expected};
use proxy_header_look::{LOOKED_AT, Look, look};

fuzz_target!(|input: &[u8]| {
    // As the server looks: at no more than a part of what is there.
    let input = &input[..input.len().min(LOOKED_AT)];
    let found = look(input);
    let as_expected = match found {
        Look::Incomplete => Expected::More,
        Look::Complete { length, client } => Expected::Header(length, client),
        Look::Absent | Look::Wrong => Expected::Refused,
    };
    let shown = input.escape_ascii().to_string();
    assert_eq!(as_expected, expected(input), "{shown}");
    // Cut anywhere before its end, it is the beginning of a header: nobody takes a byte that is not its own.
    if let Look::Complete { length, .. } = found {
        for cut in 0..length.min(input.len()) {
            match look(&input[..cut]) {
                Look::Incomplete => {}
                // Version 2 is understood before its extensions have come.
                earlier => assert_eq!(earlier, found, "{cut} of {shown}"),
            }
        }
    }
});
