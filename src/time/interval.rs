//! Ticks: `interval`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_lite::Stream;

use super::{Sleep, later, sleep};

/// A stream of ticks, the first one after `period`.
///
/// If nobody takes a tick before the next one is due, the tick is skipped and counted ([`Interval::missed`]). So a slow
/// consumer gets fewer ticks, but never a burst of them, and the ticks stay at multiples of `period`.
///
/// # Panics
///
/// Outside a running event loop, or if `period` is zero. The stream panics in the same cases as the future of
/// [`sleep`].
pub fn interval(period: Duration) -> Interval {
    assert!(
        !period.is_zero(),
        "the period of an interval must not be zero"
    );
    Interval {
        sleep: sleep(period),
        period,
        missed: 0,
    }
}

/// The stream of [`interval`]. Each item is the instant at which its tick was due; the stream never ends.
#[derive(Debug)]
#[must_use = "streams do nothing unless they are polled"]
pub struct Interval {
    sleep: Sleep,
    period: Duration,
    missed: u64,
}

impl Interval {
    /// Number of ticks that were skipped so far, because the previous tick was taken too late.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

impl Stream for Interval {
    type Item = Instant;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Instant>> {
        ready!(Pin::new(&mut self.sleep).poll(cx));
        let due = self.sleep.deadline;
        let late = self.sleep.timers.now().saturating_duration_since(due);
        let skipped = late.as_nanos() / self.period.as_nanos();
        self.missed = self
            .missed
            .saturating_add(u64::try_from(skipped).unwrap_or(u64::MAX));
        let last_due = due + (late - remainder(late, self.period));
        let next = later(last_due, self.period);
        self.sleep.reset(next);
        Poll::Ready(Some(due))
    }
}

/// The remainder of `dividend` divided by `divisor`.
fn remainder(dividend: Duration, divisor: Duration) -> Duration {
    const NANOS_PER_SECOND: u128 = 1_000_000_000;
    let nanos = dividend.as_nanos() % divisor.as_nanos();
    Duration::new(
        (nanos / NANOS_PER_SECOND) as u64,
        (nanos % NANOS_PER_SECOND) as u32,
    )
}
