//! The command line: the values that the options take.

use std::net::SocketAddr;
use std::num::NonZero;
use std::thread;
use std::time::Duration;

use tinyloop::{Endpoint, Framing, WhenFull};

/// The longest prefix, in bytes.
const PREFIX_MAX: usize = 1024;

/// The most workers.
const WORKERS_MAX: usize = 1024;

/// The options with a fixed list of values. The shells' completions offer these values, too.
pub(crate) const MODELS: [(&str, Model); 3] = [
    ("async", Model::Async),
    ("threaded", Model::Threaded),
    ("sequential", Model::Sequential),
];
pub(crate) const FRAMINGS: [(&str, Framing); 2] =
    [("chunk", Framing::Chunk), ("line", Framing::Line)];
pub(crate) const WHEN_FULL: [(&str, WhenFull); 2] =
    [("wait", WhenFull::Wait), ("reject", WhenFull::Reject)];

pub(crate) const LOG_FORMATS: [(&str, LogFormat); 2] =
    [("text", LogFormat::Text), ("json", LogFormat::Json)];

/// How the program serves connections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Model {
    Async,
    Threaded,
    Sequential,
}

/// The format of the program's lines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

pub(super) fn monitor(text: &str) -> Result<SocketAddr, String> {
    match text.parse() {
        Ok(Endpoint::Loopback(port)) => Ok(([127, 0, 0, 1], port).into()),
        Ok(Endpoint::Ip(addrs)) => Ok(addrs[0]),
        _ => Err("expected PORT, IP:PORT or [IP6]:PORT, with a port up to 65535".to_owned()),
    }
}

pub(super) fn prefix(text: &str) -> Result<String, String> {
    match text.len() {
        0..=PREFIX_MAX => Ok(text.to_owned()),
        length => Err(format!(
            "a prefix has at most {PREFIX_MAX} bytes, but the given prefix has {length}"
        )),
    }
}

pub(super) fn model(text: &str) -> Result<Model, String> {
    one_of(text, &MODELS)
}

pub(super) fn framing(text: &str) -> Result<Framing, String> {
    one_of(text, &FRAMINGS)
}

pub(super) fn when_full(text: &str) -> Result<WhenFull, String> {
    one_of(text, &WHEN_FULL)
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    one_of(text, &LOG_FORMATS)
}

pub(super) fn connections(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&n| n > 0)
        .ok_or_else(|| "expected a whole number of 1 or more".to_owned())
}

pub(super) fn workers(text: &str) -> Result<usize, String> {
    let workers = match text {
        "auto" => Some(
            thread::available_parallelism()
                .map_or(1, NonZero::get)
                .min(WORKERS_MAX),
        ),
        _ => text
            .parse()
            .ok()
            .filter(|workers| (1..=WORKERS_MAX).contains(workers)),
    };
    workers.ok_or_else(|| format!("expected auto or a whole number from 1 to {WORKERS_MAX}"))
}

pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// Seconds, with or without a fraction. It does not use the float parser, which would add 15 kB to the program.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let parse = || {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number =
            |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let nanos: u32 = format!("{fraction:0<9.9}").parse().ok()?;
        let seconds = whole.parse().ok()?;
        (is_number(whole) && is_number(fraction)).then(|| Duration::new(seconds, nanos))
    };
    parse().ok_or_else(|| "expected seconds, such as 5 or 0.5".to_owned())
}

fn one_of<T: Copy>(text: &str, values: &[(&str, T)]) -> Result<T, String> {
    let value = values.iter().find(|(name, _)| *name == text);
    value.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
        format!("expected {}", names.join(" or "))
    })
}
