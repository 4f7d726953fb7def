//! One direction of a connection: its share of the loop's time, and the tasks that wait for it.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::{mem, ptr};

use crate::executor;

/// Minimum number of bytes to count for a read or write. It stands for the cost of the system call.
const CALL_COST: u32 = 2 * 1024;

/// One direction of a connection.
pub(super) struct Direction {
    next: Cell<Next>,
    /// Bytes since other tasks last ran. Saturates at 4 GiB, far above the burst limits.
    burst: Cell<u32>,
    /// The waker of the waiting task, identified by its address only. Null if no task waits.
    waiter: Cell<*const ()>,
}

/// What a read or write does before its system call.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Next {
    Try,
    /// First let the tasks run that are ready now.
    Yield,
    /// The burst is used up: first let the tasks run that are ready now, and those that become ready in the meantime.
    GoLast,
    /// Like `GoLast`, and the task is already queued. The field `burst` then holds the number of the poll that queued
    /// it: in this poll, asking again does not help.
    IsLast,
    /// Wait for the event that was already requested. Otherwise smol would report the event once more at the next wait,
    /// which costs a useless system call.
    Wait,
}

impl Direction {
    pub(super) fn new() -> Direction {
        Direction {
            next: Cell::new(Next::Try),
            burst: Cell::new(0),
            waiter: Cell::new(ptr::null()),
        }
    }

    pub(super) fn waits(&self) -> bool {
        self.next.get() == Next::Wait
    }

    pub(super) fn set(&self, next: Next) {
        self.next.set(next);
    }

    /// Lets other tasks run first, if it is their turn.
    pub(super) fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.next.get() {
            Next::Try | Next::Wait => return Poll::Ready(()),
            Next::IsLast if executor::this_poll() == Some(self.burst.get()) => {
                return Poll::Pending;
            }
            Next::IsLast => {
                self.yield_next(Next::Try);
                return Poll::Ready(());
            }
            Next::Yield => {
                self.next.set(Next::Try);
                cx.waker().wake_by_ref();
            }
            Next::GoLast => {
                self.next.set(Next::IsLast);
                self.burst.set(executor::this_poll().unwrap_or_default());
                executor::go_last(cx.waker());
            }
        }
        Poll::Pending
    }

    /// Counts `n` bytes. Returns whether the burst is used up.
    pub(super) fn spend(&self, n: usize, burst: u32) -> bool {
        let cost = u32::try_from(n).unwrap_or(u32::MAX).max(CALL_COST);
        self.burst.set(self.burst.get().saturating_add(cost));
        self.burst.get() >= burst
    }

    /// Whether bytes were counted since other tasks last ran.
    pub(super) fn has_burst(&self) -> bool {
        self.burst.get() > 0
    }

    pub(super) fn yield_next(&self, next: Next) {
        self.next.set(next);
        self.burst.set(0);
    }

    /// Starts a new burst: other tasks have run.
    pub(super) fn forget_burst(&self) {
        if self.next.get() != Next::IsLast {
            self.burst.set(0);
        }
    }

    /// Polls for the event of this direction, with `poll`.
    ///
    /// A stream stores one waker. When it gets another one, it wakes the previous one. So two tasks would keep waking
    /// each other. From the second task on, the tasks share a waker, which wakes them all: `shared` creates it.
    pub(super) fn poll_event<T>(
        &self,
        cx: &mut Context<'_>,
        shared: impl FnOnce(bool) -> Option<Arc<Waiters>>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let before = self.waiter.replace(cx.waker().data());
        let is_second = !before.is_null() && before != cx.waker().data();
        let polled = match shared(is_second) {
            None => poll(cx),
            Some(waiters) => {
                waiters.add(cx.waker());
                poll(&mut Context::from_waker(&Waker::from(waiters)))
            }
        };
        if polled.is_ready() {
            self.waiter.set(ptr::null());
        }
        polled
    }
}

/// The tasks that wait for one direction of a connection at the same time.
#[derive(Default)]
pub(super) struct Waiters {
    wakers: Mutex<Vec<Waker>>,
}

impl Waiters {
    fn add(&self, waker: &Waker) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if !wakers.iter().any(|known| known.will_wake(waker)) {
            wakers.push(waker.clone());
        }
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = mem::take(&mut *wakers);
        drop(wakers);
        woken.into_iter().for_each(Waker::wake);
    }
}
