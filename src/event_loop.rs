//! The event loop: one thread that runs tasks, polls the sockets and fires timers, in turns.
//!
//! A turn fires the timers that are due, runs ready tasks for [`TURN`](turn::TURN), and then lets smol's reactor poll
//! the sockets. It waits there only if no task is ready. The main future is scheduled like a task. By contrast, smol's
//! own `LocalExecutor::run` polls the sockets after 200 task polls, which take milliseconds if each of them does I/O.
//! smol also has a helper thread, which polls the sockets while no loop does.

mod alarm;
mod main_future;
mod reactor;
mod spin;
mod turn;

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::ManuallyDrop;
use std::ops::ControlFlow;
use std::panic::Location;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_lite::{FutureExt, future};
use smol::Task;

use crate::executor::Executor;
use crate::io_error;
use crate::task_table::{Entry, Label, Line, SlowPoll, SlowPolls, TaskTable, Watched};
use crate::time::Timers;

use alarm::Alarm;
use main_future::Main;
use spin::Spin;
use turn::Turn;

pub(crate) use reactor::check_threads;

/// If this many polls take less than [`SHORT_POLLS`], the clock is read only once for all of them.
const POLLS_PER_LOOK: u32 = 8;
const SHORT_POLLS: Duration = Duration::from_micros(4);

/// With a test clock, a turn is this number of polls and not a time, so that the same seed gives the same turns.
const TEST_TURN_POLLS: u32 = 16;

/// Runs `main` on a new event loop and returns its result.
///
/// Tasks that are still running when `main` ends are cancelled and dropped before `run` returns. The same holds when
/// `main` panics.
///
/// # Destructors
///
/// While a loop is dropped, the destructors in its tasks may use it: [`now`](crate::now) reads its clock, and
/// [`sleep`](crate::sleep) makes a future. If a destructor spawns a task, this task does not run: its future is
/// dropped, too. (If such a destructor always spawns another such task, the loop's drop never ends.) If another loop
/// runs on the thread at that moment, the destructors use that loop; otherwise they may `run` a loop of their own.
///
/// # After fork
///
/// If a process that has run a loop forks, its child cannot run a loop, because the thread of smol's reactor stays in
/// the parent: `run` panics there, and [`EventLoop::new`] returns an error. A child that was forked inside a running
/// loop must not return to that loop: both would share one epoll instance. `std::process::Command` is not affected.
///
/// # Panics
///
/// If `main` panics; if a loop already runs on this thread; if there are not enough file descriptors or threads for a
/// loop, or this process was forked after a loop ([`EventLoop::new`] returns these two as an error).
#[track_caller]
pub fn run<T>(main: impl Future<Output = T>) -> T {
    match EventLoop::new() {
        Ok(event_loop) => event_loop.run(main),
        Err(error) => panic!("{error}"),
    }
}

/// Starts a task on the running event loop.
///
/// The future does not have to be `Send`. Dropping the [`Task`] cancels it. [`Task::detach`] lets it run without a
/// handle. Awaiting it returns its result, or continues its panic: only the code that awaits a task gets its panic. If
/// a destructor panics while a task is dropped, only the panic hook reports it.
///
/// A handle may outlive its loop. Awaiting it then returns the result if the task had finished, and panics otherwise.
///
/// # Panics
///
/// Outside a running event loop. A destructor may call it while its loop is dropped: see [`run`](run#destructors).
#[track_caller]
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    current("spawn").spawn(Label::new(Location::caller()), future)
}

/// Like [`spawn`], but gives the task a name, which the [task table](task_table) shows.
///
/// # Panics
///
/// Outside a running event loop.
#[track_caller]
pub fn spawn_named<T: 'static>(
    name: impl Into<Cow<'static, str>>,
    future: impl Future<Output = T> + 'static,
) -> Task<T> {
    let label = Label {
        name: Some(name.into()),
        ..Label::new(Location::caller())
    };
    current("spawn_named").spawn(label, future)
}

/// Lets the other ready tasks run before the current task continues, like asyncio's `sleep(0)`.
///
/// For long computations, and for tasks that send more than their receivers can take at once. It also works outside a
/// loop. Dropping it cancels nothing.
pub async fn yield_now() {
    future::yield_now().await;
}

/// Turns on the running loop's task table: it contains the main future and the tasks that are spawned after this call.
///
/// # Panics
///
/// Outside a running event loop.
pub fn task_table() -> TaskTable {
    current("task_table").table().clone()
}

/// Calls `report` after each poll that took `threshold` or longer: a poll of the main future, or of a task that is
/// spawned after this call. Such a poll blocks all other tasks.
///
/// Turns on the [`task_table`]. A later call replaces the earlier callback; `report` may itself make that call. If
/// `report` panics, it is not called again. [`SLOW_POLL`](crate::SLOW_POLL) is the threshold of asyncio's debug mode.
///
/// # Panics
///
/// Outside a running event loop.
pub fn on_slow_poll(threshold: Duration, report: impl FnMut(&SlowPoll) + 'static) {
    let event_loop = current("on_slow_poll");
    event_loop.table();
    event_loop.slow_polls.set(threshold, report);
}

