//! Counters: the traffic of a connection, and the totals of a server.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The totals of a server. Displays as one line, which contains `faulty` only if a connection had faults.
///
/// `accepted` is the sum of `completed`, `failed`, `panicked`, `timed_out`, `aborted` and the connections still open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Connections whose handler was started.
    pub accepted: u64,
    /// Connections whose handler returned `Ok`.
    pub completed: u64,
    /// Connections whose handler returned an error other than an idle or stall timeout.
    pub failed: u64,
    /// Connections whose handler panicked.
    pub panicked: u64,
    /// Connections that the idle timeout or the stall timeout ended.
    pub timed_out: u64,
    /// Connections that were closed without a handler, because of the connection limit, a lack of resources, or their
    /// PROXY header.
    pub rejected: u64,
    /// Connections that were cancelled at the end of the drain.
    pub aborted: u64,
    /// Bytes read, on connections that are closed.
    pub bytes_in: u64,
    /// Bytes written, on connections that are closed.
    pub bytes_out: u64,
    /// The most connections that were open at once.
    pub peak_connections: usize,
    /// Closed connections that had faults on purpose (see the module `faults`).
    pub faulty: u64,
}

impl Report {
    /// Number of open connections: their handler was started, and their end is not counted yet.
    pub fn open(&self) -> u64 {
        let ended = self.completed + self.failed + self.panicked + self.timed_out + self.aborted;
        self.accepted - ended
    }

    /// All counters with their names, and the number of open connections.
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

/// The counters of a running server, from [`Server::live_report`](crate::Server::live_report). A clone shows the same
/// server, also on another thread, and after the server's end.
#[derive(Debug, Clone, Default)]
pub struct LiveReport {
    report: Arc<Mutex<Report>>,
}

impl LiveReport {
    /// The counters at this moment.
    pub fn report(&self) -> Report {
        self.lock().clone()
    }

    /// Tells of what happened elsewhere, such as in another process. For the program alone: no promise.
    #[doc(hidden)]
    pub fn replace(&self, report: Report) {
        *self.lock() = report;
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Report> {
        lock(&self.report)
    }

    pub(crate) fn shared(&self) -> &Arc<Mutex<Report>> {
        &self.report
    }
}

/// Locks data that is consistent after every statement, so a panic while the lock is held does no harm.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The traffic of a connection: byte counts and duration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) duration: Duration,
}
