//! The event loop: one thread that runs tasks, looks at the sockets and fires timers, in turns.
//!
//! A turn polls the main future if somebody woke it, runs the tasks that are ready for [`TURN`], fires the timers that
//! are due, and then lets smol's reactor look at the sockets: without waiting if there is more to run, else until
//! something happens. smol's own `LocalExecutor::run` looks at the sockets after 200 polls instead, which is
//! milliseconds when each of them does I/O, and polls its main future at every wake of any task.
//!
//! smol keeps one helper thread of its own, which looks at the sockets while no loop does.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::net::UnixStream;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::FutureExt;
use futures_lite::future::yield_now;
use smol::{LocalExecutor, Task, Timer};

use crate::io_error;
use crate::task_table::{Label, SlowPoll, SlowPolls, TaskTable, Watch, Watched};
use crate::time::Timers;
use crate::yielded;

/// How long tasks run before the loop looks at the sockets again. Longer costs latency beside busy connections,
/// shorter costs system calls: a look is five of them in smol's reactor.
const TURN: Duration = Duration::from_micros(100);

/// How many polls share a look at the clock, as long as that many of them take less than this.
const POLLS_PER_LOOK: u32 = 8;
const SHORT_POLLS: Duration = Duration::from_micros(4);

/// How many polls make a turn on a test clock, by which the same seed has to give the same turns.
const TEST_TURN_POLLS: u32 = 16;

/// Runs `main` on a new event loop and returns its result.
///
/// Tasks that are still running when `main` ends are cancelled and dropped before `run` returns.
///
/// # Panics
///
/// If `main` panics; if a loop runs on this thread already; if the system has no descriptors or threads left for a
/// loop ([`EventLoop::new`] returns that as an error).
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
/// But a value that panics when it is dropped with a cancelled task ends the process.
///
/// # Panics
///
/// Outside a running event loop.
#[track_caller]
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    current("spawn").spawn(Label::new(Location::caller()), future)
}

/// As [`spawn`], with a name for the [task table](task_table).
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

/// The running loop's task table, which is on from now on: it knows the main future, and the tasks that are spawned
/// after this call.
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
/// Turns the [`task_table`] on. A later call replaces an earlier one, and so may `report`. If `report` panics, it is not
/// called again.
///
/// asyncio's debug mode reports from 100 ms on: [`SLOW_POLL`](crate::SLOW_POLL).
///
/// # Panics
///
/// Outside a running event loop.
pub fn on_slow_poll(threshold: Duration, report: impl FnMut(&SlowPoll) + 'static) {
    let event_loop = current("on_slow_poll");
    event_loop.table();
    event_loop.slow_polls.set(threshold, report);
}

/// The loop that runs on this thread.
#[track_caller]
pub(crate) fn current(caller: &str) -> Rc<Inner> {
    CURRENT.with_borrow(|current| match current {
        Some(event_loop) => event_loop.clone(),
        None => panic!("tinyloop::{caller} was called outside a running event loop"),
    })
}

/// A single-threaded event loop.
///
/// [`run`] is the short way to one. An `EventLoop` of one's own can run again, with the tasks that are left from the
/// run before. Dropping it cancels its tasks and drops their futures; their destructors run outside the loop, where
/// [`spawn`] panics. A task that another thread wakes at this very moment may be missed by async-executor, and its
/// future then leaks: end such threads before the loop.
pub struct EventLoop {
    /// Shared with the thread's slot while the loop runs. Tasks reach it through the slot only, never by a reference
    /// of their own, so that dropping the loop always drops its tasks.
    inner: Rc<Inner>,
}

/// What a task can reach of its loop.
pub(crate) struct Inner {
    executor: LocalExecutor<'static>,
    timers: Rc<Timers>,
    /// On as soon as somebody asked for it.
    table: OnceCell<TaskTable>,
    slow_polls: Rc<SlowPolls>,
    /// While the loop runs: where its main future is from.
    main_place: Cell<Option<&'static Location<'static>>>,
    /// The main future is being polled.
    in_main: Cell<bool>,
    /// The main future's line in the table.
    main_watch: RefCell<Option<Watch>>,
}

