//! What a server and its connections know of each other: timeouts, counts, and the drain.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::mem;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::time;

use super::{Link, Next};

/// During a drain, a connection is idle when nothing went in or out for this long. Long enough for lost packets to be
/// sent again and for a peer to get its share of a busy machine, so that a transfer is not taken for idle.
const QUIET: Duration = Duration::from_secs(1);

/// Where a connection stands among those whose input ends during a drain, and one more: every connection has room for
/// one, which this halves.
#[derive(Clone, Copy)]
pub(super) struct DrainingKey(NonZeroU32);

/// What a server and its connections know of each other.
pub(crate) struct Terms {
    pub(super) idle_timeout: Option<Duration>,
    pub(super) stall_timeout: Option<Duration>,
    /// Where the clock of its connections starts.
    started: Instant,
    closing: Cell<bool>,
    /// Who waits for the server to begin its drain.
    waiting: RefCell<Slab<Waker>>,
    /// The connections whose input ends when the server drains and they are quiet.
    draining: RefCell<Slab<Weak<Link>>>,
    /// How many connections there are.
    open: Cell<usize>,
    /// How many there were before.
    ended: Cell<u64>,
    /// Who waits for a connection to end.
    waiting_for_end: Cell<Option<Waker>>,
}

impl Terms {
    pub(crate) fn new(idle_timeout: Option<Duration>, stall_timeout: Option<Duration>) -> Terms {
        Terms {
            idle_timeout,
            stall_timeout,
            started: time::recent(),
            closing: Cell::new(false),
            waiting: RefCell::default(),
            draining: RefCell::default(),
            open: Cell::new(0),
            ended: Cell::new(0),
            waiting_for_end: Cell::new(None),
        }
    }

    pub(super) fn nanos_now(&self) -> u64 {
        time::recent()
            .saturating_duration_since(self.started)
            .as_nanos() as u64
    }

    pub(super) fn instant(&self, nanos: u64) -> Instant {
        self.started + Duration::from_nanos(nanos)
    }

    /// How long ago `nanos` was.
    pub(super) fn since(&self, nanos: u64) -> Duration {
        Duration::from_nanos(self.nanos_now().saturating_sub(nanos))
    }

    /// A connection is there.
    pub(super) fn connected(&self) {
        self.open.set(self.open.get() + 1);
    }

    /// A connection is dropped. Whoever is woken runs later, when its stream is closed.
    pub(super) fn disconnected(&self) {
        self.open.set(self.open.get() - 1);
        self.ended.set(self.ended.get() + 1);
        if let Some(waker) = self.waiting_for_end.take() {
            waker.wake();
        }
    }

    /// Adds `link` to those whose input ends during a drain.
    pub(super) fn add_draining(&self, link: &Rc<Link>) -> DrainingKey {
        let key = self.draining.borrow_mut().insert(Rc::downgrade(link));
        let key = u32::try_from(key + 1).ok().and_then(NonZeroU32::new);
        DrainingKey(key.expect("each has a descriptor, which is an int"))
    }

    pub(super) fn remove_draining(&self, DrainingKey(key): DrainingKey) {
        self.draining.borrow_mut().remove(key.get() as usize - 1);
    }

    /// During a drain: ends the input of the connections that asked for it, as soon as each of them is quiet.
    pub(crate) async fn end_quiet_connections(self: Rc<Terms>) {
        loop {
            let mut next = QUIET;
            for (_, link) in self.draining.borrow().iter() {
                let Some(link) = link.upgrade() else { continue };
                // Who waits for its peer to read is in the middle of a transfer, however long the peer takes.
                if link.writing.next.get() == Next::Wait {
                    continue;
                }
                let quiet = self.since(link.last_activity.get());
                match QUIET.checked_sub(quiet) {
                    Some(rest) if !rest.is_zero() => next = next.min(rest),
                    // What fails is broken, and its next read tells.
                    _ => drop(link.stream.shutdown_read()),
                }
            }
            time::sleep(next.max(QUIET / 10)).await;
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    pub(crate) fn ended(&self) -> u64 {
        self.ended.get()
    }

    /// Wakes `waker` when the next connection has ended and its descriptor is free.
    pub(crate) fn wake_at_next_end(&self, waker: &Waker) {
        self.waiting_for_end.set(Some(waker.clone()));
    }

    pub(super) fn closing(self: Rc<Terms>) -> Closing {
        Closing {
            terms: self,
            key: None,
        }
    }

    /// Resolves every [`Closing`], now and from now on.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        let waiting = self.waiting.take();
        for (_, waker) in waiting {
            waker.wake();
        }
    }
}

impl Default for Terms {
    fn default() -> Terms {
        Terms::new(None, None)
    }
}

/// The future of [`Connection::closing`](super::Connection::closing).
#[must_use = "futures do nothing unless they are awaited"]
pub struct Closing {
    terms: Rc<Terms>,
    /// Where our waker stands in the terms' list.
    key: Option<usize>,
}

impl Future for Closing {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.terms.closing.get() {
            self.key = None;
            return Poll::Ready(());
        }
        let terms = self.terms.clone();
        let mut waiting = terms.waiting.borrow_mut();
        let waker = cx.waker().clone();
        let before = match self.key {
            Some(key) => Some(mem::replace(&mut waiting[key], waker)),
            None => {
                self.key = Some(waiting.insert(waker));
                None
            }
        };
        // Dropped after the borrow, since dropping a task's last waker may run code of anybody's.
        drop(waiting);
        drop(before);
        Poll::Pending
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        // After `Terms::close` the list is empty.
        if let Some(key) = self.key {
            let waker = self.terms.waiting.borrow_mut().try_remove(key);
            drop(waker);
        }
    }
}

impl fmt::Debug for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closing").finish_non_exhaustive()
    }
}
