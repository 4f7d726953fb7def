//! The event loop: one thread that runs tasks, looks at the sockets and fires timers, in turns.
//!
//! A turn fires the timers that are due, runs the tasks that are ready for [`TURN`](turn::TURN), and then lets smol's
//! reactor look at the sockets. It waits there only if no task is ready. The main future has its turn as a task has. By
//! contrast, smol's own `LocalExecutor::run` looks at the sockets after 200 polls, which is milliseconds when each of
//! them does I/O. smol keeps one helper thread of its own, which looks at the sockets while no loop does.

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

/// How many polls share a look at the clock, as long as that many of them take less than this.
const POLLS_PER_LOOK: u32 = 8;
const SHORT_POLLS: Duration = Duration::from_micros(4);

/// How many polls make a turn on a test clock, by which the same seed has to give the same turns.
const TEST_TURN_POLLS: u32 = 16;

/// Runs `main` on a new event loop and returns its result.
///
/// Tasks that are still running when `main` ends are cancelled and dropped before `run` returns. The same holds when
/// `main` panics.
///
/// # Destructors
///
/// While a loop is dropped, the destructors in its tasks may use it: [`now`](crate::now) reads its clock, and
/// [`sleep`](crate::sleep) makes a future. A task that a destructor spawns then does not run: its future is dropped, too.
/// (A destructor that always spawns a task with another such destructor keeps the loop from ending.) If another loop
/// runs on the thread at that moment, the destructors use that loop; otherwise they may `run` one of their own.
///
/// # After fork
///
/// A process that was forked from one in which a loop has run can run none, since the thread of smol's reactor stays in
/// the parent: `run` panics there, and [`EventLoop::new`] returns an error. A process that was forked inside a running
/// loop must not return to that loop: both would share one epoll instance. `std::process::Command` is not affected.
///
/// # Panics
///
/// If `main` panics; if a loop runs on this thread already; if the system has no descriptors or threads left for a
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
/// The future need not be `Send`. Dropping the [`Task`] cancels it, [`Task::detach`] lets it run on its own, and
/// awaiting it gives its result, or its panic. A task's panic reaches whoever awaits it and nobody else.
/// A destructor that panics while a task is dropped goes no further than the panic hook.
///
/// A handle may outlive its loop: awaiting it gives the result of a task that had finished, and panics otherwise.
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

/// Lets the others run that are ready before the current task goes on. As asyncio's `sleep(0)`.
///
/// For long computations, and for tasks that hand on more than their receivers can take at once. It works outside a
/// loop, too. Dropping it cancels nothing.
pub async fn yield_now() {
    future::yield_now().await;
}

/// Turns on the running loop's task table: it knows the main future, and the tasks that are spawned after this call.
///
/// # Panics
///
/// Outside a running event loop.
pub fn task_table() -> TaskTable {
    current("task_table").table().clone()
}

/// Calls `report` after each poll that took `threshold` or longer, and so kept all other tasks waiting: of the running
/// loop's main future, and of the tasks that are spawned after this call.
///
/// Turns the [`task_table`] on. A later call replaces the earlier callback; `report` may itself make that call. If
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
/// [`run`] is the short way to one. An `EventLoop` of one's own can run again, with the tasks that are left from the
/// run before. Dropping it cancels its tasks and drops their futures, on this thread, whatever other threads do at that
/// moment; a wake after that does nothing. What the destructors may do is written at [`run`](run#destructors). In a
/// `thread_local!` it ends with its thread.
pub struct EventLoop {
    /// Shared with the thread's slot while the loop runs. Tasks reach it through the slot only, never by a reference
    /// of their own, so that dropping the loop always drops its tasks.
    inner: Rc<Inner>,
}

/// What a task can reach of its loop.
pub(crate) struct Inner {
    executor: Executor,
    timers: Rc<Timers>,
    /// On as soon as somebody asked for it.
    table: OnceCell<TaskTable>,
    slow_polls: Rc<SlowPolls>,
    /// While the loop runs: what is known of its main future.
    main: RefCell<Option<Arc<Entry>>>,
    /// The same, in the table. Held for its drop.
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

    /// The task table, which is on from now on.
    pub(crate) fn table(&self) -> &TaskTable {
        self.table.get_or_init(|| {
            let table = TaskTable::new();
            self.show_main(&table);
            table
        })
    }

    /// Enters the main future in the table, if there is one.
    fn show_main(&self, table: &TaskTable) {
        let line = self.main.borrow().clone().map(|entry| table.show(entry));
        self.main_line.replace(line);
    }

    pub(crate) fn table_if_on(&self) -> Option<&TaskTable> {
        self.table.get()
    }
}

thread_local! {
    /// The loop that runs on this thread, or is being dropped. Without a destructor, so that it is there to the very end
    /// of the thread, where the destructor of another thread-local may drop a loop. It is empty by then.
    static CURRENT: ManuallyDrop<RefCell<Option<Rc<Inner>>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
}

impl EventLoop {
    /// Makes a loop that does not run yet.
    ///
    /// # Errors
    ///
    /// If the system has no descriptors or threads left for smol's reactor, which the process's first loop starts. If this
    /// process was forked from one that has started it: see [`run`](run#after-fork).
    pub fn new() -> io::Result<EventLoop> {
        EventLoop::with_timers(Timers::new())
    }

    /// Makes a loop whose time stands still while a task can run, and jumps to the next deadline when none can.
    ///
    /// Everything in this crate that waits for time follows it, so a test of an hour's timeout takes no time. It stands
    /// still while work of [`unblock`](crate::unblock) runs, but jumps while a socket or another thread is waited for. It
    /// does not jump by more than a century: a deadline that is further away never comes.
    ///
    /// # Errors
    ///
    /// As [`EventLoop::new`].
    #[cfg(feature = "testing")]
    pub fn with_test_clock() -> io::Result<EventLoop> {
        EventLoop::with_timers(Timers::with_test_clock())
    }

    fn with_timers(timers: Timers) -> io::Result<EventLoop> {
        reactor::start()
            .map_err(|error| io_error::explain("cannot start the event loop", &error))?;
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

    /// Runs `main` to its end, and the loop's tasks meanwhile. Tasks that are left wait for the next run.
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

    /// Starts a task on this loop, which runs when the loop does. As [`spawn`] otherwise.
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
            let is_flooded = executor.somebody_goes_last();
            let length = turn.begin(executor.begin_turn(), is_flooded);
            match self.run_ready(length, &mut main) {
                ControlFlow::Break(result) => return result,
                ControlFlow::Continue(Ran(true)) => spin.succeeded(),
                ControlFlow::Continue(Ran(false)) => {}
            }
            if turn.end(executor.end_turn()) || timers.jump() || spin.goes_on(Instant::now()) {
                // Out to `block_on`, which looks at the sockets without waiting and comes back.
                yield_now().await;
            } else {
                alarm.set(timers.next_deadline());
                let asleep = Instant::now();
                poll_fn(|_| executor.poll_ready()).or(&mut alarm).await;
                spin.slept(asleep.elapsed());
            }
        }
    }

    /// Runs ready tasks, and the main future when its turn comes, for `turn` at most.
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
                // Looking at the clock takes a fifth of the time of the shortest polls, so several of them share it.
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

/// Whether a turn had anything to run.
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

/// The time in which a loop is the current one of its thread.
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

/// The time between entering a loop to run it and leaving it, by a panic too.
struct Running<'r> {
    event_loop: &'r Inner,
    // Held for its drop.
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