/// The loop that runs on this thread, or is being dropped.
#[track_caller]
pub(crate) fn current(caller: &str) -> Rc<Inner> {
    CURRENT.with(|current| match &*current.borrow() {
        Some(event_loop) => event_loop.clone(),
        None => panic!("tinyloop::{caller} was called outside a running event loop"),
    })
}

/// A single-threaded event loop.
///
/// Usually [`run`] is enough. An `EventLoop` can run several times; unfinished tasks continue in the next run. Dropping
/// it cancels its tasks and drops their futures on this thread, even if other threads wake them at that moment. A later
/// wake does nothing. For destructors see [`run`](run#destructors). A loop in a `thread_local!` ends with its thread.
pub struct EventLoop {
    /// Shared with the thread's slot while the loop runs. Tasks use the loop only through this slot and hold no
    /// reference to it, so dropping the loop always drops its tasks.
    inner: Rc<Inner>,
}

/// The part of a loop that its tasks can use.
pub(crate) struct Inner {
    executor: Executor,
    timers: Rc<Timers>,
    /// Set as soon as the task table is turned on.
    table: OnceCell<TaskTable>,
    slow_polls: Rc<SlowPolls>,
    /// The main future's entry for the task table, while the loop runs.
    main: RefCell<Option<Arc<Entry>>>,
    /// The main future's line in the task table. Kept only for its drop.
    main_line: RefCell<Option<Line>>,
}

impl Inner {
    pub(crate) fn spawn<T: 'static>(
        &self,
        label: Label,
        future: impl Future<Output = T> + 'static,
    ) -> Task<T> {
        match self.table.get() {
            None => self.executor.spawn(future, || ()),
            Some(table) => {
                let watched = Watched::new(table, label, &self.slow_polls, future);
                let entry = watched.entry().clone();
                self.executor.spawn(watched, move || entry.woken())
            }
        }
    }

    /// The task table. The first call turns it on.
    pub(crate) fn table(&self) -> &TaskTable {
        self.table.get_or_init(|| {
            let table = TaskTable::new();
            self.show_main(&table);
            table
        })
    }

    /// Adds the main future to the table, if there is one.
    fn show_main(&self, table: &TaskTable) {
        let line = self.main.borrow().clone().map(|entry| table.show(entry));
        self.main_line.replace(line);
    }

    pub(crate) fn table_if_on(&self) -> Option<&TaskTable> {
        self.table.get()
    }
}

thread_local! {
    /// The loop that runs on this thread, or is being dropped. It has no destructor, so it exists to the very end of
    /// the thread, where the destructor of another thread-local may drop a loop. It is empty by then.
    static CURRENT: ManuallyDrop<RefCell<Option<Rc<Inner>>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
}

impl EventLoop {
    /// Creates a loop that does not run yet.
    ///
    /// # Errors
    ///
    /// If there are not enough file descriptors or threads for smol's reactor, which the process's first loop starts.
    /// If this process was forked from a process that has started it: see [`run`](run#after-fork).
    pub fn new() -> io::Result<EventLoop> {
        EventLoop::with_timers(Timers::new())
    }

    /// Creates a loop with a mock clock: time stands still while a task can run, and jumps to the next deadline when
    /// none can.
    ///
    /// All waits for time in this crate use this clock, so a test of an hour's timeout takes no time. The clock also
    /// stands still while work of [`unblock`](crate::unblock) runs. But it jumps even if a task waits for a socket or
    /// for another thread. It does not jump by more than a century: a deadline that is further away never comes.
    ///
    /// # Errors
    ///
    /// The same as for [`EventLoop::new`].
    #[cfg(feature = "testing")]
    pub fn with_test_clock() -> io::Result<EventLoop> {
        EventLoop::with_timers(Timers::with_test_clock())
    }

    fn with_timers(timers: Timers) -> io::Result<EventLoop> {
        reactor::start()
            .map_err(|error| io_error::explain("cannot start the event loop", error))?;
        let inner = Inner {
            executor: Executor::new(),
            timers: Rc::new(timers),
            table: OnceCell::new(),
            slow_polls: Rc::default(),
            main: RefCell::new(None),
            main_line: RefCell::new(None),
        };
        Ok(EventLoop {
            inner: Rc::new(inner),
        })
    }

    /// Runs `main` until it finishes; the loop's tasks run at the same time. Unfinished tasks stay for the next run.
    ///
    /// # Panics
    ///
    /// If `main` panics, if a loop runs on this thread already, or if this process was forked after a loop: see
    /// [`run`](run#after-fork).
    #[track_caller]
    pub fn run<T>(&self, main: impl Future<Output = T>) -> T {
        if let Err(error) = reactor::check_process() {
            panic!("{error}");
        }
        let entry = Entry::of_main(Location::caller());
        let _running = Running::enter(&self.inner, entry.clone());
        smol::block_on(self.turns(main, entry))
    }

