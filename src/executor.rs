//! The executor: the tasks of one thread, and the queues in which those that are ready stand.
//!
//! A task that its own thread wakes goes into a plain queue, as in asyncio's `_ready`. One that another thread wakes
//! goes into a queue behind a lock, and wakes the thread. Beside the queue of the ready there is one of those that go
//! last: they have had their burst, and let what becomes ready a moment later run first.
//!
//! This file knows no sockets and no clock: how long to run, and when to sleep, is the event loop's to say.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
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
    ready: RefCell<VecDeque<Runnable>>,
    last: RefCell<VecDeque<Runnable>>,
    round: Cell<Round>,
    /// How many polls there were, which numbers them.
    polls: Cell<u32>,
    /// The task that is being polled has had its burst: see [`go_last`].
    goes_last: Cell<bool>,
    /// The thread sleeps, or is about to, and has to be woken when a task is.
    asleep: Cell<bool>,
    /// A waker for each task whose future is not dropped yet.
    alive: RefCell<Slab<Waker>>,
    arrivals: Arc<Arrivals>,
}

/// Whose turn it is: those that are ready, as many as they were when the round began, and then those that go last. So
/// these wait for each of the others once, and not for those that are ready again at once.
#[derive(Clone, Copy)]
enum Round {
    /// How many are left of each.
    Ready(usize),
    Last(usize),
}

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
            ready: RefCell::default(),
            last: RefCell::default(),
            round: Cell::new(Round::Ready(0)),
            polls: Cell::new(0),
            goes_last: Cell::new(false),
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
        let schedule = move |runnable, info: ScheduleInfo| {
            woken();
            arrivals.schedule(runnable, info);
        };
        let key = self.tasks.alive.borrow().vacant_key();
        let tasks = self.tasks.clone();
        let alive = |_: &()| Alive {
            future,
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

    /// Begins a turn, after the sockets have been looked at: what they have made ready runs before those that go last.
    ///
    /// But one of these has its share of each turn, also when others are always ready.
    pub(crate) fn begin_turn(&self) {
        self.take_arrivals();
        let Tasks {
            ready, last, round, ..
        } = &*self.tasks;
        let mut ready = ready.borrow_mut();
        ready.extend(last.borrow_mut().pop_front());
        round.set(Round::Ready(ready.len()));
    }

    /// Runs the next task. Returns whether there was one.
    pub(crate) fn run_next(&self) -> bool {
        let tasks = &*self.tasks;
        let Some(runnable) = tasks.next() else {
            return false;
        };
        tasks.polls.set(tasks.polls.get().wrapping_add(1));
        tasks.goes_last.set(false);
        runnable.run();
        true
    }

    /// How many tasks are ready, as far as this thread knows.
    pub(crate) fn ready(&self) -> usize {
        self.tasks.ready()
    }

    /// Takes in the tasks that were woken from outside.
    pub(crate) fn take_arrivals(&self) {
        let mut queue = self.tasks.arrivals.lock();
        self.tasks.ready.borrow_mut().append(&mut queue.runnables);
    }

    /// Ready when a task is. Otherwise the next that is woken wakes the thread.
    pub(crate) fn poll_ready(&self) -> Poll<()> {
        self.take_arrivals();
        let is_ready = self.ready() > 0;
        self.tasks.asleep.set(!is_ready);
        if is_ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
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
            while let Some(runnable) = tasks.next().or_else(|| tasks.arrivals.pop()) {
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

/// Wakes `waker` as one that goes last: the task that is being polled now has had its burst. It runs again after those
/// that are ready have run once, and after those that the next look at the sockets makes ready.
pub(crate) fn go_last(waker: &Waker) {
    CURRENT.with_borrow(|current| {
        if let Some((tasks, _)) = current {
            tasks.goes_last.set(true);
        }
    });
    waker.wake_by_ref();
}

/// The number of the poll that is under way, if an executor runs on this thread.
pub(crate) fn this_poll() -> Option<u32> {
    CURRENT.with_borrow(|current| current.as_ref().map(|(tasks, _)| tasks.polls.get()))
}

impl Tasks {
    fn next(&self) -> Option<Runnable> {
        while self.ready() > 0 {
            let (queue, round) = match self.round.get() {
                Round::Ready(0) => (None, Round::Last(self.last.borrow().len())),
                Round::Last(0) => (None, Round::Ready(self.ready.borrow().len())),
                Round::Ready(left) => (Some(&self.ready), Round::Ready(left - 1)),
                Round::Last(left) => (Some(&self.last), Round::Last(left - 1)),
            };
            self.round.set(round);
            if let Some(queue) = queue {
                return queue.borrow_mut().pop_front();
            }
        }
        None
    }

    fn ready(&self) -> usize {
        self.ready.borrow().len() + self.last.borrow().len()
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
                let goes_last = info.woken_while_running && tasks.goes_last.take();
                let queue = if goes_last { &tasks.last } else { &tasks.ready };
                queue.borrow_mut().push_back(runnable);
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

    fn pop(&self) -> Option<Runnable> {
        self.lock().runnables.pop_front()
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
        #[pin]
        future: F,
        // Dropped after the future.
        place: Place,
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
        self.project().future.poll(cx)
    }
}

#[cfg(test)]
mod tests;
