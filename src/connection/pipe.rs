//! A connection in memory, for tests: as a nonblocking socket behaves, with faults drawn from a seed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// How many bytes one direction of a pipe holds before a write has to wait.
const CAPACITY: usize = 64 * 1024;

/// How an in-memory connection fails: on which of its reads and writes, and in which way.
#[derive(Debug, Clone)]
pub struct Faults {
    random: fastrand::Rng,
    /// In percent of the calls: short reads and writes, `Interrupted`, and `WouldBlock` though it would not.
    percent: u8,
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
            failure: None,
            calls: 0,
        }
    }

    /// Short reads and writes, `Interrupted` and untimely `WouldBlock`, drawn from `seed`. Nothing is lost.
    pub fn from_seed(seed: u64) -> Faults {
        let mut random = fastrand::Rng::with_seed(seed);
        let percent = random.u8(5..75);
        Faults {
            random,
            percent,
            ..Faults::none()
        }
    }

    /// After `calls` reads and writes, the next one fails with `kind`, and all that follow.
    #[must_use]
    pub fn fail_after(mut self, calls: u64, kind: io::ErrorKind) -> Faults {
        self.failure = Some((calls, kind));
        self
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
    incoming: Rc<Flow>,
    outgoing: Rc<Flow>,
    /// One of the two has reset the connection.
    reset: Rc<Cell<bool>>,
    faults: RefCell<Faults>,
}

/// One direction.
#[derive(Default)]
struct Flow {
    bytes: RefCell<VecDeque<u8>>,
    /// The writer has closed it, or is gone.
    ended: Cell<bool>,
    /// The reader is gone.
    broken: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

impl Pipe {
    pub(crate) fn pair(faults: Faults) -> (Pipe, Pipe) {
        let (there, back) = (Rc::new(Flow::default()), Rc::new(Flow::default()));
        let reset = Rc::new(Cell::new(false));
        let end = Pipe {
            incoming: there.clone(),
            outgoing: back.clone(),
            reset: reset.clone(),
            faults: RefCell::new(faults),
        };
        let peer = Pipe {
            incoming: back,
            outgoing: there,
            reset,
            faults: RefCell::new(Faults::none()),
        };
        (end, peer)
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.faults.borrow_mut().draw(buffer.len())?;
        let mut bytes = self.incoming.bytes.borrow_mut();
        if bytes.is_empty() && self.reset.get() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if bytes.is_empty() && !self.incoming.ended.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(most);
        for (slot, byte) in buffer.iter_mut().zip(bytes.drain(..count)) {
            *slot = byte;
        }
        drop(bytes);
        wake(&self.incoming.writer);
        Ok(count)
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let most = self.faults.borrow_mut().draw(bytes.len())?;
        if self.reset.get() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.outgoing.broken.get() || self.outgoing.ended.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = CAPACITY - self.outgoing.bytes.borrow().len();
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = room.min(most);
        self.outgoing.bytes.borrow_mut().extend(&bytes[..count]);
        wake(&self.outgoing.reader);
        Ok(count)
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.incoming.bytes.borrow().is_empty() || self.incoming.ended.get() {
            return Poll::Ready(Ok(()));
        }
        wait(&self.incoming.reader, cx);
        Poll::Pending
    }

    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_writable() {
            return Poll::Ready(Ok(()));
        }
        wait(&self.outgoing.writer, cx);
        Poll::Pending
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.outgoing.bytes.borrow().len() < CAPACITY || self.outgoing.broken.get()
    }

    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        self.outgoing.ended.set(true);
        wake(&self.outgoing.reader);
        Ok(())
    }

    pub(crate) fn reset(&self) {
        self.reset.set(true);
        self.end();
        self.incoming.ended.set(true);
        wake(&self.incoming.reader);
    }

    fn end(&self) {
        self.outgoing.ended.set(true);
        wake(&self.outgoing.reader);
        self.incoming.broken.set(true);
        wake(&self.incoming.writer);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if !self.incoming.bytes.borrow().is_empty() {
            // As a socket that is closed with unread input.
            self.reset.set(true);
        }
        self.end();
    }
}

/// Waits in the place of whoever waits there, who is woken, as in smol's reactor.
fn wait(waiting: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let before = waiting.replace(Some(cx.waker().clone()));
    if let Some(before) = before
        && !before.will_wake(cx.waker())
    {
        before.wake();
    }
}

pub(crate) fn wake(waiting: &RefCell<Option<Waker>>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}