    /// Starts a task on this loop. The task runs while the loop runs. Otherwise like [`spawn`].
    #[track_caller]
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.inner.spawn(Label::new(Location::caller()), future)
    }

    async fn turns<T>(&self, main: impl Future<Output = T>, entry: Arc<Entry>) -> T {
        let Inner {
            executor, timers, ..
        } = &*self.inner;
        let mut main = Main {
            future: pin!(main),
            turn: Rc::default(),
            entry,
            slow_polls: &self.inner.slow_polls,
        };
        let _stand_in = main.stand_in(executor);
        let thread = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let _entered = executor.enter(thread);
        let mut alarm = Alarm::new();
        let mut spin = Spin::default();
        let mut turn = Turn::default();
        loop {
            timers.set_recent(Instant::now());
            timers.fire();
            // A connection that has used up its burst must not hold up the other tasks.
            let is_flooded = executor.somebody_goes_last();
            let length = turn.begin(executor.begin_turn(), is_flooded);
            match self.run_ready(length, &mut main) {
                ControlFlow::Break(result) => return result,
                ControlFlow::Continue(Ran(true)) => spin.succeeded(),
                ControlFlow::Continue(Ran(false)) => {}
            }
            if turn.end(executor.end_turn()) || timers.jump() || spin.goes_on(Instant::now()) {
                // Return to `block_on`, which polls the sockets without waiting and comes back.
                yield_now().await;
            } else {
                alarm.set(timers.next_deadline());
                let asleep = Instant::now();
                poll_fn(|_| executor.poll_ready()).or(&mut alarm).await;
                spin.slept(asleep.elapsed());
            }
        }
    }

    /// Runs ready tasks, and the main future in its turn, for at most `turn`.
    fn run_ready<F: Future>(
        &self,
        turn: Duration,
        main: &mut Main<'_, F>,
    ) -> ControlFlow<F::Output, Ran> {
        let Inner {
            executor, timers, ..
        } = &*self.inner;
        let start = timers.recent();
        let (mut last_look, mut polls_to_look) = (start, 1);
        let mut polls = 0;
        while executor.run_next() {
            if let Poll::Ready(result) = main.poll_if_due() {
                return ControlFlow::Break(result);
            }
            polls += 1;
            if timers.is_for_tests() {
                if polls == TEST_TURN_POLLS {
                    break;
                }
                continue;
            }
            polls_to_look -= 1;
            if polls_to_look == 0 {
                let now = Instant::now();
                timers.set_recent(now);
                if now - start >= turn {
                    break;
                }
                // A clock reading takes a fifth of the time of the shortest polls, so several polls share one.
                polls_to_look = if now - last_look < SHORT_POLLS {
                    POLLS_PER_LOOK
                } else {
                    1
                };
                last_look = now;
            }
        }
        ControlFlow::Continue(Ran(polls > 0))
    }
}

/// Whether a turn ran anything.
struct Ran(bool);

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop").finish_non_exhaustive()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        let inner = &self.inner;
        inner.timers.set_recent(Instant::now());
        let _current = (!Timers::run_on_this_thread()).then(|| Current::enter(inner.clone()));
        inner.executor.end();
        inner.timers.end();
    }
}

/// Guard: while it exists, the loop is its thread's current loop.
struct Current {
    before: Option<Rc<Inner>>,
}

impl Current {
    fn enter(event_loop: Rc<Inner>) -> Current {
        let before = Current::replace(Some(event_loop));
        Current { before }
    }

    fn replace(event_loop: Option<Rc<Inner>>) -> Option<Rc<Inner>> {
        Timers::set_current(event_loop.as_ref().map(|inner| inner.timers.clone()));
        CURRENT.with(|current| current.replace(event_loop))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        Current::replace(self.before.take());
    }
}

/// Guard: exists while the loop runs. Its drop also runs after a panic.
struct Running<'r> {
    event_loop: &'r Inner,
    // Kept only for its drop.
    _current: Current,
}

impl Running<'_> {
    #[track_caller]
    fn enter(event_loop: &Rc<Inner>, main: Arc<Entry>) -> Running<'_> {
        assert!(
            !Timers::run_on_this_thread(),
            "an event loop runs on this thread already: a loop cannot run inside another"
        );
        event_loop.timers.set_running(true);
        event_loop.main.replace(Some(main));
        if let Some(table) = event_loop.table.get() {
            event_loop.show_main(table);
        }
        Running {
            _current: Current::enter(event_loop.clone()),
            event_loop,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.event_loop.timers.set_running(false);
        self.event_loop.main.take();
        self.event_loop.main_line.take();
    }
}
