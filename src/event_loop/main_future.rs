//! Schedules the main future among the tasks.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use smol::Task;

use crate::executor::Executor;
use crate::task_table::{Entry, SlowPolls};

/// The main future. It cannot be a task, because it does not have to be `'static`. But it is scheduled like a task: a
/// task stands in for it in the queue of ready tasks.
pub(super) struct Main<'r, F> {
    pub(super) future: Pin<&'r mut F>,
    /// Set when the main future is due: the waker of the task that stands in for it.
    pub(super) turn: Rc<Cell<Option<Waker>>>,
    pub(super) entry: Arc<Entry>,
    pub(super) slow_polls: &'r SlowPolls,
}

impl<F: Future> Main<'_, F> {
    pub(super) fn stand_in(&self, executor: &Executor) -> Task<()> {
        let (turn, entry) = (self.turn.clone(), self.entry.clone());
        let stand_in = poll_fn(move |cx| {
            turn.set(Some(cx.waker().clone()));
            Poll::Pending
        });
        executor.spawn(stand_in, move || entry.woken())
    }

    pub(super) fn poll_if_due(&mut self) -> Poll<F::Output> {
        let Some(waker) = self.turn.take() else {
            return Poll::Pending;
        };
        self.entry.begin_poll();
        let polled = self.future.as_mut().poll(&mut Context::from_waker(&waker));
        let duration = self.entry.end_poll();
        self.slow_polls.check(&self.entry, duration);
        polled
    }
}