impl Inner {
    pub(crate) fn spawn<T: 'static>(
        &self,
        label: Label,
        future: impl Future<Output = T> + 'static,
    ) -> Task<T> {
        match self.table.get() {
            None => self.executor.spawn(future),
            Some(table) => {
                let watched = Watched::new(table, label, &self.slow_polls, future);
                self.executor.spawn(watched)
            }
        }
    }

    /// The task table, which is on from now on.
    pub(crate) fn table(&self) -> &TaskTable {
        self.table.get_or_init(|| {
            let table = TaskTable::new();
            self.watch_main(&table);
            table
        })
    }

    /// Enters the main future in the table, as what it is at this moment.
    fn watch_main(&self, table: &TaskTable) {
        let place = self.main_place.get();
        let watch =
            place.map(|place| table.enter_main(place, self.in_main.get(), &self.slow_polls));
        self.main_watch.replace(watch);
    }

    /// Polls the main future, and notes what there is to note when the table is on.
    fn poll_main<F: Future>(&self, main: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let watch = self.main_watch.take();
        if let Some(mut watch) = watch {
            let polled = watch.poll(main, cx);
            self.main_watch.replace(Some(watch));
            return polled;
        }
        self.in_main.set(true);
        let polled = main.poll(cx);
        self.in_main.set(false);
        // The main future has turned the table on in this very poll.
        if let Some(watch) = &*self.main_watch.borrow() {
            watch.end_poll();
        }
        polled
    }

    pub(crate) fn table_if_on(&self) -> Option<&TaskTable> {
        self.table.get()
    }
}

thread_local! {
    /// The loop that runs on this thread.
    static CURRENT: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) };
}

impl EventLoop {
    /// Makes a loop that does not run yet.
    ///
    /// # Errors
    ///
    /// If the system has no descriptors or threads left for smol's reactor, which the process's first loop starts.
    pub fn new() -> io::Result<EventLoop> {
        EventLoop::with_timers(Timers::new())
    }

    /// Makes a loop whose time stands still while a task can run, and jumps to the next deadline when none can.
    ///
    /// Everything in this crate that waits for time follows it, so a test of an hour's timeout takes no time. The
    /// clock does not know of what happens outside the loop: it also jumps while a socket or a thread is waited for.
    ///
    /// # Errors
    ///
    /// As [`EventLoop::new`].
    #[cfg(feature = "testing")]
    pub fn with_test_clock() -> io::Result<EventLoop> {
        EventLoop::with_timers(Timers::with_test_clock())
    }

    fn with_timers(timers: Timers) -> io::Result<EventLoop> {
        start_reactor()
            .map_err(|error| io_error::explain("cannot start the event loop", &error))?;
        let inner = Inner {
            executor: LocalExecutor::new(),
            timers: Rc::new(timers),
            table: OnceCell::new(),
            slow_polls: Rc::default(),
            main_place: Cell::new(None),
            in_main: Cell::new(false),
            main_watch: RefCell::new(None),
        };
        Ok(EventLoop {
            inner: Rc::new(inner),
        })
    }

