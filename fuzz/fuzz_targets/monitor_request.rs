//! The monitor's requests, compared with a model that looks at words.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/monitor/request.rs"]
mod request;

use request::{HttpRequest, REQUEST_MAX, Request};

fuzz_target!(|input: &[u8]| {
    // As the monitor cuts what it reads.
    let lines = input.split_inclusive(|&byte| byte == b'\n');
    for line in lines.flat_map(|line| line.chunks(REQUEST_MAX)) {
        let request = Request::parse(line);
        assert_eq!(
            request,
            expected(line),
            "{:?}",
            line.escape_ascii().to_string()
        );
    }
});

fn expected(line: &[u8]) -> Request<'_> {
    let whole = line.len() < REQUEST_MAX || line.ends_with(b"\n");
    let text = match line {
        _ if !whole => return Request::Refused,
        line => str::from_utf8(line)
            .unwrap_or("\0")
            .trim_end_matches([' ', '\t', '\r', '\n', '\x0c']),
    };
    if text.chars().any(|c| c != '\t' && !(' '..='~').contains(&c)) {
        return Request::Refused;
    }
    let words: Vec<&str> = text
        .split([' ', '\t'])
        .filter(|word| !word.is_empty())
        .collect();
    match words[..] {
        ["ps"] => Request::Ps,
        ["stats"] => Request::Stats,
        ["health"] => Request::Health,
        ["help"] | [] => Request::Help,
        ["quit"] => Request::Quit,
        ["GET", path, ..] => http("GET", path, words.get(2)),
        [method, path, version, ..] if version.starts_with("HTTP/") => {
            http(method, path, Some(&version))
        }
        _ => Request::Unknown,
    }
}

fn http<'a>(method: &'a str, path: &'a str, version: Option<&&str>) -> Request<'a> {
    Request::Http(HttpRequest {
        method,
        path,
        is_1_1: version == Some(&"HTTP/1.1"),
    })
}
