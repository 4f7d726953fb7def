//! The executor: the tasks of one thread, and the queues of the ready tasks.
//!
//! A task that its own thread wakes goes into a plain queue, as in asyncio's `_ready`. A task that another thread wakes
//! goes into a queue behind a lock, and the executor's thread is woken. A task that has used up its burst goes last:
//! see [`Queues`].
//!
//! This file knows no sockets and no clock: the event loop decides how long to run and when to sleep.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use async_task::{Builder, Runnable, ScheduleInfo, Task, WithInfo};
use pin_project_lite::pin_project;
use slab::Slab;

/// Tasks that run on one thread. Dropping the executor drops their futures at once; a later wake does nothing.
pub(crate) struct Executor {
    tasks: Rc<Tasks>,
}

/// State that only the executor's own thread uses.
struct Tasks {
    queues: RefCell<Queues>,
    /// The thread sleeps, or is about to sleep, and must be woken when a task is woken.
    asleep: Cell<bool>,
    /// A waker for each task whose future is not dropped yet.
    alive: RefCell<Slab<Waker>>,
    arrivals: Arc<Arrivals>,
}

/// The tasks that are ready.
///
/// Tasks that have used up their burst go last. They run after all tasks that are ready now, after tasks that a socket
/// or timer makes ready in the meantime, and after the tasks that these tasks wake, up to [`MAX_HOPS`] wakes away from
/// the event. So a client with a small request is answered first, even if several tasks take part in the answer. Tasks
/// that wake themselves or each other for ever do not hold them up: while a task waits at the end, such tasks go to the
/// end, too.
#[derive(Default)]
struct Queues {
    /// The tasks that run first.
    ready: VecDeque<Queued>,
    last: VecDeque<Queued>,
    /// Number of polls so far. It is also the number of the current poll.
    polls: u64,
    /// Number of wakes between the event and the current poll.
    hops: u8,
    /// The task of the current poll has used up its burst: see [`go_last`].
    goes_last: bool,
}

struct Queued {
    runnable: Runnable,
    /// Number of wakes between the event and this wake.
    hops: u8,
}

/// Enough for a request that goes to another task and back, and for a check whether the next request is already there.
const MAX_HOPS: u8 = 3;

/// The tasks that were woken from outside: by another thread, or while the executor was not running.
struct Arrivals {
    queue: Mutex<Queue>,
    /// Notified of each arrival while there is no thread to wake.
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    runnables: VecDeque<Runnable>,
    /// Wakes the executor's thread, while the executor runs.
    thread: Option<Waker>,
}

thread_local! {
    /// The executor that runs on this thread, and the waker of the thread.
    static CURRENT: RefCell<Option<(Rc<Tasks>, Waker)>> = const { RefCell::new(None) };
}

impl Executor {
    pub(crate) fn new() -> Executor {
        let tasks = Tasks {
            queues: RefCell::default(),
            asleep: Cell::new(false),
            alive: RefCell::default(),
            arrivals: Arc::new(Arrivals {
                queue: Mutex::default(),
                arrived: Condvar::new(),
            }),
        };
        Executor {
            tasks: Rc::new(tasks),
        }
    }

