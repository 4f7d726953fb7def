//! What the parent knows of a worker beyond the life of one process.

use std::time::Duration;

use tinyloop::{LiveReport, Report};

/// How long to wait before a worker that has died young is started again: at first, and at most.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// A worker that has lived so long is started again at once.
const GROWN_UP: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct WorkerState {
    /// The process that accepts connections and is to go on.
    pub(super) current: Option<u64>,
    /// How many processes in a row have died young.
    died_young: u32,
    /// How the last one ended, until it is started again.
    pub(super) ended: Option<String>,
    /// A start has failed since then, which is told once.
    pub(super) cannot_start: bool,
    /// The sum of those that have ended, and of all.
    pub(super) past: Report,
    pub(super) live: LiveReport,
}

impl WorkerState {
    /// How long to wait before the next start, if the last process has lived for so long.
    pub(super) fn pause_before_start(&mut self, lived: Duration) -> Duration {
        if lived >= GROWN_UP {
            self.died_young = 0;
            return Duration::ZERO;
        }
        self.died_young += 1;
        BACK_OFF
            .saturating_mul(1 << (self.died_young - 1).min(16))
            .min(BACK_OFF_MAX)
    }
}
