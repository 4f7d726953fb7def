//! The event loop: one thread that runs tasks, looks at the sockets and fires timers, in turns.
//!
//! A turn polls the main future if somebody woke it, runs the tasks that are ready for [`TURN`], fires the timers that
//! are due, and then lets smol's reactor look at the sockets: without waiting if there is more to run, else until
//! something happens. smol's own `LocalExecutor::run` looks at the sockets after 200 polls instead, which is
//! milliseconds when each of them does I/O, and polls its main future at every wake of any task.
//!
//! smol keeps one helper thread of its own, which looks at the sockets while no loop does.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::net::UnixStream;
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
use crate::time::Timers;

/// How long tasks run before the loop looks at the sockets again. Longer costs latency beside busy connections,
/// shorter costs system calls: a look is five of them in smol's reactor.
const TURN: Duration = Duration::from_micros(100);

/// Runs `main` on a new event loop and returns its result.
///
/// Tasks that are still running when `main` ends are cancelled and dropped before `run` returns.
///
/// # Panics
///
/// If `main` panics; if a loop runs on this thread already; if the system has no descriptors or threads left for a
/// loop ([`EventLoop::new`] returns that as an error).
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
///
/// # Panics
///
/// Outside a running event loop.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    let executor = CURRENT.with_borrow(Clone::clone);
    let executor = executor.expect("tinyloop::spawn was called outside a running event loop");
    executor.spawn(future)
}

/// A single-threaded event loop.
///
/// [`run`] is the short way to one. An `EventLoop` of one's own can run again, with the tasks that are left from the
/// run before. Dropping it cancels its tasks and drops their futures; their destructors run outside the loop, where
/// [`spawn`] panics.
pub struct EventLoop {
    /// Shared with the thread's slot while the loop runs. Tasks reach it through the slot only, never by a reference
    /// of their own, so that dropping the loop always drops its tasks.
    executor: Rc<LocalExecutor<'static>>,
    timers: Rc<Timers>,
}

thread_local! {
    /// The executor of the loop that runs on this thread.
    static CURRENT: RefCell<Option<Rc<LocalExecutor<'static>>>> = const { RefCell::new(None) };
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
        Ok(EventLoop {
            executor: Rc::new(LocalExecutor::new()),
            timers: Rc::new(timers),
        })
    }

    /// Runs `main` to its end, and the loop's tasks meanwhile. Tasks that are left wait for the next run.
    ///
    /// # Panics
    ///
    /// If `main` panics, or if a loop runs on this thread already.
    pub fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let _running = Running::enter(self);
        smol::block_on(self.turns(main))
    }

    /// Starts a task on this loop, which runs when the loop does. As [`spawn`] otherwise.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.executor.spawn(future)
    }

    async fn turns<T>(&self, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        let main_waker = MainWaker::new(poll_fn(|cx| Poll::Ready(cx.waker().clone())).await);
        let waker = Waker::from(main_waker.clone());
        let mut alarm = Alarm::new();
        loop {
            if main_waker.take()
                && let Poll::Ready(result) = main.as_mut().poll(&mut Context::from_waker(&waker))
            {
                return result;
            }
            let more = self.run_ready();
            let fired = self.timers.fire();
            if more || fired || main_waker.is_woken() || self.timers.jump() {
                // Out to `block_on`, which looks at the sockets without waiting and comes back.
                yield_now().await;
            } else {
                alarm.set(self.timers.next_deadline());
                let main_woken = poll_fn(|_| {
                    if main_waker.is_woken() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                });
                // `tick` waits for a task to be ready and polls it.
                self.executor.tick().or(main_woken).or(&mut alarm).await;
            }
        }
    }

    /// Runs ready tasks, for [`TURN`] at most. Returns whether more may be ready.
    fn run_ready(&self) -> bool {
        let start = Instant::now();
        self.timers.set_recent(start);
        while self.executor.try_tick() {
            let now = Instant::now();
            self.timers.set_recent(now);
            if now - start >= TURN {
                return true;
            }
        }
        false
    }
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop").finish_non_exhaustive()
    }
}

/// The time between entering a loop and leaving it, by a panic too. Holds the thread's slots.
struct Running;

impl Running {
    fn enter(event_loop: &EventLoop) -> Running {
        let before = CURRENT.with_borrow(Option::is_some);
        assert!(
            !before,
            "an event loop runs on this thread already: a loop cannot run inside another"
        );
        CURRENT.set(Some(event_loop.executor.clone()));
        Timers::set_current(Some(event_loop.timers.clone()));
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        Timers::set_current(None);
        CURRENT.set(None);
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
