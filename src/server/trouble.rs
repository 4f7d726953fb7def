//! States that come and go: the connection limit is reached, or file descriptors run out.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::time::{self, Sleep, sleep};

/// How long a state must be gone before it counts as over.
const CALM: Duration = Duration::from_secs(1);

/// A state that may come and go many times a second. Its beginning is reported, and its end when it was gone for
/// [`CALM`].
pub(super) struct Trouble {
    since: Instant,
    /// How often the state came, or the number of its effects.
    pub(super) count: u64,
    /// Since when the state is gone, and the timer until when it has to stay gone.
    calm: Option<(Instant, Sleep)>,
}

impl Trouble {
    pub(super) fn begin() -> Trouble {
        Trouble {
            since: time::now(),
            count: 0,
            calm: None,
        }
    }

    pub(super) fn is_back(&mut self) {
        self.calm = None;
    }

    pub(super) fn is_gone(&mut self) {
        self.calm.get_or_insert_with(|| (time::now(), sleep(CALM)));
    }

    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.calm {
            Some((_, until)) => Pin::new(until).poll(cx),
            None => Poll::Pending,
        }
    }

    pub(super) fn lasted(&self) -> Duration {
        let end = self.calm.as_ref().map_or_else(time::now, |(gone, _)| *gone);
        end.saturating_duration_since(self.since)
    }
}
