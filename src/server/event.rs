//! The reports of a server: each event when it happens, and the totals.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::MutexGuard;
use std::time::Duration;

use rustix::io::Errno;

use crate::address::Address;
use crate::connection::Connection;
use crate::io_error::in_plain_words;
use crate::report::{LiveReport, Report, Traffic};

use super::trouble::Trouble;

/// An event in a server, for [`Server::observe`](super::Server::observe).
///
/// Displays as a line for a log. The line never contains data that a peer sent.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The server accepts connections on this address. There is one such event for each listener that is not in memory,
    /// before all other events.
    Listening {
        /// The listener's address, with the port that the system chose.
        addr: &'a Address,
    },
    /// A connection was accepted; its handler starts.
    Connected {
        /// The connection's id.
        id: u64,
        /// The peer's address.
        peer_addr: &'a Address,
    },
    /// A connection is closed: its handler has ended, and its written data is delivered or lost.
    Closed {
        /// The connection's id.
        id: u64,
        /// The peer's address.
        peer_addr: &'a Address,
        /// The reason for the end.
        reason: &'a CloseReason,
        /// Number of bytes read.
        bytes_in: u64,
        /// Number of bytes written.
        bytes_out: u64,
        /// How long the connection was open.
        duration: Duration,
        /// The faults of the connection (see the module `faults`), such as `#12 fault reset-after=5000`. Empty without
        /// faults.
        faults: &'a str,
    },
    /// A connection was closed before it had a handler: the server is full and set to [reject](WhenFull::Reject), the
    /// connection could not be registered with the reactor, or its PROXY header was missing or wrong.
    Rejected {
        /// The peer's address.
        peer_addr: &'a Address,
        /// The reason. `None` if the server is full.
        error: Option<&'a io::Error>,
    },
    /// The connection limit is reached. Reported once, until [`LimitCleared`](Event::LimitCleared).
    LimitReached {
        /// The limit.
        max_connections: usize,
        /// What happens to new connections.
        when_full: WhenFull,
    },
    /// The number of connections was below the limit for a whole second, or the server ends.
    LimitCleared {
        /// The time from the first to the last moment at the limit, with breaks of less than a second.
        lasted: Duration,
        /// Number of connections that were rejected in this time.
        rejected: u64,
    },
    /// No connection can be accepted: file descriptors or memory have run out, or accepting fails again and again. The
    /// server tries again when one of its connections ends, and after 0.1 s. Reported once, until
    /// [`AcceptResumed`](Event::AcceptResumed).
    AcceptPaused {
        /// The system's error.
        error: &'a io::Error,
    },
    /// Accepting has not failed for a whole second, or the server ends.
    AcceptResumed {
        /// The time from the first to the last failure, with breaks of less than a second.
        lasted: Duration,
        /// Number of failures.
        failures: u64,
    },
    /// The shutdown has begun. The server still accepts, and the monitor tells load balancers to send no more clients.
    LameDuck {
        /// How long the server still accepts.
        duration: Duration,
    },
    /// The server accepts no new connections and waits for its open connections. Without open connections there is
    /// no such event.
    Draining {
        /// Number of open connections, and of clients that wait for a slot.
        connections: usize,
        /// The maximum waiting time.
        timeout: Duration,
    },
}

/// The reason why a connection was closed.
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// Its handler returned `Ok`.
    Completed,
    /// Its handler returned this error.
    Failed(io::Error),
    /// The connection was idle, or its peer did not read, for longer than the timeout.
    TimedOut,
    /// Its handler panicked.
    Panicked,
    /// The connection was cancelled at the end of the drain time.
    Aborted,
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In one piece, so that an unbuffered stream such as stderr gets a whole line.
        f.pad(&self.line())
    }
}