    /// Runs `main` to its end, and the loop's tasks meanwhile. Tasks that are left wait for the next run.
    ///
    /// # Panics
    ///
    /// If `main` panics, or if a loop runs on this thread already.
    #[track_caller]
    pub fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let _running = Running::enter(&self.inner, Location::caller());
        smol::block_on(self.turns(main))
    }

    /// Starts a task on this loop, which runs when the loop does. As [`spawn`] otherwise.
    #[track_caller]
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.inner.spawn(Label::new(Location::caller()), future)
    }

    async fn turns<T>(&self, main: impl Future<Output = T>) -> T {
        let Inner {
            executor, timers, ..
        } = &*self.inner;
        let mut main = pin!(main);
        let main_waker = MainWaker::new(poll_fn(|cx| Poll::Ready(cx.waker().clone())).await);
        let waker = Waker::from(main_waker.clone());
        let mut cx = Context::from_waker(&waker);
        let mut alarm = Alarm::new();
        let mut spin = Spin::default();
        loop {
            if main_waker.take()
                && let Poll::Ready(result) = self.inner.poll_main(main.as_mut(), &mut cx)
            {
                return result;
            }
            let ran = self.run_ready();
            let fired = timers.fire();
            if ran != Ran::Nothing {
                spin.succeeded();
            }
            if ran == Ran::Some || fired || main_waker.is_woken() || timers.jump() {
                // Out to `block_on`, which looks at the sockets without waiting and comes back.
                yield_now().await;
            } else if spin.goes_on(Instant::now()) {
                yield_now().await;
            } else {
                alarm.set(timers.next_deadline());
                let main_woken = poll_fn(|_| match main_waker.is_woken() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                });
                let asleep = Instant::now();
                // `tick` waits for a task to be ready and polls it, for which it must not be the time of falling asleep.
                let mut tick = pin!(executor.tick());
                let tick = poll_fn(|cx| {
                    timers.set_recent(Instant::now());
                    tick.as_mut().poll(cx)
                });
                tick.or(main_woken).or(&mut alarm).await;
                spin.slept(asleep.elapsed());
            }
        }
    }

    /// Runs ready tasks, for [`TURN`] at most.
    fn run_ready(&self) -> Ran {
        let Inner {
            executor, timers, ..
        } = &*self.inner;
        let start = Instant::now();
        timers.set_recent(start);
        let (mut last_look, mut polls_to_look) = (start, 1);
        let mut ran = Ran::Nothing;
        let mut test_polls = 0;
        // One that goes last has a share of each turn, also when others are always ready.
        yielded::wake_next();
        loop {
            if !executor.try_tick() {
                if yielded::wake_next() {
                    continue;
                }
                return ran;
            }
            ran = Ran::All;
            if timers.is_for_tests() {
                test_polls += 1;
                if test_polls == TEST_TURN_POLLS {
                    return Ran::Some;
                }
                continue;
            }
            polls_to_look -= 1;
            if polls_to_look == 0 {
                let now = Instant::now();
                timers.set_recent(now);
                if now - start >= TURN {
                    return Ran::Some;
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
    }
}

/// How many of the ready tasks ran in a turn.
#[derive(PartialEq)]
enum Ran {
    Nothing,
    All,
    /// More may be ready.
    Some,
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop").finish_non_exhaustive()
    }
}

/// The time between entering a loop and leaving it, by a panic too. Holds the thread's slots.
struct Running;

impl Running {
    #[track_caller]
    fn enter(event_loop: &Rc<Inner>, main_place: &'static Location<'static>) -> Running {
        let before = CURRENT.with_borrow(Option::is_some);
        assert!(
            !before,
            "an event loop runs on this thread already: a loop cannot run inside another"
        );
        CURRENT.set(Some(event_loop.clone()));
        Timers::set_current(Some(event_loop.timers.clone()));
        yielded::begin();
        event_loop.main_place.set(Some(main_place));
        event_loop.in_main.set(false);
        if let Some(table) = event_loop.table.get() {
            event_loop.watch_main(table);
        }
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        yielded::end();
        Timers::set_current(None);
        if let Some(event_loop) = CURRENT.take() {
            event_loop.main_place.take();
            event_loop.main_watch.take();
        }
    }
}

/// Wakes the loop for its main future, and remembers that it did, so that the main future is polled only then.
struct MainWaker {
    woken: AtomicBool,
    /// The waker of `block_on`, under which the whole loop is one future.
    event_loop: Waker,
}

impl MainWaker {
    /// Starts as woken, for the first poll.
    fn new(event_loop: Waker) -> Arc<MainWaker> {
        Arc::new(MainWaker {
            woken: AtomicBool::new(true),
            event_loop,
        })
    }

    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }

    fn take(&self) -> bool {
        self.is_woken() && self.woken.swap(false, Ordering::AcqRel)
    }
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.event_loop.wake_by_ref();
        }
    }
}

/// The one smol timer that wakes the sleeping loop for its own timers.
///
/// It is set when the loop goes to sleep, and only to an earlier instant than before: when the earliest timer was
/// cancelled, the loop wakes once for nothing, which is cheaper than setting it anew each time.
struct Alarm {
    timer: Timer,
    deadline: Option<Instant>,
}

