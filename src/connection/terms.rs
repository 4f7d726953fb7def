//! The state that a server and its connections share: timeouts, counts and the drain.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::mem;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::time;

/// The state that a server and its connections share.
pub(crate) struct Terms {
    pub(super) timeouts: Timeouts,
    /// The start of the clock for its connections.
    started: Instant,
    closing: Cell<bool>,
    /// The tasks that wait for the server's drain to begin.
    waiting: RefCell<Slab<Waker>>,
    /// Number of connections that count towards the limit.
    open: Cell<usize>,
    /// Number of connections that no longer count towards the limit.
    left: Cell<u64>,
    /// Number of connections whose file descriptor is closed.
    closed: Cell<u64>,
    /// The task that waits for a free place or a free file descriptor.
    waiting_for_end: Cell<Option<Waker>>,
}

/// How long the peer may be silent, and how long it may take no data. `None` if there is no limit.
#[derive(Clone, Copy, Default)]
pub(crate) struct Timeouts {
    pub(crate) idle: Option<Duration>,
    pub(crate) stall: Option<Duration>,
}

/// A task's key in the list of those that wait for the drain, plus 1. The 1 makes an `Option` of it half as large, and
/// every connection holds one.
#[derive(Clone, Copy)]
pub(super) struct WaitingKey(NonZeroU32);

/// How long a connection must be quiet before it ends during a drain: milliseconds, plus 1. The 1 makes an `Option` of
/// it a quarter as large, and every connection holds one.
#[derive(Clone, Copy)]
pub(super) struct Quiet(NonZeroU32);

impl Terms {
    pub(crate) fn new(timeouts: Timeouts) -> Terms {
        Terms {
            timeouts,
            started: time::now_or_system(),
            closing: Cell::new(false),
            waiting: RefCell::default(),
            open: Cell::new(0),
            left: Cell::new(0),
            closed: Cell::new(0),
            waiting_for_end: Cell::new(None),
        }
    }

    /// Reads the clock. A time that is recorded with it is never earlier than its event.
    pub(super) fn nanos_now(&self) -> u64 {
        time::now_or_system()
            .saturating_duration_since(self.started)
            .as_nanos() as u64
    }

    pub(super) fn instant(&self, nanos: u64) -> Instant {
        self.started + Duration::from_nanos(nanos)
    }

    /// Time since `nanos`.
    pub(super) fn since(&self, nanos: u64) -> Duration {
        Duration::from_nanos(self.nanos_now().saturating_sub(nanos))
    }

    /// A connection now counts towards the limit.
    pub(super) fn take_place(&self) {
        self.open.set(self.open.get() + 1);
    }

    /// A connection no longer counts towards the limit.
    pub(super) fn give_place(&self) {
        self.open.set(self.open.get() - 1);
        self.left.set(self.left.get() + 1);
        self.wake_waiting();
    }

    /// A connection is being dropped. The woken task runs later, when the stream is closed.
    pub(super) fn disconnected(&self) {
        self.closed.set(self.closed.get() + 1);
        self.wake_waiting();
    }

    fn wake_waiting(&self) {
        if let Some(waker) = self.waiting_for_end.take() {
            waker.wake();
        }
    }

    /// Number of connections that count towards the limit.
    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    /// Number of file descriptors of connections that were closed so far.
    pub(crate) fn closed(&self) -> u64 {
        self.closed.get()
    }

    /// Wakes `waker` when the next place or file descriptor becomes free.
    pub(crate) fn wake_at_next_end(&self, waker: &Waker) {
        self.waiting_for_end.set(Some(waker.clone()));
    }

    pub(crate) fn closing(self: Rc<Terms>) -> Closing {
        Closing {
            terms: self,
            key: None,
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Ready when the server drains. Otherwise the task is woken at the drain; `key` is its entry in the list.
    pub(super) fn poll_closing(&self, key: &mut Option<WaitingKey>, cx: &Context<'_>) -> Poll<()> {
        if self.closing.get() {
            *key = None;
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        let before = match *key {
            Some(key) if waiting[key.index()].will_wake(cx.waker()) => None,
            Some(key) => Some(mem::replace(&mut waiting[key.index()], cx.waker().clone())),
            None => {
                *key = Some(WaitingKey::new(waiting.insert(cx.waker().clone())));
                None
            }
        };
        // Dropped after the borrow, because dropping a task's last waker may run a destructor of any kind.
        drop(waiting);
        drop(before);
        Poll::Pending
    }

    /// Removes a task from the list of waiting tasks.
    pub(super) fn forget(&self, key: WaitingKey) {
        // After `close` the list is empty.
        let waker = self.waiting.borrow_mut().try_remove(key.index());
        drop(waker);
    }

    /// Resolves every [`Closing`], existing and future ones.
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
        Terms::new(Timeouts::default())
    }
}

impl WaitingKey {
    fn new(index: usize) -> WaitingKey {
        let key = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        WaitingKey(key.expect("there is no memory for so many wakers"))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

impl Quiet {
    /// `duration`, rounded up to milliseconds; at most 49 days.
    pub(super) fn new(duration: Duration) -> Quiet {
        let millis = duration.as_nanos().div_ceil(1_000_000);
        let millis = u32::try_from(millis).unwrap_or(u32::MAX);
        Quiet(NonZeroU32::MIN.saturating_add(millis))
    }

    pub(super) fn duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0.get() - 1))
    }
}

/// The future of [`Connection::closing`](super::Connection::closing).
#[must_use = "futures do nothing unless they are awaited"]
pub struct Closing {
    terms: Rc<Terms>,
    key: Option<WaitingKey>,
}

impl Future for Closing {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Closing { terms, key } = &mut *self;
        terms.poll_closing(key, cx)
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.terms.forget(key);
        }
    }
}

impl fmt::Debug for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closing").finish_non_exhaustive()
    }
}
