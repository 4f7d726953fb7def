//! A connection in memory, for tests: as a nonblocking socket behaves, with faults drawn from a seed.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::address::Address;
use crate::time::{self, Sleep};

use super::ends::{Ends, READING, WRITING};
use super::wire::Wire;

/// How an in-memory connection fails: on which of its reads and writes, and in which way.
#[derive(Debug, Clone)]
pub struct Faults {
    random: fastrand::Rng,
    /// In percent of the calls: short reads and writes, `Interrupted`, and `WouldBlock` though it would not.
    percent: u8,
    /// In percent of the events: how many are told a turn late.
    late_percent: u8,
    /// The number of the call that fails for good, if one does, and how.
    failure: Option<(u64, io::ErrorKind)>,
    calls: u64,
}

impl Faults {
    /// A connection that works.
    pub fn none() -> Faults {
        Faults {
            random: fastrand::Rng::with_seed(0),
            percent: 0,
            late_percent: 0,
            failure: None,
            calls: 0,
        }
    }

    /// Short reads and writes, `Interrupted`, untimely `WouldBlock`, and events that are told a turn late, drawn from
    /// `seed`. Nothing is lost.
    pub fn from_seed(seed: u64) -> Faults {
        let mut random = fastrand::Rng::with_seed(seed);
        let percent = random.u8(5..75);
        Faults {
            random,
            percent,
            late_percent: percent,
            ..Faults::none()
        }
    }

    /// A connection that works, with events that are told a turn late, drawn from `seed`: as by a reactor that has not
    /// looked at the socket since.
    pub fn late_events(seed: u64) -> Faults {
        Faults {
            percent: 0,
            ..Faults::from_seed(seed)
        }
    }

    /// After `calls` reads and writes, the next one fails with `kind`, and all that follow.
    #[must_use]
    pub fn fail_after(mut self, calls: u64, kind: io::ErrorKind) -> Faults {
        self.failure = Some((calls, kind));
        self
    }

    /// Draws whether an event is told late.
    fn draw_delay(&mut self) -> bool {
        self.random.u8(0..100) < self.late_percent
    }

    /// Draws what happens to a call for `length` bytes: how many it may have at most.
    fn draw(&mut self, length: usize) -> io::Result<usize> {
        self.calls += 1;
        if let Some((calls, kind)) = self.failure
            && self.calls > calls
        {
            return Err(kind.into());
        }
        if self.random.u8(0..100) >= self.percent || length == 0 {
            return Ok(length);
        }
        match self.random.u8(0..4) {
            0 => Err(io::ErrorKind::Interrupted.into()),
            1 => Err(io::ErrorKind::WouldBlock.into()),
            2 => Ok(1),
            _ => Ok(self.random.usize(1..=length)),
        }
    }
}

/// One end of a connection in memory, as a nonblocking socket behaves.
pub(crate) struct Pipe {
    shared: Rc<Shared>,
    /// Which of the two ends it is.
    me: usize,
    faults: RefCell<Faults>,
    /// Who waits to read and to write has not been told of an event yet.
    waits: [Cell<bool>; 2],
    /// Those of who waits to read and to write, for what happens by itself.
    timers: RefCell<[Option<Sleep>; 2]>,
    /// Counts as one of its server's descriptors.
    descriptor: Option<Rc<()>>,
    /// Where its peer says that it is. Boxed, as a pipe is one of the streams.
    peer_addr: Box<Address>,
}

struct Shared {
    ends: RefCell<Ends>,
    started: Instant,
}

impl Pipe {
    pub(crate) fn pair(wire: Wire, faults: Faults) -> (Pipe, Pipe) {
        let shared = Rc::new(Shared {
            started: time::now_or_system(),
            ends: RefCell::new(Ends::new(wire)),
        });
        let end = |me, faults| Pipe {
            shared: shared.clone(),
            me,
            faults: RefCell::new(faults),
            waits: Default::default(),
            timers: RefCell::default(),
            descriptor: None,
            peer_addr: Box::new(Address::Unknown),
        };
        (end(0, faults), end(1, Faults::none()))
    }

    /// Lets happen what is due, and what `body` does. Whoever has waited for that is woken.
    fn with<T>(&self, body: impl FnOnce(&mut Ends) -> T) -> T {
        self.with_clock(false, body)
    }

