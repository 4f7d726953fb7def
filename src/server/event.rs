//! What a server tells: each event as it happens, and the sum of them.

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
        /// What befell it on purpose (see the module `faults`), such as `#12 fault reset-after=5000`. Empty if nothing did.
        faults: &'a str,
    },
    /// A connection was closed before it had a handler: the house was full and the server is to
    /// [reject](WhenFull::Reject), the system could not watch it, or its PROXY header was missing or wrong.
    Rejected {
        /// From where.
        peer_addr: &'a Address,
        /// Why; none if the house was full.
        error: Option<&'a io::Error>,
    },
    /// As many connections as may be are open. Told once, until [`LimitCleared`](Event::LimitCleared).
    LimitReached {
        /// The limit.
        max_connections: usize,
        /// What happens to the next.
        when_full: WhenFull,
    },
    /// There were fewer connections than may be for a whole second, or the server ends.
    LimitCleared {
        /// For how long the limit was reached, now and then at least.
        lasted: Duration,
        /// How many connections were rejected meanwhile.
        rejected: u64,
    },
    /// The system has no descriptors or memory for another connection, or accepting fails again and again. The server
    /// tries again when one of its own has ended, or after a tenth of a second. Told once, until
    /// [`AcceptResumed`](Event::AcceptResumed).
    AcceptPaused {
        /// The system's error.
        error: &'a io::Error,
    },
    /// Accepting has not failed for a whole second, or the server ends.
    AcceptResumed {
        /// For how long it failed, now and then at least.
        lasted: Duration,
        /// How often it failed.
        failures: u64,
    },
    /// The server was told to shut down. It still accepts, and the monitor tells balancers to send nobody any more.
    LameDuck {
        /// For how long.
        duration: Duration,
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
                    WhenFull::Wait => "wait for one to end",
                    WhenFull::Reject => "are rejected",
                };
                format!("connection limit reached ({max_connections}): more {next}")
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

/// What a full server does with the next connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Leaves it to the kernel, which holds it in its queue until a place is free.
    #[default]
    Wait,
    /// Accepts it, closes it and counts it.
    Reject,
}

/// Whom a server tells.
pub(super) type Observer = Box<dyn FnMut(&Event<'_>)>;

/// What a server tells: its events, and the sum of them.
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
    /// What befell it on purpose.
    pub(super) faults: Option<Rc<String>>,
}
