//! Time: `sleep`, `interval` and `timeout`, on the loop's own timers and clock.
//!
//! Every smol `Timer` that is set writes to an eventfd. Here a timer is an entry in an ordered map, so that setting
//! or cancelling one makes no system call; the event loop keeps a single smol timer for the earliest of them.

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
/// The timer fires at the first turn of the loop after its deadline, never before it. The future is ready at once if the
/// deadline is over, and never if the deadline is more than a century away. Dropping the future cancels the timer.
///
/// The future may be awaited in a later run of the loop, and in another loop: the timer goes on there.
///
/// # Panics
///
/// Outside a running event loop. A destructor may call it while its loop is dropped: see [`run`](crate::run).
///
/// The future panics when it is awaited where no loop runs, and so nothing would end it: in `smol::block_on` after the
/// end of the loop, for example. It also panics when it is awaited in another loop and one of the two has a test clock.
pub fn sleep(duration: Duration) -> Sleep {
    let timers = Timers::current_for("sleep");
    let deadline = later(timers.now(), duration);
    Sleep::new(timers, deadline)
}

/// Waits until `deadline`, on the clock that [`now`] reads. Otherwise the future is that of [`sleep`].
///
/// # Panics
///
/// Outside a running event loop. The future panics as that of [`sleep`] does.
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

/// Gives `future` at most `duration`; after that it is dropped and the result is [`TimedOut`].
///
/// The time starts with this call. A future that is ready at the same moment as its timeout wins.
///
/// # Panics
///
/// Outside a running event loop. The returned future panics as that of [`sleep`] does.
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

/// The error of [`timeout`]: the time was over first. Converts into an [`io::Error`] of the kind `TimedOut`.
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
    /// Those of the loop in which it was made or awaited last.
    timers: Rc<Timers>,
    deadline: Instant,
    /// Tells timers with the same deadline apart; given out at the first poll that has to wait.
    id: u64,
    /// The waker that stands in the map for this timer, so that another poll by the same task need not look there.
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

    /// Goes on in the loop that runs now, since that of its timers does not.
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

    /// Ends this sleep, and has the task that waits for it look anew.
    pub(crate) fn wake(self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    fn cancel(&mut self) {
        if self.waker.take().is_some() {
            let key = (self.deadline, self.id);
            // Dropped after the borrow, since dropping a task's last waker may run code of anybody's.
            let waker = self.timers.waiting.borrow_mut().remove(&key);
            drop(waker);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // One loop runs on a thread at a time, and neither a sleep nor its timers leave their thread.
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

/// A deadline that is further away than this never comes: a century. A test clock that jumped there would soon be where
/// instants end.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// `instant + duration`, or the last instant that there is.
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
    /// The clock as the loop last read it: good enough for timestamps, and free.
    recent: Cell<Instant>,
    /// The timers somebody waits for, earliest first, with whom to wake.
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    last_id: Cell<u64>,
    /// How many threads a test clock waits for.
    holds: Cell<usize>,
}

/// Keeps a test clock from jumping.
pub(crate) struct Hold(Rc<Timers>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.set(self.0.holds.get() - 1);
    }
}

/// Where a loop's time comes from.
enum Clock {
    System,
    /// Stands still, and jumps to the next deadline when no task can run.
    #[cfg(feature = "testing")]
    Test(Cell<Instant>),
}

thread_local! {
    /// The timers of the thread's current loop. Without a destructor, so that it is there to the very end of the thread,
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

    /// Keeps the running loop's clock from jumping, if it is a test clock.
    pub(crate) fn hold_test_clock() -> Option<Hold> {
        let timers = Timers::current().filter(|timers| timers.is_for_tests())?;
        timers.holds.set(timers.holds.get() + 1);
        Some(Hold(timers))
    }

    /// Whether their loop runs, and so fires them.
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

    /// Wakes all who wait, since nobody fires these timers any more.
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

    /// Tells the time to all who ask [`Timers::recent`] after this: the loop has just read the system's clock.
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

    /// Whether this is a test clock. Then nothing may depend on real time, or a seed would not replay.
    pub(crate) fn is_for_tests(&self) -> bool {
        !matches!(self.clock, Clock::System)
    }

    /// Lets a test clock jump to the next deadline. Returns whether it did: never for the system's clock.
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

    /// Lets a test clock go on in the middle of a turn.
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

/// The running loop's clock, or the system's outside a loop.
pub(crate) fn now_or_system() -> Instant {
    CURRENT.with(|current| {
        let current = current.borrow();
        current
            .as_ref()
            .map_or_else(Instant::now, |timers| timers.now())
    })
}
