//! A fault and its text form: `KIND=VALUE[@SHARE]`.

use std::error::Error;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// The share that means all connections.
const ALL: u32 = 1_000_000;

/// One fault of each kind, in its text form.
pub const EXAMPLES: [&str; 10] = [
    "delay=50ms..200ms",
    "rate=10kB",
    "slice=1..7/10ms",
    "close-after=5000",
    "reset-after=5000",
    "silent-after=5000",
    "stall-after=5000",
    "close-delay=2s",
    "refuse",
    "corrupt=1",
];

const TIMES: [(&str, u64); 5] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
];

const BYTES: [(&str, u64); 9] = [
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// A fault, and the share of the connections that get it.
///
/// It is parsed from `KIND=VALUE[@SHARE]`, such as `reset-after=5000@5%`, and displays in the same form. A value may be
/// a range that includes both ends: `delay=50ms..200ms`. Times have a unit (`ns`, `us`, `ms`, `s`, `min`). Bytes may
/// have a unit (`kB`, `MB`, `GB`, `KiB`, `MiB`, `GiB`). Without a share, all connections get the fault.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub(super) kind: Kind,
    /// The share in millionths.
    pub(super) share: u32,
}

/// The effect of a fault. A *reply* is the data of one write of the handler, including the rest that this write left
/// over.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Kind {
    /// `delay=50ms..200ms`: each reply waits for its own time. The handler waits, too, so the order is kept.
    Delay(RangeInclusive<Duration>),
    /// `rate=10kB`: at most this many bytes of replies a second. So a handler that answers its input also reads no
    /// faster.
    Rate(RangeInclusive<u64>),
    /// `slice=1..7/10ms`: a reply goes out in pieces of this many bytes, each with its own write, and with a pause
    /// between two pieces. Without a pause, the systems on the way may join the pieces again.
    Slice {
        /// The length of a piece, in bytes.
        bytes: RangeInclusive<u64>,
        /// The pause between two pieces of a reply.
        pause: RangeInclusive<Duration>,
    },
    /// `close-after=5000`: after this many bytes of replies, the connection closes normally. The handler reads end of
    /// input, and its later writes are dropped.
    CloseAfter(RangeInclusive<u64>),
    /// `reset-after=5000`: after this many bytes of replies, the connection is reset (RST). The handler's reads and
    /// writes fail with `ConnectionReset`.
    ResetAfter(RangeInclusive<u64>),
    /// `silent-after=5000`: after this many bytes of replies, the handler still reads, but its writes are dropped.
    SilentAfter(RangeInclusive<u64>),
    /// `stall-after=5000`: after this many bytes of replies, reads and writes wait for ever.
    StallAfter(RangeInclusive<u64>),
    /// `close-delay=2s`: the write half closes this much later than the handler closes it. If the handler only drops
    /// the stream, the stream closes at once.
    CloseDelay(RangeInclusive<Duration>),
    /// `refuse`: the connection is reset at the handler's first read or write.
    Refuse,
    /// `corrupt=1`: this many bytes in a thousand have a flipped bit.
    Corrupt(RangeInclusive<u64>),
}

impl Fault {
    /// A fault for `percent` of the connections, in steps of a ten-thousandth of a percent.
    ///
    /// # Panics
    ///
    /// If `percent` is not from 0 to 100.
    #[must_use]
    pub fn share(mut self, percent: f64) -> Fault {
        assert!(
            (0.0..=100.0).contains(&percent),
            "a share is from 0 to 100 percent"
        );
        self.share = (percent * f64::from(ALL / 100)).round() as u32;
        self
    }
}

impl From<Kind> for Fault {
    /// A fault for all connections.
    fn from(kind: Kind) -> Fault {
        Fault { kind, share: ALL }
    }
}

/// The error for a text that is not a [`Fault`]. One line that says which forms are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError(String);

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ParseError {}

impl FromStr for Fault {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Fault, ParseError> {
        let (fault, share) = match text.split_once('@') {
            Some((fault, share)) => (fault, quantity(share, &[("%", 10_000)])),
            None => (text, Some(u64::from(ALL))),
        };
        let (name, value) = match fault.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (fault, None),
        };
        let kind = parse_kind(name, value).ok_or_else(|| ParseError(expected(name)))?;
        let share = share.and_then(|share| u32::try_from(share).ok());
        match share.filter(|share| *share <= ALL) {
            Some(share) => Ok(Fault { kind, share }),
            None => Err(ParseError(
                "expected a share of the connections from 0% to 100%, such as @5%".to_owned(),
            )),
        }
    }
}