impl Alarm {
    fn new() -> Alarm {
        Alarm {
            timer: Timer::never(),
            deadline: None,
        }
    }

    fn set(&mut self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        if self.deadline.is_none_or(|set| deadline < set) {
            self.timer.set_at(deadline);
            self.deadline = Some(deadline);
        }
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.poll(cx).is_ready() {
            self.deadline = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// Whether to look at the sockets for a while before going to sleep.
///
/// To sleep and be woken costs more processor time than some looks at the sockets, and more latency. So when the last
/// sleep turned out short, the loop looks on for a while before it sleeps again. If that was in vain, it backs off: it
/// lets pass one chance to spin, then two, then four. An idle loop does not spin. With one connection and messages of
/// 64 B, this makes 2.3 to 2.5 times as many round trips a second, for half the processor time of each.
#[derive(Default)]
struct Spin {
    since: Option<Instant>,
    /// The last sleep was so short that a spin would have seen its end.
    promising: bool,
    /// How many chances to let pass after the next spin in vain, and how many still from the last.
    penalty: u32,
    skip: u32,
}

/// How long to spin: some two times what a sleep and a wake-up cost, so that peers that sleep themselves between their
/// messages are waited for.
const SPIN: Duration = Duration::from_micros(50);

/// A sleep of less than this is short: a spin, and a wake-up.
const SHORT_SLEEP: Duration = Duration::from_micros(100);

/// The most chances to let pass.
const MAX_PENALTY: u32 = 256;

impl Spin {
    /// Nothing is ready. Returns whether to look once more, rather than to sleep.
    fn goes_on(&mut self, now: Instant) -> bool {
        match self.since {
            Some(since) if now - since < SPIN => true,
            Some(_) => {
                self.since = None;
                self.penalty = (2 * self.penalty).clamp(1, MAX_PENALTY);
                self.skip = self.penalty;
                false
            }
            None if !self.promising => false,
            None if self.skip > 0 => {
                self.skip -= 1;
                false
            }
            None => {
                self.since = Some(now);
                true
            }
        }
    }

    /// Something is ready.
    fn succeeded(&mut self) {
        if self.since.take().is_some() {
            self.penalty = 0;
        }
    }

    fn slept(&mut self, duration: Duration) {
        self.promising = duration < SHORT_SLEEP;
    }
}

/// Starts smol's reactor and its thread, once in a process.
///
/// They start by themselves on first use, but panic when the system refuses. So we first see whether as many
/// descriptors (its epoll, eventfd and timerfd, and one to spare) and a thread can be had.
fn start_reactor() -> io::Result<()> {
    static STARTED: OnceLock<()> = OnceLock::new();
    if STARTED.get().is_none() {
        let descriptors = (UnixStream::pair()?, UnixStream::pair()?);
        thread::Builder::new().spawn(|| ())?.join().ok();
        drop(descriptors);
        smol::block_on(yield_now());
        STARTED.get_or_init(|| ());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `chances` a loop spins that never sees anything and whose sleeps are short all the same.
    fn spins_in_vain(spin: &mut Spin, chances: u32) -> u32 {
        let mut now = Instant::now();
        let mut spins = 0;
        for _ in 0..chances {
            spin.slept(Duration::ZERO);
            if spin.goes_on(now) {
                spins += 1;
                now += SPIN;
                assert!(!spin.goes_on(now), "a spin has an end");
            }
        }
        spins
    }

    #[test]
    fn a_loop_that_sleeps_long_does_not_spin() {
        let mut spin = Spin::default();
        assert!(!spin.goes_on(Instant::now()));
        spin.slept(SHORT_SLEEP);
        assert!(!spin.goes_on(Instant::now()));
    }

    #[test]
    fn spinning_in_vain_backs_off_and_success_ends_that() {
        let mut spin = Spin::default();
        let spins = spins_in_vain(&mut spin, 1000);
        assert_eq!(spins, 11, "the pauses double, up to {MAX_PENALTY}");
        while !spin.goes_on(Instant::now()) {}
        spin.succeeded();
        assert!(spin.goes_on(Instant::now()));
    }
}
