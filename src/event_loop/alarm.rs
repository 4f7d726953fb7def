//! The alarm that ends the loop's sleep.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_lite::FutureExt;
use smol::Timer;

/// The one smol timer that wakes the sleeping loop for its own timers.
///
/// It is set before the loop sleeps, and only if the new time is earlier. If the earliest timer was cancelled, the loop
/// wakes up once without need. This is cheaper than setting the alarm before each sleep.
pub(super) struct Alarm {
    timer: Timer,
    deadline: Option<Instant>,
}

impl Alarm {
    pub(super) fn new() -> Alarm {
        Alarm {
            timer: Timer::never(),
            deadline: None,
        }
    }

    pub(super) fn set(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if self.deadline.is_none_or(|set| deadline < set) {
            self.timer.set_at(deadline);
            self.deadline = Some(deadline);
        }
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.poll(cx).is_ready() {
            self.deadline = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}