/// The accepted values of a kind, or the list of the kinds.
fn expected(name: &str) -> String {
    let what = match name {
        "delay" | "close-delay" => "a time with its unit, or a range: NAME=100ms, NAME=0.5s..2s",
        "rate" => "bytes a second, at least 1, or a range: NAME=5000, NAME=10kB, NAME=1MiB..2MiB",
        "slice" => "at least 1 byte, or a range, and a pause: NAME=5, NAME=1..7, NAME=1..7/10ms",
        "close-after" | "reset-after" | "silent-after" | "stall-after" => {
            "bytes of replies, or a range: NAME=5000, NAME=10kB, NAME=1kB..64KiB"
        }
        "refuse" => "NAME alone, without a value",
        "corrupt" => "bytes in a thousand, up to 1000, or a range: NAME=1, NAME=1..10",
        _ => return format!("expected a fault such as {}", EXAMPLES.join(", ")),
    };
    format!("expected {}", what.replace("NAME", name))
}

fn parse_kind(name: &str, value: Option<&str>) -> Option<Kind> {
    if name == "refuse" {
        return value.is_none().then_some(Kind::Refuse);
    }
    let value = value?;
    Some(match name {
        "delay" => Kind::Delay(times(value)?),
        "rate" => Kind::Rate(range(value, &BYTES, 1..=u64::MAX)?),
        "slice" => {
            let (bytes, pause) = value.split_once('/').unwrap_or((value, "0s"));
            Kind::Slice {
                bytes: range(bytes, &BYTES, 1..=u64::MAX)?,
                pause: times(pause)?,
            }
        }
        "close-after" => Kind::CloseAfter(range(value, &BYTES, 0..=u64::MAX)?),
        "reset-after" => Kind::ResetAfter(range(value, &BYTES, 0..=u64::MAX)?),
        "silent-after" => Kind::SilentAfter(range(value, &BYTES, 0..=u64::MAX)?),
        "stall-after" => Kind::StallAfter(range(value, &BYTES, 0..=u64::MAX)?),
        "close-delay" => Kind::CloseDelay(times(value)?),
        "corrupt" => Kind::Corrupt(range(value, &[("", 1)], 0..=1000)?),
        _ => return None,
    })
}

fn times(text: &str) -> Option<RangeInclusive<Duration>> {
    let (least, most) = range(text, &TIMES, 0..=u64::MAX)?.into_inner();
    Some(Duration::from_nanos(least)..=Duration::from_nanos(most))
}

/// `1..7`, including both ends, or a single value.
fn range(
    text: &str,
    units: &[(&str, u64)],
    within: RangeInclusive<u64>,
) -> Option<RangeInclusive<u64>> {
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let (least, most) = (quantity(least, units)?, quantity(most, units)?);
    (least <= most && within.contains(&least) && within.contains(&most)).then_some(least..=most)
}

/// A number, with or without a fraction, and its unit. `None` if it is not a multiple of the smallest unit.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let (_, unit) = units.iter().find(|(name, _)| *name == unit)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let billionths = u128::from(*unit) * format!("{fraction:0<9}").parse::<u128>().ok()?;
    let rest = u64::try_from(billionths / 1_000_000_000).ok()?;
    let is_whole = billionths.is_multiple_of(1_000_000_000);
    let whole = whole.parse::<u64>().ok().filter(|_| is_whole)?;
    whole.checked_mul(*unit)?.checked_add(rest)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if self.share == ALL {
            return Ok(());
        }
        let (percent, rest) = (self.share / 10_000, self.share % 10_000);
        let fraction = format!(".{rest:04}");
        write!(f, "@{percent}{}%", fraction.trim_end_matches(['0', '.']))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |range| written(range, u64::to_string);
        let times = |range| written(range, time);
        match self {
            Kind::Delay(range) => write!(f, "delay={}", times(range)),
            Kind::Rate(range) => write!(f, "rate={}", bytes(range)),
            Kind::Slice {
                bytes: range,
                pause,
            } if pause.end().is_zero() => {
                write!(f, "slice={}", bytes(range))
            }
            Kind::Slice {
                bytes: range,
                pause,
            } => {
                write!(f, "slice={}/{}", bytes(range), times(pause))
            }
            Kind::CloseAfter(range) => write!(f, "close-after={}", bytes(range)),
            Kind::ResetAfter(range) => write!(f, "reset-after={}", bytes(range)),
            Kind::SilentAfter(range) => write!(f, "silent-after={}", bytes(range)),
            Kind::StallAfter(range) => write!(f, "stall-after={}", bytes(range)),
            Kind::CloseDelay(range) => write!(f, "close-delay={}", times(range)),
            Kind::Refuse => f.write_str("refuse"),
            Kind::Corrupt(range) => write!(f, "corrupt={}", bytes(range)),
        }
    }
}

fn written<T: PartialEq>(range: &RangeInclusive<T>, write: impl Fn(&T) -> String) -> String {
    match range.start() == range.end() {
        true => write(range.start()),
        false => format!("{}..{}", write(range.start()), write(range.end())),
    }
}

/// The time in the largest unit, up to seconds, that needs no fraction.
fn time(time: &Duration) -> String {
    let nanos = time.as_nanos();
    let units = TIMES[..4].iter().rev();
    let mut fitting = units.filter(|(_, unit)| nanos.is_multiple_of(u128::from(*unit)));
    let (name, unit) = fitting.next().unwrap_or(&TIMES[0]);
    format!("{}{name}", nanos / u128::from(*unit))
}