impl Event<'_> {
    fn line(&self) -> String {
        match self {
            Event::Listening { addr } => format!("listening on {addr}"),
            Event::Connected { peer_addr, .. } => format!("Connection from {peer_addr}"),
            Event::Closed {
                peer_addr,
                reason,
                bytes_in,
                bytes_out,
                duration,
                faults,
                ..
            } => {
                let seconds = duration.as_secs_f64();
                let before_faults = if faults.is_empty() { "" } else { ", " };
                format!(
                    "Connection closed {peer_addr}: {reason}, bytes in {bytes_in}, bytes out {bytes_out}, \
                     {seconds:.3} s{before_faults}{faults}"
                )
            }
            Event::Rejected {
                peer_addr,
                error: None,
            } => format!("rejected {peer_addr}: the server is full"),
            Event::Rejected {
                peer_addr,
                error: Some(error),
            } => format!("rejected {peer_addr}: {}", in_plain_words(error)),
            Event::LimitReached {
                max_connections,
                when_full,
            } => {
                let next = match when_full {
                    WhenFull::Wait => "wait",
                    WhenFull::Reject => "are rejected",
                };
                format!("connection limit reached ({max_connections}): new connections {next}")
            }
            Event::LimitCleared { lasted, rejected } => {
                format!("below the connection limit again after {lasted:.1?}, rejected {rejected}")
            }
            Event::AcceptPaused { error } => {
                let remedy = match Errno::from_io_error(error) {
                    Some(Errno::MFILE) => " (see ulimit -n)",
                    _ => "",
                };
                let error = in_plain_words(error);
                format!("cannot accept for now: {error}{remedy}; waiting for a connection to end")
            }
            Event::AcceptResumed { lasted, failures } => {
                format!("accepting again after {lasted:.1?}, failures {failures}")
            }
            Event::LameDuck { duration } => {
                format!("still accepting for {duration:.1?} (lame duck), then draining")
            }
            Event::Draining {
                connections,
                timeout,
            } => format!("draining for at most {timeout:.1?}, open connections: {connections}"),
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

/// The reaction of a full server to the next connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Leaves the connection in the kernel's backlog until another connection closes.
    #[default]
    Wait,
    /// Accepts the connection, closes it and counts it.
    Reject,
}

/// The callback for a server's events.
pub(super) type Observer = Box<dyn FnMut(&Event<'_>)>;

/// Passes a server's events to the observer, and adds them up for the report.
pub(super) struct Record {
    observer: Option<Observer>,
    report: LiveReport,
}

impl Record {
    pub(super) fn new(observer: Option<Observer>, report: LiveReport) -> Record {
        Record { observer, report }
    }

    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock()
    }

    pub(super) fn tell(&mut self, event: &Event<'_>) {
        if let Some(observer) = &mut self.observer {
            observer(event);
        }
    }

    pub(super) fn connected(&mut self, connection: &Connection, open: usize) {
        let mut report = self.report();
        report.accepted += 1;
        report.peak_connections = report.peak_connections.max(open);
        drop(report);
        self.tell(&Event::Connected {
            id: connection.id(),
            peer_addr: &connection.peer_addr(),
        });
    }

    pub(super) fn rejected(&mut self, peer_addr: &Address, error: Option<&io::Error>) {
        self.report().rejected += 1;
        self.tell(&Event::Rejected { peer_addr, error });
    }

    pub(super) fn limit_cleared(&mut self, full: &Trouble) {
        self.tell(&Event::LimitCleared {
            lasted: full.lasted(),
            rejected: full.count,
        });
    }

    pub(super) fn accept_resumed(&mut self, shortage: &Trouble) {
        self.tell(&Event::AcceptResumed {
            lasted: shortage.lasted(),
            failures: shortage.count,
        });
    }

    pub(super) fn closed(&mut self, ended: &Ended) {
        let Ended {
            id,
            peer_addr,
            traffic,
            reason,
            faults,
        } = ended;
        let mut report = self.report();
        *match reason {
            CloseReason::Completed => &mut report.completed,
            CloseReason::Failed(_) => &mut report.failed,
            CloseReason::TimedOut => &mut report.timed_out,
            CloseReason::Panicked => &mut report.panicked,
            CloseReason::Aborted => &mut report.aborted,
        } += 1;
        report.bytes_in += traffic.bytes_in;
        report.bytes_out += traffic.bytes_out;
        report.faulty += u64::from(faults.is_some());
        drop(report);
        self.tell(&Event::Closed {
            id: *id,
            peer_addr,
            reason,
            bytes_in: traffic.bytes_in,
            bytes_out: traffic.bytes_out,
            duration: traffic.duration,
            faults: faults.as_ref().map_or("", |faults| faults),
        });
    }
}

/// How a connection ended.
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) peer_addr: Address,
    pub(super) traffic: Traffic,
    pub(super) reason: CloseReason,
    /// The faults of the connection.
    pub(super) faults: Option<Rc<String>>,
}