    /// Adds a ready task. Whenever the task becomes ready, `woken` is called on the thread that wakes it.
    pub(crate) fn spawn<T: 'static>(
        &self,
        future: impl Future<Output = T> + 'static,
        woken: impl Fn() + Send + Sync + 'static,
    ) -> Task<T> {
        let arrivals = self.tasks.arrivals.clone();
        let schedule = move |runnable, info| {
            woken();
            arrivals.schedule(runnable, info);
        };
        let key = self.tasks.alive.borrow().vacant_key();
        let tasks = self.tasks.clone();
        let alive = |_: &()| Alive {
            future: Some(future),
            place: Place { tasks, key },
        };
        // A panic goes to the code that awaits the task, and does not leave the executor.
        let builder = Builder::new().propagate_panic(true);
        let (runnable, task) = builder.spawn_local(alive, WithInfo(schedule));
        self.tasks.alive.borrow_mut().insert(runnable.waker());
        runnable.schedule();
        task
    }

    /// Runs on this thread until the result is dropped. `thread` wakes the thread from its sleep.
    pub(crate) fn enter(&self, thread: Waker) -> Entered {
        let arrivals = self.tasks.arrivals.clone();
        arrivals.lock().thread = Some(thread.clone());
        CURRENT.set(Some((self.tasks.clone(), thread)));
        Entered { arrivals }
    }

    /// Begins a turn, after the sockets were polled. Returns the number of ready tasks.
    ///
    /// In each turn, one of the tasks that go last may run, even if other tasks are ready.
    pub(crate) fn begin_turn(&self) -> usize {
        self.take_arrivals();
        self.tasks.asleep.set(false);
        let mut queues = self.tasks.queues.borrow_mut();
        let last = queues.last.pop_front();
        queues.ready.extend(last);
        queues.len()
    }

    /// Whether a task has used up its burst and waits for the other tasks.
    pub(crate) fn somebody_goes_last(&self) -> bool {
        !self.tasks.queues.borrow().last.is_empty()
    }

    /// Ends a turn: later wakes come from events. Returns the number of ready tasks.
    pub(crate) fn end_turn(&self) -> usize {
        let mut queues = self.tasks.queues.borrow_mut();
        queues.hops = 0;
        queues.len()
    }

    /// Runs the next task. Returns whether there was one.
    pub(crate) fn run_next(&self) -> bool {
        let next = self.tasks.queues.borrow_mut().next();
        next.map(Runnable::run).is_some()
    }

    /// Ready when a task is ready. Otherwise the next task that is woken wakes the thread.
    pub(crate) fn poll_ready(&self) -> Poll<()> {
        self.take_arrivals();
        let is_ready = self.tasks.queues.borrow().len() > 0;
        self.tasks.asleep.set(!is_ready);
        if is_ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Moves the tasks that were woken from outside into this thread's queues.
    fn take_arrivals(&self) {
        let mut arrivals = self.tasks.arrivals.lock();
        let mut queues = self.tasks.queues.borrow_mut();
        let runnables = arrivals.runnables.drain(..);
        queues
            .ready
            .extend(runnables.map(|runnable| Queued { runnable, hops: 0 }));
    }

    /// Drops the futures of all tasks, and of tasks that their destructors spawn. A later wake does nothing.
    pub(crate) fn end(&self) {
        let tasks = &*self.tasks;
        while !tasks.alive.borrow().is_empty() {
            // A waiting task is woken, so that it stands in a queue like the others. Dropping it there drops its
            // future.
            let wakers: Vec<Waker> = tasks
                .alive
                .borrow()
                .iter()
                .map(|(_, w)| w.clone())
                .collect();
            wakers.into_iter().for_each(Waker::wake);
            let mut dropped = false;
            while let Some(runnable) = tasks.pop() {
                drop(runnable);
                dropped = true;
            }
            if !dropped {
                // The remaining tasks are being woken by other threads at this moment. They are already marked as
                // woken, so another wake does nothing; but they are not in the queue yet. They arrive a moment later.
                tasks.arrivals.wait();
            }
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").finish_non_exhaustive()
    }
}

/// Guard: while it exists, the executor runs on its thread.
#[must_use = "the executor runs until this is dropped"]
pub(crate) struct Entered {
    arrivals: Arc<Arrivals>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.arrivals.lock().thread = None;
        CURRENT.take();
    }
}

/// Wakes `waker` at the end of the queue: the task of the current poll has used up its burst. See [`Queues`].
pub(crate) fn go_last(waker: &Waker) {
    CURRENT.with_borrow(|current| {
        if let Some((tasks, _)) = current {
            tasks.queues.borrow_mut().goes_last = true;
        }
    });
    waker.wake_by_ref();
}

/// Ready after all ready tasks have run once, and after the tasks that the next poll of the sockets makes ready.
pub(crate) async fn last_turn() {
    let mut is_over = false;
    poll_fn(|cx| {
        if is_over {
            return Poll::Ready(());
        }
        is_over = true;
        go_last(cx.waker());
        Poll::Pending
    })
    .await;
}

