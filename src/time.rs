//! Time: `sleep`, `interval` and `timeout`, on the loop's own timers and clock.
//!
//! Each smol `Timer` that is set writes to an eventfd. Here a timer is an entry in an ordered map, so no system call is
//! needed to set or cancel it. The event loop keeps a single smol timer for the earliest entry.

pub(crate) mod interval;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_lite::FutureExt;

/// Waits for `duration`.
///
/// The timer fires at the first turn of the loop after its deadline, never before the deadline. If the deadline is
/// over, the future is ready at once. If the deadline is more than a century away, the timer never fires. Dropping the
/// future cancels the timer.
///
/// The future may be awaited in a later run of the loop, or in another loop: the timer then continues there.
///
/// # Panics
///
/// Outside a running event loop. A destructor may call it while its loop is dropped: see [`run`](crate::run).
///
/// The future panics when it is awaited where no loop runs, because nothing would fire it: for example in
/// `smol::block_on` after the end of the loop. It also panics when it is awaited in another loop and one of the two has
/// a test clock.
pub fn sleep(duration: Duration) -> Sleep {
    let timers = Timers::current_for("sleep");
    let deadline = later(timers.now(), duration);
    Sleep::new(timers, deadline)
}

/// Waits until `deadline`, on the clock that [`now`] reads. Otherwise like [`sleep`].
///
/// # Panics
///
/// Outside a running event loop. The future panics in the same cases as that of [`sleep`].
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep::new(Timers::current_for("sleep_until"), deadline)
}

/// The time on the running loop's clock: `Instant::now()`, or the test clock's time.
///
/// # Panics
///
/// Outside a running event loop. A destructor may call it while its loop is dropped: see [`run`](crate::run).
pub fn now() -> Instant {
    Timers::current_for("now").now()
}

/// Runs `future` for at most `duration`. After that, `future` is dropped and the result is [`TimedOut`].
///
/// The time starts with this call. If the future and the timeout are ready at the same moment, the future's result
/// counts.
///
/// # Panics
///
/// Outside a running event loop. The returned future panics in the same cases as that of [`sleep`].
pub fn timeout<T>(
    duration: Duration,
    future: impl Future<Output = T>,
) -> impl Future<Output = Result<T, TimedOut>> {
    let deadline = sleep(duration);
    async move {
        let finished = async { Ok(future.await) };
        let expired = async {
            deadline.await;
            Err(TimedOut)
        };
        finished.or(expired).await
    }
}

/// The error of [`timeout`]: the future took too long. Converts into an [`io::Error`] of the kind `TimedOut`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl Error for TimedOut {}

impl From<TimedOut> for io::Error {
    fn from(timed_out: TimedOut) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, timed_out)
    }
}

/// The future of [`sleep`] and [`sleep_until`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Sleep {
    /// The timers of the loop in which this sleep was created or last awaited.
    timers: Rc<Timers>,
    deadline: Instant,
    /// Distinguishes timers with the same deadline. Assigned at the first poll that has to wait.
    id: u64,
    /// A copy of the waker in the map, so that another poll by the same task need not search the map.
    waker: Option<Waker>,
}

impl Sleep {
    fn new(timers: Rc<Timers>, deadline: Instant) -> Sleep {
        Sleep {
            timers,
            deadline,
            id: 0,
            waker: None,
        }
    }

    /// The instant at which this timer fires.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Sets another deadline, as if the timer were new.
    pub fn reset(&mut self, deadline: Instant) {
        self.cancel();
        self.deadline = deadline;
    }

    /// Moves the timer to the loop that runs now, if its own loop does not run.
    fn move_to_running_loop(&mut self) {
        let running = Timers::current().filter(|timers| timers.is_running());
        let Some(running) = running else {
            panic!("tinyloop: a sleep was awaited outside a running event loop");
        };
        assert!(
            !running.is_for_tests() && !self.timers.is_for_tests(),
            "tinyloop: a sleep of one event loop was awaited in another, and one of them has a test clock"
        );
        self.cancel();
        self.id = 0;
        self.timers = running;
    }

