//! Tasks that end together.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::thread;

use futures_lite::Stream;
use futures_lite::future::poll_once;
use pin_project_lite::pin_project;
use slab::Slab;
use smol::Task;

use crate::event_loop;
use crate::task_table::Label;

/// Tasks that end together: their results come as a [`Stream`] in the order of completion, and dropping the group
/// cancels those that still run.
///
/// The stream ends (`None`) when every task has finished and its result is taken; it goes on after another
/// [`spawn`](TaskGroup::spawn). Nothing is held for a task that is finished and taken. A task's panic reaches whoever
/// takes its result.
///
/// ```
/// use std::time::Duration;
/// use futures_lite::StreamExt;
///
/// tinyloop::run(async {
///     let mut naps = tinyloop::TaskGroup::new().limit(2);
///     for millis in [30, 10, 20] {
///         let nap = async move { tinyloop::sleep(Duration::from_millis(millis)).await; millis };
///         naps.spawn(nap).await; // waits at the limit: the third starts when the second has ended
///     }
///     let order: Vec<u64> = naps.collect().await;
///     assert_eq!(order[0], 10);
/// });
/// ```
pub struct TaskGroup<T> {
    /// The handles of the tasks whose results are not taken yet.
    tasks: Slab<Task<()>>,
    finished: Rc<Finished<T>>,
    limit: usize,
}

/// What the tasks leave behind for the group.
struct Finished<T> {
    /// The results that are not taken yet, with their tasks' keys in the group, in the order of completion.
    results: RefCell<VecDeque<(usize, thread::Result<T>)>>,
    /// Who waits for the next task to finish.
    waiting: Cell<Option<Waker>>,
}

pin_project! {
    /// A task of a group. As an async block it would hold its future twice, once to move it from.
    struct Member<F: Future> {
        #[pin]
        future: F,
        key: usize,
        finished: Rc<Finished<F::Output>>,
    }
}

impl<F: Future> Future for Member<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let result = match panic::catch_unwind(AssertUnwindSafe(|| this.future.poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(result)) => Ok(result),
            Err(payload) => Err(payload),
        };
        this.finished.push(*this.key, result);
        Poll::Ready(())
    }
}

impl<T> Finished<T> {
    fn push(&self, key: usize, result: thread::Result<T>) {
        self.results.borrow_mut().push_back((key, result));
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

impl<T: 'static> TaskGroup<T> {
    /// A group without tasks and without a limit.
    pub fn new() -> TaskGroup<T> {
        let finished = Finished {
            results: RefCell::default(),
            waiting: Cell::new(None),
        };
        TaskGroup {
            tasks: Slab::new(),
            finished: Rc::new(finished),
            limit: usize::MAX,
        }
    }

    /// Lets at most `limit` tasks run at once: [`spawn`](TaskGroup::spawn) waits for one of them to finish.
    ///
    /// # Panics
    ///
    /// If `limit` is zero.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> TaskGroup<T> {
        assert!(limit > 0, "a group that may run no task would wait forever");
        self.limit = limit;
        self
    }

    /// Starts a task in the group, when the limit allows.
    ///
    /// Cancelled while it waits, it starts nothing.
    ///
    /// # Panics
    ///
    /// Outside a running event loop.
    #[track_caller]
    pub fn spawn(&mut self, future: impl Future<Output = T> + 'static) -> impl Future<Output = ()> {
        let label = Label::new(Location::caller());
        async move {
            poll_fn(|cx| {
                if self.running() < self.limit {
                    return Poll::Ready(());
                }
                self.finished.waiting.set(Some(cx.waker().clone()));
                Poll::Pending
            })
            .await;
            self.spawn_now(label, future);
        }
    }

    /// Starts a task in the group, whatever the limit.
    pub(crate) fn spawn_now(&mut self, label: Label, future: impl Future<Output = T> + 'static) {
        let entry = self.tasks.vacant_entry();
        let (key, finished) = (entry.key(), self.finished.clone());
        let member = Member {
            future,
            key,
            finished,
        };
        entry.insert(event_loop::current("TaskGroup::spawn").spawn(label, member));
    }

    /// How many tasks still run.
    pub fn running(&self) -> usize {
        self.tasks.len() - self.finished.results.borrow().len()
    }

    /// Cancels the tasks that still run, and waits until their futures are dropped. What has finished can still be
    /// taken, and the group can be used again.
    pub async fn cancel(&mut self) {
        let tasks = self.tasks.iter();
        let running = tasks.filter(|(_, task)| !task.is_finished());
        let running: Vec<usize> = running.map(|(key, _)| key).collect();
        let mut cancelled: Vec<_> = running
            .into_iter()
            .map(|key| Box::pin(self.tasks.remove(key).cancel()))
            .collect();
        // The first poll is what cancels: all of them first, so that they end at the same time.
        for task in &mut cancelled {
            poll_once(task).await;
        }
        for task in cancelled {
            task.await;
        }
    }
}

impl<T: 'static> Default for TaskGroup<T> {
    fn default() -> TaskGroup<T> {
        TaskGroup::new()
    }
}

impl<T: 'static> Stream for TaskGroup<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let next = self.finished.results.borrow_mut().pop_front();
        match next {
            Some((key, result)) => {
                drop(self.tasks.remove(key));
                Poll::Ready(Some(
                    result.unwrap_or_else(|payload| panic::resume_unwind(payload)),
                ))
            }
            None if self.tasks.is_empty() => Poll::Ready(None),
            None => {
                self.finished.waiting.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl<T> fmt::Debug for TaskGroup<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup")
            .field("tasks", &self.tasks.len())
            .finish_non_exhaustive()
    }
}