/// The number of the current poll, modulo 2³², if an executor runs on this thread.
pub(crate) fn this_poll() -> Option<u32> {
    CURRENT.with_borrow(|current| Some(current.as_ref()?.0.queues.borrow().polls as u32))
}

/// How many tasks the executor has that runs on this thread.
#[cfg(feature = "testing")]
pub(crate) fn tasks() -> usize {
    CURRENT.with_borrow(|current| {
        current
            .as_ref()
            .map_or(0, |(tasks, _)| tasks.alive.borrow().len())
    })
}

impl Tasks {
    /// Takes a ready task from any of the queues.
    fn pop(&self) -> Option<Runnable> {
        let next = self.queues.borrow_mut().next();
        next.or_else(|| self.arrivals.lock().runnables.pop_front())
    }
}

impl Queues {
    /// Takes the next task for a poll.
    fn next(&mut self) -> Option<Runnable> {
        let next = self.ready.pop_front().or_else(|| self.last.pop_front())?;
        self.polls += 1;
        self.hops = next.hops;
        self.goes_last = false;
        Some(next.runnable)
    }

    /// Queues a task that this thread has woken.
    fn push(&mut self, runnable: Runnable, info: ScheduleInfo) {
        let has_had_its_burst = info.woken_while_running && mem::take(&mut self.goes_last);
        let goes_on = self.hops >= MAX_HOPS && !self.last.is_empty();
        let hops = self.hops.saturating_add(1);
        let queue = match has_had_its_burst || goes_on {
            true => &mut self.last,
            false => &mut self.ready,
        };
        queue.push_back(Queued { runnable, hops });
    }

    fn len(&self) -> usize {
        self.ready.len() + self.last.len()
    }
}

impl Arrivals {
    /// Puts a woken task into its queue.
    fn schedule(self: &Arc<Self>, runnable: Runnable, info: ScheduleInfo) {
        let mut runnable = Some(runnable);
        // While the thread ends, the slot may be gone. Then no executor runs.
        let _ = CURRENT.try_with(|current| {
            if let Some((tasks, thread)) = &*current.borrow()
                && Arc::ptr_eq(&tasks.arrivals, self)
                && let Some(runnable) = runnable.take()
            {
                tasks.queues.borrow_mut().push(runnable, info);
                if tasks.asleep.take() {
                    thread.wake_by_ref();
                }
            }
        });
        if let Some(runnable) = runnable {
            self.push(runnable);
        }
    }

    fn push(&self, runnable: Runnable) {
        let mut queue = self.lock();
        queue.runnables.push_back(runnable);
        let thread = queue.thread.clone();
        drop(queue);
        match thread {
            Some(thread) => thread.wake(),
            None => self.arrived.notify_one(),
        }
    }

    /// Waits for an arrival.
    fn wait(&self) {
        let is_empty = |queue: &mut Queue| queue.runnables.is_empty();
        drop(self.arrived.wait_while(self.lock(), is_empty));
    }

    /// No code that holds the lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pin_project! {
    /// A task's future. When it is dropped, it leaves the list of living tasks.
    struct Alive<F> {
        // `None` while the future is being dropped.
        #[pin]
        future: Option<F>,
        // Dropped after the future.
        place: Place,
    }

    impl<F> PinnedDrop for Alive<F> {
        fn drop(this: Pin<&mut Self>) {
            // Without this, a panic of a destructor while a task is cancelled would end the process. The panic hook has
            // reported it.
            let mut future = this.project().future;
            panic::catch_unwind(AssertUnwindSafe(|| future.set(None))).ok();
        }
    }
}

/// A task's entry in the list of living tasks.
struct Place {
    tasks: Rc<Tasks>,
    key: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let waker = self.tasks.alive.borrow_mut().remove(self.key);
        drop(waker);
    }
}

impl<F: Future> Future for Alive<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let future = self.project().future.as_pin_mut();
        future.expect("no task is polled after its end").poll(cx)
    }
}

#[cfg(test)]
mod tests;