    /// Ends this sleep early, so that the waiting task checks its condition again.
    pub(crate) fn wake(self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn cancel(&mut self) {
        if self.waker.take().is_some() {
            let key = (self.deadline, self.id);
            // Dropped after the borrow, because dropping a task's last waker may run a destructor of any kind.
            let waker = self.timers.waiting.borrow_mut().remove(&key);
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Only one loop runs on a thread at a time, and a sleep and its timers stay on their thread.
        if !self.timers.is_running() {
            self.move_to_running_loop();
        }
        if self.timers.recent() >= self.deadline {
            self.cancel();
            return Poll::Ready(());
        }
        if !self
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            if self.id == 0 {
                self.id = self.timers.new_id();
            }
            let (key, waker) = ((self.deadline, self.id), cx.waker().clone());
            let before = self.timers.waiting.borrow_mut().insert(key, waker);
            drop(before);
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// A century: a deadline that is further away never comes. If a test clock jumped there, it would soon reach the last
/// possible instant.
pub(crate) const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// `instant + duration`, or the last possible instant.
pub(crate) fn later(instant: Instant, duration: Duration) -> Instant {
    if let Some(later) = instant.checked_add(duration) {
        return later;
    }
    let (mut last, mut step) = (instant, duration);
    while !step.is_zero() {
        match last.checked_add(step) {
            Some(later) => last = later,
            None => step /= 2,
        }
    }
    last
}

/// One loop's timers and its clock.
pub(crate) struct Timers {
    clock: Clock,
    is_running: Cell<bool>,
    /// The time when the loop last read the clock. It is exact enough for timestamps and costs no call.
    recent: Cell<Instant>,
    /// The timers for which a task waits, earliest first, with the tasks' wakers.
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    last_id: Cell<u64>,
    /// Number of threads that a test clock waits for.
    holds: Cell<usize>,
}

/// While it exists, a test clock does not jump.
pub(crate) struct Hold(Rc<Timers>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.set(self.0.holds.get() - 1);
    }
}

/// The source of a loop's time.
enum Clock {
    System,
    /// Stands still while a task can run, and then jumps to the next deadline.
    #[cfg(feature = "testing")]
    Test(Cell<Instant>),
}

thread_local! {
    /// The timers of the thread's current loop. The slot has no destructor, so it exists to the very end of the thread,
    /// where the destructor of another thread-local may drop a loop. It is empty by then.
    static CURRENT: ManuallyDrop<RefCell<Option<Rc<Timers>>>> =
        const { ManuallyDrop::new(RefCell::new(None)) };
}

impl Timers {
    pub(crate) fn new() -> Timers {
        Timers::with_clock(Clock::System, Instant::now())
    }

    #[cfg(feature = "testing")]
    pub(crate) fn with_test_clock() -> Timers {
        let start = Instant::now();
        Timers::with_clock(Clock::Test(Cell::new(start)), start)
    }

    fn with_clock(clock: Clock, start: Instant) -> Timers {
        Timers {
            clock,
            is_running: Cell::new(false),
            recent: Cell::new(start),
            waiting: RefCell::new(BTreeMap::new()),
            last_id: Cell::new(0),
            holds: Cell::new(0),
        }
    }

    /// Puts `timers` in the thread's slot.
    pub(crate) fn set_current(timers: Option<Rc<Timers>>) {
        CURRENT.with(|current| current.replace(timers));
    }

    fn current() -> Option<Rc<Timers>> {
        CURRENT.with(|current| current.borrow().clone())
    }

    pub(crate) fn current_for(caller: &str) -> Rc<Timers> {
        match Timers::current() {
            Some(timers) => timers,
            None => panic!("tinyloop::{caller} was called outside a running event loop"),
        }
    }

    /// Stops the running loop's clock from jumping, if it is a test clock.
    pub(crate) fn hold_test_clock() -> Option<Hold> {
        let timers = Timers::current().filter(|timers| timers.is_for_tests())?;
        timers.holds.set(timers.holds.get() + 1);
        Some(Hold(timers))
    }

    /// Whether the loop of these timers runs, so that they fire.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running.get()
    }

    /// Whether a loop runs on this thread.
    pub(crate) fn run_on_this_thread() -> bool {
        Timers::current().is_some_and(|timers| timers.is_running())
    }

    pub(crate) fn set_running(&self, is_running: bool) {
        self.is_running.set(is_running);
    }

    /// Wakes all waiting tasks, because nothing fires these timers any more.
    pub(crate) fn end(&self) {
        let waiting = mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_values().for_each(Waker::wake);
    }

    pub(crate) fn now(&self) -> Instant {
        match &self.clock {
            Clock::System => Instant::now(),
            #[cfg(feature = "testing")]
            Clock::Test(now) => now.get(),
        }
    }

    pub(crate) fn recent(&self) -> Instant {
        self.recent.get()
    }

    /// Stores the time for [`Timers::recent`]: the loop has just read the system's clock.
    pub(crate) fn set_recent(&self, system_now: Instant) {
        match &self.clock {
            Clock::System => self.recent.set(system_now),
            #[cfg(feature = "testing")]
            Clock::Test(now) => self.recent.set(now.get()),
        }
    }

    /// The earliest deadline, if it is not [`NEVER`] and the clock is not held.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if self.holds.get() > 0 {
            return None;
        }
        let waiting = self.waiting.borrow();
        let (&(deadline, _), _) = waiting.first_key_value()?;
        let left = deadline.saturating_duration_since(self.recent());
        (left <= NEVER).then_some(deadline)
    }

    /// Wakes every timer whose deadline is over.
    pub(crate) fn fire(&self) {
        let now = self.recent();
        while let Some(waker) = self.pop_due(now) {
            waker.wake();
        }
    }

    fn pop_due(&self, now: Instant) -> Option<Waker> {
        let mut waiting = self.waiting.borrow_mut();
        let entry = waiting.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// Whether this is a test clock. Then nothing may depend on real time, so that a seed gives the same run again.
    pub(crate) fn is_for_tests(&self) -> bool {
        !matches!(self.clock, Clock::System)
    }

    /// Lets a test clock jump to the next deadline. Returns whether it jumped. The system's clock never jumps.
    pub(crate) fn jump(&self) -> bool {
        match &self.clock {
            Clock::System => false,
            #[cfg(feature = "testing")]
            Clock::Test(now) => self.next_deadline().is_some_and(|deadline| {
                now.set(deadline.max(now.get()));
                self.recent.set(now.get());
                true
            }),
        }
    }

    /// Lets a test clock advance in the middle of a turn.
    #[cfg(feature = "testing")]
    pub(crate) fn advance(&self, duration: Duration) {
        if let Clock::Test(now) = &self.clock {
            now.set(later(now.get(), duration));
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    fn new_id(&self) -> u64 {
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        id
    }
}

/// The time on the running loop's clock, or on the system's clock outside a loop.
pub(crate) fn now_or_system() -> Instant {
    CURRENT.with(|current| {
        let current = current.borrow();
        current
            .as_ref()
            .map_or_else(Instant::now, |timers| timers.now())
    })
}
