//! What a PROXY header says, read from the whole input: a model for the tests and the fuzz target.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What the first bytes of a connection are to the model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Nothing decides yet.
    More,
    /// A header of so many bytes, and the client's address if it has one.
    Header(usize, Option<SocketAddr>),
    /// No header, or a wrong one.
    Refused,
}

pub(crate) fn expected(input: &[u8]) -> Expected {
    let (line, signature) = (b"PROXY ".as_slice(), b"\r\n\r\n\0\r\nQUIT\n".as_slice());
    if input.starts_with(line) {
        return version_1(input);
    }
    if input.starts_with(signature) {
        return version_2(&input[signature.len()..]);
    }
    match line.starts_with(input) || signature.starts_with(input) {
        true => Expected::More,
        false => Expected::Refused,
    }
}

fn version_1(input: &[u8]) -> Expected {
    let Some(end) = (0..106).find(|&at| input.get(at..at + 2) == Some(b"\r\n")) else {
        return match input.len() < 107 {
            true => Expected::More,
            false => Expected::Refused,
        };
    };
    let words = &input[6..end];
    let client = if words == b"UNKNOWN" || words.starts_with(b"UNKNOWN ") {
        (!words.contains(&b'\r')).then_some(None)
    } else {
        str::from_utf8(words).ok().and_then(addresses).map(Some)
    };
    client.map_or(Expected::Refused, |client| {
        Expected::Header(end + 2, client)
    })
}

/// The first of two addresses as text.
fn addresses(words: &str) -> Option<SocketAddr> {
    let words: Vec<&str> = words.split(' ').collect();
    let [family, source, target, source_port, target_port] = words[..] else {
        return None;
    };
    let ip = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    // As it would be written: without a sign, and without a zero in front.
    let port = |text: &str| {
        let port = text.parse::<u16>().ok()?;
        (port.to_string() == text).then_some(port)
    };
    ip(target)?;
    port(target_port)?;
    Some(SocketAddr::new(ip(source)?, port(source_port)?))
}

fn version_2(rest: &[u8]) -> Expected {
    let Some((&[command, family, high, low], rest)) = rest.split_first_chunk::<4>() else {
        return Expected::More;
    };
    let length = usize::from(high) << 8 | usize::from(low);
    // Decided when the addresses are there, of which the longest are a Unix socket's.
    if rest.len() < length.min(216) {
        return Expected::More;
    }
    let port = |at: usize| u16::from(rest[at]) << 8 | u16::from(rest[at + 1]);
    let client = match (command, family, length) {
        (0x20, ..) | (0x21, 0x00, _) => Some(None),
        (0x21, 0x12, 12..) | (0x21, 0x22, 36..) | (0x21, 0x31 | 0x32, 216..) => Some(None),
        (0x21, 0x11, 12..) => {
            let ip: [u8; 4] = rest[..4].try_into().unwrap();
            Some(Some((ip, port(8)).into()))
        }
        (0x21, 0x21, 36..) => {
            let ip: [u8; 16] = rest[..16].try_into().unwrap();
            Some(Some((ip, port(32)).into()))
        }
        _ => None,
    };
    client.map_or(Expected::Refused, |client| {
        Expected::Header(16 + length, client)
    })
}
