//! The header of the PROXY protocol, by which a balancer says for whom it connects.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::SocketAddr;

use proxy_header::{ParseConfig, Protocol, ProxyHeader};

/// How many bytes of a header are looked at: the fixed part of version 2, and the longest addresses. Only extensions
/// follow, which nobody asks for here.
pub(crate) const LOOKED_AT: usize = FIXED + ADDRESSES_MAX;

/// How version 1 begins. It is a line of at most `LINE_MAX` bytes.
const WORD: &[u8] = b"PROXY ";
const LINE_MAX: usize = 107;

/// How version 2 begins: with this, a byte for the command, one for the family, and two for the length of the rest.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const COMMAND: usize = 12;
const FAMILY: usize = 13;
const LENGTH: usize = 14;
const FIXED: usize = 16;
const ADDRESSES_MAX: usize = 216;

/// The command of a balancer that speaks for itself.
const LOCAL: u8 = 0x20;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// All of them are of a header, and more is to come.
    Incomplete,
    Complete {
        /// How many bytes the header has. They may not all be there yet.
        length: usize,
        /// For whom the balancer speaks, if it says so with a TCP address.
        client: Option<SocketAddr>,
    },
    /// No header.
    Absent,
    /// A header that says nothing one can understand.
    Wrong,
}

/// Looks at the first bytes of a connection: at [`LOOKED_AT`] of them, if there are so many.
pub(crate) fn look(bytes: &[u8]) -> Look {
    let begins = |beginning: &[u8]| bytes.starts_with(beginning) || beginning.starts_with(bytes);
    if bytes.starts_with(WORD) {
        look_at_line(&bytes[..bytes.len().min(LINE_MAX)])
    } else if bytes.starts_with(SIGNATURE) && bytes.len() >= FIXED {
        look_at_binary(bytes)
    } else if begins(WORD) || begins(SIGNATURE) {
        Look::Incomplete
    } else {
        Look::Absent
    }
}

/// Version 1, of which at most the longest line is given.
fn look_at_line(bytes: &[u8]) -> Look {
    match bytes.windows(2).position(|pair| pair == b"\r\n") {
        Some(end) if is_strict(&bytes[..end]) => parsed(&bytes[..end + 2], 0),
        Some(_) => Look::Wrong,
        None if bytes.len() < LINE_MAX => Look::Incomplete,
        None => Look::Wrong,
    }
}

/// Whether a line has no ports such as `+80` and `080`, and no family such as `UNKNOWNX`: the crate takes them.
fn is_strict(line: &[u8]) -> bool {
    let mut words = line.split(|&byte| byte == b' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family.starts_with(b"UNKNOWN") {
        return family == b"UNKNOWN";
    }
    words
        .skip(2)
        .all(|port| port == b"0" || port.iter().all(u8::is_ascii_digit) && !port.starts_with(b"0"))
}

/// Version 2, of which the fixed part is there.
fn look_at_binary(bytes: &[u8]) -> Look {
    let length = usize::from(u16::from_be_bytes([bytes[LENGTH], bytes[LENGTH + 1]]));
    // As if the header ended behind the addresses, so that no extension has to be held.
    let shown = length.min(ADDRESSES_MAX);
    let Some(bytes) = bytes.get(..FIXED + shown) else {
        return Look::Incomplete;
    };
    let mut header = [0; LOOKED_AT];
    let header = &mut header[..bytes.len()];
    header.copy_from_slice(bytes);
    header[LENGTH..FIXED].copy_from_slice(&(shown as u16).to_be_bytes());
    if header[COMMAND] == LOCAL {
        // Whatever stands there is to be ignored, the crate would check it.
        header[FAMILY] = 0;
    }
    parsed(header, length - shown)
}

/// What a whole header says, behind which `extensions` bytes follow.
fn parsed(header: &[u8], extensions: usize) -> Look {
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    match ProxyHeader::parse(header, config) {
        Ok((parsed, length)) if length == header.len() => Look::Complete {
            length: length + extensions,
            client: parsed
                .proxied_address()
                .filter(|addresses| addresses.protocol == Protocol::Stream)
                .map(|addresses| addresses.source),
        },
        _ => Look::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_only_as_it_would_be_written() {
        for (rest, is_right) in [
            ("TCP4 1.2.3.4 5.6.7.8 1 20", true),
            ("TCP4 1.2.3.4 5.6.7.8 0 1", true),
            ("TCP4 1.2.3.4 5.6.7.8 +1 2", false),
            ("TCP4 1.2.3.4 5.6.7.8 1 02", false),
            ("UNKNOWN", true),
            ("UNKNOWN whatever +1", true),
            ("UNKNOWNX", false),
        ] {
            let looked = look(format!("PROXY {rest}\r\n").as_bytes());
            let is_taken = matches!(looked, Look::Complete { .. });
            assert_eq!(is_taken, is_right, "{rest}");
        }
    }
}
