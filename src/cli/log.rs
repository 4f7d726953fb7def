//! The output of the running program: lines for people, or one JSON object a line for programs.

use std::fmt::Display;
use std::io;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tinyloop::{Address, CloseReason, Event, Report, SlowPoll, WhenFull};

use super::output::Output;
use super::values::LogFormat;

/// The destination of the lines, and their format.
///
/// As text, errors and the report go to stderr, and all other lines to stdout. As JSON, all lines go to stdout.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    /// Put the time before each line of text. A line of JSON always has the time.
    pub(crate) timestamps: bool,
    pub(crate) output: Output,
    pub(crate) errors: Output,
    /// Which of several workers this is. JSON has it in each line.
    pub(crate) worker: Option<usize>,
}

/// A field of a JSON object.
pub(crate) type Field = (&'static str, Value);

impl Log {
    /// Reports an event of the server. `faults` names the faults of a new connection.
    pub(crate) fn event(&self, event: &Event<'_>, faults: Option<String>) {
        let is_news = matches!(
            event,
            Event::Listening { .. } | Event::Connected { .. } | Event::Closed { .. }
        );
        let text = || match &faults {
            Some(faults) => format!("{event}, {faults}"),
            None => event.to_string(),
        };
        self.line(is_news, text, || {
            let (name, mut fields) = described(event);
            fields.extend(
                faults
                    .iter()
                    .map(|faults| ("faults", faults.as_str().into())),
            );
            (name, fields)
        });
    }

    pub(crate) fn listening(&self, addrs: &[Address], patience: Duration) {
        for addr in addrs {
            self.event(&Event::Listening { addr }, None);
        }
        self.output.flush(patience);
    }

    /// Reports the address of the monitor, or the faults of the server.
    pub(crate) fn notice(&self, name: &'static str, prefix: &str, what: impl Display) {
        let text = || format!("{prefix} {what}");
        self.line(true, text, || {
            (name, vec![("what", what.to_string().into())])
        });
    }

    /// Tells what has become of one of several workers.
    pub(crate) fn worker(&self, number: usize, text: &str) {
        self.line(
            false,
            || text.to_owned(),
            || {
                (
                    "worker",
                    vec![("worker", number.into()), ("text", text.into())],
                )
            },
        );
    }

    pub(crate) fn warning(&self, text: &str) {
        self.line(
            false,
            || text.to_owned(),
            || ("warning", vec![("text", text.into())]),
        );
    }

    pub(crate) fn slow_poll(&self, slow: &SlowPoll) {
        self.line(
            false,
            || slow.to_string(),
            || {
                let task = &slow.task;
                let fields = vec![
                    ("task", task.id.into()),
                    ("name", task.name.as_deref().into()),
                    ("place", task.place.to_string().into()),
                    ("duration", seconds(slow.duration)),
                ];
                ("slow_poll", fields)
            },
        );
    }

    pub(crate) fn report(&self, report: &Report) {
        self.line(
            false,
            || report.to_string(),
            || ("report", counters(report)),
        );
    }

    /// Tells on stderr how many lines stdout has lost, if any: they came faster than they were written, or could not
    /// be.
    pub(crate) fn lost_lines(&self) {
        let lost = self.output.lost_lines();
        if lost > 0 {
            let time = if self.timestamps {
                format!("{} ", now())
            } else {
                String::new()
            };
            self.errors
                .line(format_args!("{time}lines of output lost: {lost}"));
        }
    }

    fn line(
        &self,
        is_news: bool,
        text: impl FnOnce() -> String,
        json: impl FnOnce() -> (&'static str, Vec<Field>),
    ) {
        if self.format == LogFormat::Json {
            let (name, fields) = json();
            let fields: String = fields
                .iter()
                .map(|(name, value)| format!(",\"{name}\":{value}"))
                .collect();
            let worker = self.worker.map(|worker| format!(",\"worker\":{worker}"));
            let worker = worker.unwrap_or_default();
            let start = format!("{{\"time\":\"{}\",\"event\":\"{name}\"", now());
            self.output.line(format_args!("{start}{worker}{fields}}}"));
            return;
        }
        let output = if is_news { &self.output } else { &self.errors };
        match self.timestamps {
            true => output.line(format_args!("{} {}", now(), text())),
            false => output.line(text()),
        }
    }
}

/// The fields of a report.
pub(crate) fn counters(report: &Report) -> Vec<Field> {
    vec![
        ("accepted", report.accepted.into()),
        ("completed", report.completed.into()),
        ("failed", report.failed.into()),
        ("panicked", report.panicked.into()),
        ("timed_out", report.timed_out.into()),
        ("rejected", report.rejected.into()),
        ("aborted", report.aborted.into()),
        ("bytes_in", report.bytes_in.into()),
        ("bytes_out", report.bytes_out.into()),
        ("peak_connections", report.peak_connections.into()),
        ("faulty", report.faulty.into()),
    ]
}

/// An event's name, and its fields. The names are a promise (docs/log.md).
fn described(event: &Event<'_>) -> (&'static str, Vec<Field>) {
    match event {
        Event::Listening { addr } => ("listening", vec![("addr", text(addr))]),
        Event::Connected { id, peer_addr } => (
            "connected",
            vec![("id", (*id).into()), ("peer", text(peer_addr))],
        ),
        Event::Closed {
            id,
            peer_addr,
            reason,
            bytes_in,
            bytes_out,
            duration,
            faults,
        } => {
            let mut fields = vec![
                ("id", (*id).into()),
                ("peer", text(peer_addr)),
                ("bytes_in", (*bytes_in).into()),
                ("bytes_out", (*bytes_out).into()),
                ("duration", seconds(*duration)),
                ("reason", reason_name(reason).into()),
            ];
            if let CloseReason::Failed(error) = reason {
                fields.extend(error_fields(error));
            }
            if !faults.is_empty() {
                fields.push(("faults", (*faults).into()));
            }
            ("closed", fields)
        }
        Event::Rejected { peer_addr, error } => {
            let mut fields = vec![("peer", text(peer_addr))];
            fields.extend(error.iter().copied().flat_map(error_fields));
            ("rejected", fields)
        }
        Event::LimitReached {
            max_connections,
            when_full,
        } => {
            let when_full = match when_full {
                WhenFull::Wait => "wait",
                WhenFull::Reject => "reject",
            };
            let fields = vec![
                ("max_connections", (*max_connections).into()),
                ("when_full", when_full.into()),
            ];
            ("limit_reached", fields)
        }
        Event::LimitCleared { lasted, rejected } => {
            let fields = vec![
                ("duration", seconds(*lasted)),
                ("rejected", (*rejected).into()),
            ];
            ("limit_cleared", fields)
        }
        Event::AcceptPaused { error } => ("accept_paused", error_fields(error).into()),
        Event::AcceptResumed { lasted, failures } => {
            let fields = vec![
                ("duration", seconds(*lasted)),
                ("failures", (*failures).into()),
            ];
            ("accept_resumed", fields)
        }
        Event::LameDuck { duration } => ("lame_duck", vec![("duration", seconds(*duration))]),
        Event::Draining {
            connections,
            timeout,
        } => {
            let fields = vec![
                ("connections", (*connections).into()),
                ("timeout", seconds(*timeout)),
            ];
            ("draining", fields)
        }
        // Later versions of the library may have more events.
        event => ("other", vec![("text", text(event))]),
    }
}

/// The time, as RFC 3339 in UTC.
fn now() -> impl Display {
    humantime::format_rfc3339_micros(SystemTime::now())
}

fn reason_name(reason: &CloseReason) -> &'static str {
    match reason {
        CloseReason::Completed => "completed",
        CloseReason::Failed(_) => "failed",
        CloseReason::TimedOut => "timed_out",
        CloseReason::Panicked => "panicked",
        CloseReason::Aborted => "aborted",
        _ => "other",
    }
}

fn error_fields(error: &io::Error) -> [Field; 2] {
    let kind = match format!("{:?}", error.kind()) {
        // It is no name that a Rust program could use.
        kind if kind == "Uncategorized" => "Other".to_owned(),
        kind => kind,
    };
    [("error_kind", kind.into()), ("error", text(error))]
}

fn text(what: &impl Display) -> Value {
    what.to_string().into()
}

/// Rounded to microseconds.
fn seconds(duration: Duration) -> Value {
    (duration.as_micros() as f64 / 1e6).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of each event in docs/log.md, with a `?` after fields that may be absent.
    fn documented(event: &str) -> Vec<String> {
        let row = include_str!("../../docs/log.md")
            .lines()
            .find(|line| line.starts_with(&format!("| `{event}` |")))
            .unwrap_or_else(|| panic!("docs/log.md has no row for {event}"));
        let fields = row.split('|').nth(2).unwrap().split(',');
        fields.map(|field| field.trim().replace('`', "")).collect()
    }

    #[test]
    fn every_event_has_the_fields_that_are_documented() {
        let peer = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 7)));
        let error = io::Error::from(io::ErrorKind::ConnectionReset);
        let closed = |reason, faults| Event::Closed {
            id: 1,
            peer_addr: &peer,
            reason,
            bytes_in: 2,
            bytes_out: 3,
            duration: Duration::from_millis(1500),
            faults,
        };
        let failed = CloseReason::Failed(io::ErrorKind::BrokenPipe.into());
        let lasted = Duration::from_secs(1);
        let events = [
            Event::Listening { addr: &peer },
            Event::Connected {
                id: 1,
                peer_addr: &peer,
            },
            closed(&CloseReason::Completed, ""),
            closed(&failed, "#1 fault refuse"),
            Event::Rejected {
                peer_addr: &peer,
                error: None,
            },
            Event::Rejected {
                peer_addr: &peer,
                error: Some(&error),
            },
            Event::LimitReached {
                max_connections: 1,
                when_full: WhenFull::Wait,
            },
            Event::LimitCleared {
                lasted,
                rejected: 2,
            },
            Event::AcceptPaused { error: &error },
            Event::AcceptResumed {
                lasted,
                failures: 2,
            },
            Event::LameDuck { duration: lasted },
            Event::Draining {
                connections: 1,
                timeout: lasted,
            },
        ];
        for event in &events {
            let (name, fields) = described(event);
            let documented = documented(name);
            let mut expected = documented.iter().map(|field| field.trim_end_matches('?'));
            for (field, _) in &fields {
                assert!(
                    expected.any(|name| name == *field),
                    "{name}: {field}, in this order"
                );
            }
            for field in documented.iter().filter(|field| !field.ends_with('?')) {
                assert!(
                    fields.iter().any(|(name, _)| name == field),
                    "{name}: {field}"
                );
            }
        }
        let (_, fields) = described(&events[3]);
        let value = |wanted| &fields.iter().find(|(name, _)| *name == wanted).unwrap().1;
        assert_eq!(value("reason"), "failed");
        assert_eq!(value("error_kind"), "BrokenPipe");
        assert_eq!(value("duration").to_string(), "1.5");
    }
}
