//! The executor: the tasks of one thread, and the queues in which those that are ready stand.
//!
//! A task that its own thread wakes goes into a plain queue, as in asyncio's `_ready`. One that another thread wakes
//! goes into a queue behind a lock, and wakes the thread. A task that has had its burst goes last: see [`Queues`].
//!
//! This file knows no sockets and no clock: how long to run, and when to sleep, is the event loop's to say.

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

/// Tasks that run on one thread. Dropping it drops their futures, there and then, and a wake after that does nothing.
pub(crate) struct Executor {
    tasks: Rc<Tasks>,
}

/// What only the executor's own thread touches.
struct Tasks {
    queues: RefCell<Queues>,
    /// The thread sleeps, or is about to, and has to be woken when a task is.
    asleep: Cell<bool>,
    /// A waker for each task whose future is not dropped yet.
    alive: RefCell<Slab<Waker>>,
    arrivals: Arc<Arrivals>,
}

/// The tasks that are ready.
///
/// Those that have had their burst go last: behind all that are ready, behind those that an event makes ready
/// meanwhile, and behind those that these wake, up to [`MAX_HOPS`] wakes on. So a client that asks something is answered
/// before them, by several tasks if need be. Tasks that go on and on, by waking themselves or each other, do not hold
/// them up: while somebody goes last, they go last, too.
#[derive(Default)]
struct Queues {
    /// They run first.
    ready: VecDeque<Queued>,
    last: VecDeque<Queued>,
    /// How many polls there were, which numbers them.
    polls: u64,
    /// How many wakes ago the event was that led to the poll that is under way.
    hops: u8,
    /// The task that is being polled has had its burst: see [`go_last`].
    goes_last: bool,
}

struct Queued {
    runnable: Runnable,
    /// How many wakes ago the event was that made it ready.
    hops: u8,
}

/// Enough for a request that goes to another task and back, and for a look whether the next is there already.
const MAX_HOPS: u8 = 3;

/// The tasks that were woken from outside: by another thread, or while the executor did not run.
struct Arrivals {
    queue: Mutex<Queue>,
    /// Told of each arrival while there is no thread to wake.
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    runnables: VecDeque<Runnable>,
    /// Wakes the executor's thread, while it runs.
    thread: Option<Waker>,
}

thread_local! {
    /// The executor that runs on this thread, and what wakes the thread.
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

    /// Adds a task, which is ready. Calls `woken` whenever it becomes ready, on the thread that wakes it.
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
        // A panic goes to whoever awaits the task, and not out of the executor.
        let builder = Builder::new().propagate_panic(true);
        let (runnable, task) = builder.spawn_local(alive, WithInfo(schedule));
        self.tasks.alive.borrow_mut().insert(runnable.waker());
        runnable.schedule();
        task
    }

    /// Runs on this thread from now on, until the result is dropped. `thread` wakes the thread from its sleep.
    pub(crate) fn enter(&self, thread: Waker) -> Entered {
        let arrivals = self.tasks.arrivals.clone();
        arrivals.lock().thread = Some(thread.clone());
        CURRENT.set(Some((self.tasks.clone(), thread)));
        Entered { arrivals }
    }

    /// Begins a turn, after the sockets have been looked at. Returns how many tasks are ready.
    ///
    /// One of those that go last has its share of each turn, whatever else is ready.
    pub(crate) fn begin_turn(&self) -> usize {
        self.take_arrivals();
        self.tasks.asleep.set(false);
        let mut queues = self.tasks.queues.borrow_mut();
        let last = queues.last.pop_front();
        queues.ready.extend(last);
        queues.len()
    }

    /// Whether a task has had its burst and waits for the others.
    pub(crate) fn somebody_goes_last(&self) -> bool {
        !self.tasks.queues.borrow().last.is_empty()
    }

    /// Ends a turn: what is woken from now on is woken by an event. Returns how many tasks are ready.
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

    /// Ready when a task is. Otherwise the next that is woken wakes the thread.
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

    /// Takes in the tasks that were woken from outside.
    fn take_arrivals(&self) {
        let mut arrivals = self.tasks.arrivals.lock();
        let mut queues = self.tasks.queues.borrow_mut();
        let runnables = arrivals.runnables.drain(..);
        queues
            .ready
            .extend(runnables.map(|runnable| Queued { runnable, hops: 0 }));
    }

    /// Drops the futures of all tasks, and of those that are spawned meanwhile. A wake after that does nothing.
    pub(crate) fn end(&self) {
        let tasks = &*self.tasks;
        while !tasks.alive.borrow().is_empty() {
            // Who waits is woken, and so stands in a queue like the others. To drop it there is to drop its future.
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
                // All that are left are being woken by other threads: they are marked, so that waking them again does
                // nothing, and not in the queue yet. A moment later they are.
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

/// The time in which an executor runs on its thread.
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

/// Wakes `waker` as one that goes last: the task that is being polled now has had its burst. See [`Queues`].
pub(crate) fn go_last(waker: &Waker) {
    CURRENT.with_borrow(|current| {
        if let Some((tasks, _)) = current {
            tasks.queues.borrow_mut().goes_last = true;
        }
    });
    waker.wake_by_ref();
}

/// Ready after those that are ready have run once, and after those that the next look at the sockets makes ready.
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

/// The number of the poll that is under way, modulo 2³², if an executor runs on this thread.
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
    /// A task that is ready, wherever it stands.
    fn pop(&self) -> Option<Runnable> {
        let next = self.queues.borrow_mut().next();
        next.or_else(|| self.arrivals.lock().runnables.pop_front())
    }
}

impl Queues {
    /// Takes the next task, which is about to be polled.
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
    /// Puts a task that was woken into its queue.
    fn schedule(self: &Arc<Self>, runnable: Runnable, info: ScheduleInfo) {
        let mut runnable = Some(runnable);
        // While the thread ends there may be no slot any more, and no executor runs.
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

    /// Nothing that is done with the lock held can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pin_project! {
    /// A task's future, which says when it is dropped.
    struct Alive<F> {
        // None while it is dropped.
        #[pin]
        future: Option<F>,
        // Dropped after the future.
        place: Place,
    }

    impl<F> PinnedDrop for Alive<F> {
        fn drop(this: Pin<&mut Self>) {
            // A destructor that panics while a task is cancelled would end the process. The panic hook has told of it.
            let mut future = this.project().future;
            panic::catch_unwind(AssertUnwindSafe(|| future.set(None))).ok();
        }
    }
}

/// Where a task stands among those that are alive.
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
