//! Figures: what went through a connection, and what happened in a server.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What happened in a server, counted. Displays as one line, which names `faulty` only if there was one.
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
    /// Connections that were closed without a handler, for lack of a place, of the system's resources, or of a PROXY header.
    pub rejected: u64,
    /// Connections that were cancelled at the end of the drain.
    pub aborted: u64,
    /// Bytes read, on connections that are closed.
    pub bytes_in: u64,
    /// Bytes written, on connections that are closed.
    pub bytes_out: u64,
    /// The most connections that were open at once.
    pub peak_connections: usize,
    /// Connections that something befell on purpose (see the module `faults`), of those that are closed.
    pub faulty: u64,
}

impl Report {
    /// How many connections are open: their handlers were started, and how they ended is not known yet.
    pub fn open(&self) -> u64 {
        let ended = self.completed + self.failed + self.panicked + self.timed_out + self.aborted;
        self.accepted - ended
    }

    /// All counters with their names, and how many connections are open.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 12] {
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
            ("open", self.open()),
            ("peak connections", self.peak_connections as u64),
            ("faulty", self.faulty),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = self
            .counters()
            .into_iter()
            .filter(|(name, count)| *name != "open" && (*name != "faulty" || *count > 0));
        let counters: Vec<String> = counters
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        f.write_str(&counters.join(", "))
    }
}

/// What happens in a server, while it does: from [`Server::live_report`](crate::Server::live_report). A clone tells of the
/// same server, also on another thread, and after the server's end.
#[derive(Debug, Clone, Default)]
pub struct LiveReport {
    report: Arc<Mutex<Report>>,
}

impl LiveReport {
    /// What happened so far.
    pub fn report(&self) -> Report {
        self.lock().clone()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Report> {
        lock(&self.report)
    }

    pub(crate) fn shared(&self) -> &Arc<Mutex<Report>> {
        &self.report
    }
}

/// Locks what is whole after every statement, so that a panic with the lock held harms nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What goes through a connection: how much, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) duration: Duration,
}
