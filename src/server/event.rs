//! What a server tells: `Event` as it happens, `Report` at the end.

use std::fmt;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::address::Address;
use crate::io_error::in_plain_words;

use super::WhenFull;

/// Something that happened in a server, as it happens, for [`Server::observe`](super::Server::observe).
///
/// Displays as a line for a log. No byte that a peer sent is ever in it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The server accepts connections on this address. There is one such event for each listener, before all others.
    Listening {
        /// The listener's address, with the port that the system chose.
        addr: &'a Address,
    },
    /// A connection was accepted; its handler starts.
    Connected {
        /// The connection's id.
        id: u64,
        /// From where.
        peer_addr: &'a Address,
    },
    /// A connection is closed: its handler has ended, and what it wrote is delivered or given up.
    Closed {
        /// The connection's id.
        id: u64,
        /// From where.
        peer_addr: &'a Address,
        /// Why.
        reason: &'a CloseReason,
        /// How many bytes were read.
        bytes_in: u64,
        /// How many bytes were written.
        bytes_out: u64,
        /// How long it was open.
        duration: Duration,
    },
    /// A connection was closed right after it was accepted: the house was full and the server is to
    /// [reject](WhenFull::Reject), or the system could not watch it.
    Rejected {
        /// From where.
        peer_addr: &'a Address,
        /// The system's error; none if the house was full.
        error: Option<&'a io::Error>,
    },
    /// As many connections as may be are open. Told again only after there were fewer.
    LimitReached {
        /// The limit.
        max_connections: usize,
        /// What happens to the next.
        when_full: WhenFull,
    },
    /// The system has no descriptors or memory for another connection, or accepting fails again and again. The server
    /// tries again when one of its own has ended, or after a tenth of a second. Told once, until a connection is accepted
    /// again.
    AcceptPaused {
        /// The system's error.
        error: &'a io::Error,
    },
    /// A connection was accepted again after a pause.
    AcceptResumed {
        /// How long none was accepted.
        paused: Duration,
    },
    /// The server takes nothing new and waits for its open connections.
    Draining {
        /// How many are open.
        connections: usize,
        /// How long it waits at most.
        timeout: Duration,
    },
}

/// Why a connection was closed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// Its handler returned `Ok`.
    Completed,
    /// Its handler returned this error.
    Failed(io::Error),
    /// It was idle, or its peer did not read, for longer than the server's timeout.
    TimedOut,
    /// Its handler panicked.
    Panicked,
    /// It was cancelled when the time to drain was over.
    Aborted,
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Listening { addr } => write!(f, "listening on {addr}"),
            Event::Connected { peer_addr, .. } => write!(f, "Connection from {peer_addr}"),
            Event::Closed { peer_addr, .. } => write!(f, "Connection closed {peer_addr}"),
            Event::Rejected {
                peer_addr,
                error: None,
            } => write!(f, "rejected {peer_addr}: the server is full"),
            Event::Rejected {
                peer_addr,
                error: Some(error),
            } => {
                write!(f, "rejected {peer_addr}: {}", in_plain_words(error))
            }
            Event::LimitReached {
                max_connections,
                when_full,
            } => {
                let next = match when_full {
                    WhenFull::Wait => "wait for one to end",
                    WhenFull::Reject => "are rejected",
                };
                write!(
                    f,
                    "connection limit reached ({max_connections}): more {next}"
                )
            }
            Event::AcceptPaused { error } => {
                let remedy = match Errno::from_io_error(error) {
                    Some(Errno::MFILE) => " (see ulimit -n)",
                    _ => "",
                };
                let error = in_plain_words(error);
                write!(
                    f,
                    "cannot accept for now: {error}{remedy}; waiting for a connection to end"
                )
            }
            Event::AcceptResumed { paused } => {
                write!(f, "accepting again after {paused:.1?}")
            }
            Event::Draining {
                connections,
                timeout,
            } => {
                write!(
                    f,
                    "draining for at most {timeout:.1?}, open connections: {connections}"
                )
            }
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Completed => f.write_str("completed"),
            CloseReason::Failed(error) => write!(f, "failed: {}", in_plain_words(error)),
            CloseReason::TimedOut => f.write_str("timed out"),
            CloseReason::Panicked => f.write_str("panicked"),
            CloseReason::Aborted => f.write_str("aborted"),
        }
    }
}

/// What happened in a server, counted. Displays as one line.
///
/// `accepted` is the sum of `completed`, `failed`, `panicked`, `timed_out`, `aborted` and the connections still open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Connections whose handler was started.
    pub accepted: u64,
    /// Connections whose handler returned `Ok`.
    pub completed: u64,
    /// Connections whose handler returned an error that was no timeout of the server's.
    pub failed: u64,
    /// Connections whose handler panicked.
    pub panicked: u64,
    /// Connections that ended by the idle or the stall timeout.
    pub timed_out: u64,
    /// Connections that were closed without a handler, for lack of a place or of the system's resources.
    pub rejected: u64,
    /// Connections that were cancelled at the end of the drain.
    pub aborted: u64,
    /// Bytes read, on connections that are closed.
    pub bytes_in: u64,
    /// Bytes written, on connections that are closed.
    pub bytes_out: u64,
    /// The most connections that were open at once.
    pub peak_connections: usize,
}

impl Report {
    /// All counters with their names, and how many connections are open.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 11] {
        let ended = self.completed + self.failed + self.panicked + self.timed_out + self.aborted;
        [
            ("accepted", self.accepted),
            ("completed", self.completed),
            ("failed", self.failed),
            ("panicked", self.panicked),
            ("timed out", self.timed_out),
            ("rejected", self.rejected),
            ("aborted", self.aborted),
            ("bytes in", self.bytes_in),
            ("bytes out", self.bytes_out),
            ("open", self.accepted - ended),
            ("peak connections", self.peak_connections as u64),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = self
            .counters()
            .into_iter()
            .filter(|(name, _)| *name != "open");
        let counters: Vec<String> = counters
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        f.write_str(&counters.join(", "))
    }
}
