//! Addresses on the command line: what is accepted means one thing, however it is written and whichever way it comes.

#![no_main]

use std::slice;

use libfuzzer_sys::fuzz_target;

#[path = "../../src/cli/args.rs"]
#[allow(dead_code)] // The other options are for the program.
mod args;
#[path = "../../src/cli/values.rs"]
#[allow(dead_code)]
mod values;

use args::{Early, Options};
use tinyloop::Endpoint;

fuzz_target!(|text: &str| {
    let addr = text.parse::<Endpoint>();
    if let Ok(addr) = &addr {
        assert_eq!(print(addr).parse::<Endpoint>().ok().as_ref(), Some(addr));
    }
    // A port is digits, and what they say: no sign, no space, nothing above 65535.
    if let Some(digits) = text.strip_prefix(':') {
        assert_eq!(
            addr.as_ref().ok().cloned(),
            value(digits).map(Endpoint::All)
        );
    } else if !text.contains(':') {
        assert_eq!(
            addr.as_ref().ok().cloned(),
            value(text).map(Endpoint::Loopback)
        );
    }

    let command_lines = [vec!["--listen", text], vec!["-l", text]];
    let with_equals_sign = [format!("--listen={text}"), format!("-l={text}")];
    let with_equals_sign = with_equals_sign.iter().map(|arg| vec![arg.as_str()]);
    for command_line in command_lines.into_iter().chain(with_equals_sign) {
        match (options(&command_line), &addr) {
            (Ok(options), Ok(addr)) => assert_eq!(options.listen, slice::from_ref(addr)),
            (Err(Early::Usage(line)), Err(_)) => assert!(!line.contains('\n'), "{line:?}"),
            outcome => panic!("{command_line:?}: {outcome:?}"),
        }
    }

    // The monitor listens on one TCP address, which is written in the same way.
    let expected = match addr {
        Ok(Endpoint::Loopback(port)) => Some(([127, 0, 0, 1], port).into()),
        Ok(Endpoint::Ip(addrs)) => Some(addrs[0]),
        _ => None,
    };
    let options = options(&["--monitor", text]);
    assert_eq!(options.ok().and_then(|options| options.monitor), expected);
});

fn options(args: &[&str]) -> Result<Options, Early> {
    Options::parse(args.iter().map(|&arg| arg.into()))
}

/// The address in one of its forms.
fn print(addr: &Endpoint) -> String {
    match addr {
        Endpoint::Loopback(port) => port.to_string(),
        Endpoint::All(port) => format!(":{port}"),
        Endpoint::Ip(addrs) => addrs[0].to_string(),
        Endpoint::Name(name, port) => format!("{name}:{port}"),
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
        _ => unreachable!("the program takes no other"),
    }
}

/// The port that `digits` are, if they are one.
fn value(digits: &str) -> Option<u16> {
    let digits: Option<Vec<u32>> = digits.chars().map(|digit| digit.to_digit(10)).collect();
    let digits = digits.filter(|digits| !digits.is_empty())?;
    let value = digits.iter().fold(0_u32, |value, digit| {
        value.saturating_mul(10).saturating_add(*digit)
    });
    value.try_into().ok()
}
