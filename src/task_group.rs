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

/// Tasks that end together. Their results come as a [`Stream`] in the order of completion. Dropping the group cancels
/// the tasks that still run.
///
/// If the group is dropped, the futures of its tasks are dropped in the loop's next turn, after the current task has
/// paused. Until then, the resources that they hold stay open. [`cancel`](TaskGroup::cancel) waits for that.
///
/// The stream ends (`None`) when all tasks have finished and all results are taken. It continues after another
/// [`spawn`](TaskGroup::spawn). A finished task whose result was taken uses no memory. If a task panicked, the panic
/// continues when its result is taken.
///
/// A group may outlive the loop of its tasks. The results of finished tasks can then still be taken. For each task that
/// was dropped with its loop, the stream panics once. Such a task no longer counts as running.
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
    /// The handles of the tasks whose results are not taken yet. `None` for a cancelled task that is not dropped yet.
    tasks: Slab<Option<Task<()>>>,
    finished: Rc<Finished<T>>,
    limit: usize,
}

/// The results that the tasks leave for the group.
struct Finished<T> {
    /// The results that are not taken yet, with their tasks' keys in the group, in the order of completion.
    results: RefCell<VecDeque<(usize, End<T>)>>,
    /// The task that waits for the next result.
    waiting: Cell<Option<Waker>>,
}

/// How a task ended.
enum End<T> {
    Finished(thread::Result<T>),
    /// The task was cancelled, or dropped with its loop.
    Dropped,
}

pin_project! {
    /// A task of a group. It is not an async block, because an async block would hold its future twice: once to move it
    /// from.
    struct Member<F: Future> {
        #[pin]
        future: F,
        // Dropped after the future.
        place: Place<F::Output>,
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
        this.place.leave(End::Finished(result));
        Poll::Ready(())
    }
}

/// A task's place in its group. When the place is dropped, it reports how the task ended.
struct Place<T> {
    key: usize,
    finished: Option<Rc<Finished<T>>>,
}

impl<T> Place<T> {
    fn leave(&mut self, end: End<T>) {
        let Some(finished) = self.finished.take() else {
            return;
        };
        finished.results.borrow_mut().push_back((self.key, end));
        if let Some(waker) = finished.waiting.take() {
            waker.wake();
        }
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.leave(End::Dropped);
    }
}

impl<T: 'static> TaskGroup<T> {
    /// Creates a group without tasks and without a limit.
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

    /// Concurrency limit: at most `limit` tasks run at once. At the limit, [`spawn`](TaskGroup::spawn) waits.
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

    /// Starts a task in the group; at the limit, waits until another task has finished.
    ///
    /// If this future is dropped while it waits, no task is started.
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
            self.start(label, future);
        }
    }

    /// Starts a task in the group at once and ignores the limit. For groups without a limit, and for code that cannot
    /// await.
    ///
    /// # Panics
    ///
    /// Outside a running event loop.
    #[track_caller]
    pub fn spawn_now(&mut self, future: impl Future<Output = T> + 'static) {
        self.start(Label::new(Location::caller()), future);
    }

    pub(crate) fn start(&mut self, label: Label, future: impl Future<Output = T> + 'static) {
        let entry = self.tasks.vacant_entry();
        let place = Place {
            key: entry.key(),
            finished: Some(self.finished.clone()),
        };
        let member = Member { future, place };
        let task = event_loop::current("TaskGroup::spawn").spawn(label, member);
        entry.insert(Some(task));
    }

    /// Number of tasks that still run, or are cancelled and not dropped yet.
    pub fn running(&self) -> usize {
        self.tasks.len() - self.finished.results.borrow().len()
    }

    /// Cancels the tasks that still run, and waits until their futures are dropped. Results of finished tasks can still
    /// be taken, and the group can be used again.
    ///
    /// If this future is dropped while it waits, the tasks are still cancelled.
    pub async fn cancel(&mut self) {
        // The first poll cancels a task. All tasks are polled first, so that they end at the same time.
        let mut running = Vec::new();
        for task in self.tasks.iter_mut().filter_map(|(_, task)| task.take()) {
            let mut cancelled = Box::pin(task.cancel());
            if poll_once(&mut cancelled).await.is_none() {
                running.push(cancelled);
            }
        }
        for cancelled in running {
            cancelled.await;
        }
    }

    /// Takes the next result of a task that was not cancelled.
    fn take_end(&mut self) -> Option<End<T>> {
        loop {
            let (key, end) = self.finished.results.borrow_mut().pop_front()?;
            match (self.tasks.remove(key), end) {
                (None, End::Dropped) => {}
                (_, end) => return Some(end),
            }
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
        match self.take_end() {
            Some(End::Finished(Ok(result))) => Poll::Ready(Some(result)),
            Some(End::Finished(Err(payload))) => panic::resume_unwind(payload),
            Some(End::Dropped) => panic!("a task of the group was dropped with its event loop"),
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