    /// The same, and `body` may need the time though nothing did so far.
    fn with_clock<T>(&self, is_needed: bool, body: impl FnOnce(&mut Ends) -> T) -> T {
        let mut ends = self.shared.ends.borrow_mut();
        if is_needed || ends.needs_clock() {
            let since_start = time::now_or_system().saturating_duration_since(self.shared.started);
            ends.settle(since_start.as_nanos() as u64);
        }
        let result = body(&mut ends);
        let woken = ends.take_woken();
        drop(ends);
        woken.into_iter().flatten().for_each(Waker::wake);
        result
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.faults.borrow_mut().draw(buffer.len())?;
        self.with(|ends| ends.read(self.me, &mut buffer[..most]))
    }

    #[cfg(feature = "proxy-protocol")]
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.faults.borrow_mut().draw(buffer.len())?;
        self.with(|ends| ends.peek(self.me, &mut buffer[..most]))
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let most = self.faults.borrow_mut().draw(bytes.len())?;
        self.with(|ends| ends.write(self.me, &bytes[..most]))
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(READING, cx, |ends| {
            ends.is_ready(self.me, READING).then_some(Ok(()))
        })
    }

    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(WRITING, cx, |ends| {
            ends.is_ready(self.me, WRITING).then_some(Ok(()))
        })
    }

    pub(crate) fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_ready(WRITING, cx, |ends| ends.taken(self.me))
    }

    /// Waits until `look` finds something.
    fn poll_ready(
        &self,
        direction: usize,
        cx: &mut Context<'_>,
        look: impl Fn(&mut Ends) -> Option<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        loop {
            let looked = self.with(|ends| match look(ends) {
                Some(found) => Ok(found),
                None => Err((ends.wait(self.me, direction, cx.waker()), ends.arm(self.me))),
            });
            // Dropped outside every borrow, since dropping a task's last waker may run code of anybody's.
            let _before = self.timers.borrow_mut()[direction].take();
            let waited = self.waits[direction].replace(looked.is_err());
            let (waker, at) = match looked {
                Ok(_) if waited && self.faults.borrow_mut().draw_delay() => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(found) => return Poll::Ready(found),
                Err(waits) => waits,
            };
            if let Some(waker) = waker {
                waker.wake();
            }
            let at = at.and_then(|nanos| self.instant(nanos));
            let Some(mut timer) = at.map(time::sleep_until) else {
                return Poll::Pending;
            };
            // It may be over by now, where time goes on by itself.
            if Pin::new(&mut timer).poll(cx).is_pending() {
                self.timers.borrow_mut()[direction] = Some(timer);
                return Poll::Pending;
            }
        }
    }

    fn instant(&self, nanos: u64) -> Option<Instant> {
        let since_start = Duration::from_nanos(nanos);
        self.shared.started.checked_add(since_start)
    }

    /// What the system call `poll` tells.
    pub(crate) fn events(&self) -> PollFlags {
        self.with(|ends| ends.events(self.me))
    }

    pub(crate) fn take_error(&self) -> Option<io::Error> {
        self.with(|ends| ends.take_error(self.me))
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.with(|ends| ends.is_ready(self.me, WRITING))
    }

    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        self.with(|ends| ends.shutdown_write(self.me))
    }

    pub(crate) fn prepare_end(&self, user_timeout: Duration) {
        self.with_clock(true, |ends| {
            if !ends.is_unix() {
                ends.prepare_end(self.me, user_timeout);
            }
        });
    }

    pub(crate) fn reset(&self) {
        self.with(|ends| ends.reset(self.me));
    }

    /// Its listener goes, and has not accepted it.
    pub(crate) fn abandon(&self) {
        self.with(|ends| ends.abandon(self.me));
    }

    /// Gives this end the options of its listener, which are for TCP.
    pub(crate) fn set_options(&self, buffers: Option<usize>, user_timeout: Option<Duration>) {
        self.with_clock(true, |ends| {
            if ends.is_unix() {
                return;
            }
            if let Some(bytes) = buffers {
                ends.set_buffers(self.me, bytes);
            }
            if let Some(timeout) = user_timeout {
                ends.set_user_timeout(self.me, timeout);
            }
        });
    }

    pub(crate) fn peer_addr(&self) -> &Address {
        &self.peer_addr
    }

    pub(crate) fn set_peer_addr(&mut self, addr: Address) {
        *self.peer_addr = addr;
    }

    pub(crate) fn set_descriptor(&mut self, descriptor: Rc<()>) {
        self.descriptor = Some(descriptor);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.with(|ends| ends.close(self.me));
    }
}
