//! For tests of handlers and servers, without ports and without waiting: in-memory connections that fail as real ones
//! do, drawn from a seed. With the feature `testing`.
//!
//! Together with [`EventLoop::with_test_clock`](crate::EventLoop::with_test_clock), a test of an hour's timeout takes
//! no time:
//!
//! ```
//! use std::time::Duration;
//! use futures_lite::{AsyncReadExt, AsyncWriteExt};
//! use tinyloop::testing::{Faults, pipe};
//!
//! tinyloop::EventLoop::with_test_clock().unwrap().run(async {
//!     let (connection, mut peer) = pipe(Faults::from_seed(42));
//!     let handler = tinyloop::spawn(async move { tinyloop::echo(connection, b"").await });
//!     tinyloop::sleep(Duration::from_secs(3600)).await;
//!     peer.write_all(b"late").await.unwrap();
//!     peer.close().await.unwrap();
//!     let mut reply = Vec::new();
//!     peer.read_to_end(&mut reply).await.unwrap();
//!     assert_eq!(reply, b"late");
//!     handler.await.unwrap();
//! });
//! ```

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::address::Address;
use crate::connection::{Connection, Stream};
use crate::server::Server;

/// How many bytes one direction of a pipe holds before a write has to wait.
const CAPACITY: usize = 64 * 1024;

/// A connection and its peer, in memory. The connection has `faults`, the peer has none.
pub fn pipe(faults: Faults) -> (Connection, Connection) {
    let (end, peer) = Pipe::pair(faults);
    let connection = |pipe| Connection::new(Stream::Pipe(pipe), Address::Unknown, Rc::default());
    (connection(end), connection(peer))
}

/// A server in memory, and what connects to it.
pub fn server() -> (Server, Connector) {
    let queue = Rc::new(Queue::default());
    (Server::from_queue(queue.clone()), Connector { queue })
}

/// Connects to the [`server`] that it came with.
#[derive(Clone)]
pub struct Connector {
    queue: Rc<Queue>,
}

impl Connector {
    /// Connects. The server's end has `faults`; the returned peer has none.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` if the server accepts no more.
    pub fn connect(&self, faults: Faults) -> io::Result<Connection> {
        if self.queue.closed.get() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (end, peer) = Pipe::pair(faults);
        self.queue.waiting.borrow_mut().push_back(end);
        wake(&self.queue.acceptor);
        Ok(Connection::new(
            Stream::Pipe(peer),
            Address::Unknown,
            Rc::default(),
        ))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// Calls `test` with each seed. A panic names the seed that it came with, which replays it.
///
/// # Panics
///
/// If `test` does.
pub fn for_each_seed(seeds: Range<u64>, mut test: impl FnMut(u64)) {
    for seed in seeds {
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| test(seed))) {
            panic!("with seed {seed}: {}", message(&*payload));
        }
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
}

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
    fn pair(faults: Faults) -> (Pipe, Pipe) {
        let (there, back) = (Rc::new(Flow::default()), Rc::new(Flow::default()));
        let end = Pipe {
            incoming: there.clone(),
            outgoing: back.clone(),
            faults: RefCell::new(faults),
        };
        let peer = Pipe {
            incoming: back,
            outgoing: there,
            faults: RefCell::new(Faults::none()),
        };
        (end, peer)
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.faults.borrow_mut().draw(buffer.len())?;
        let mut bytes = self.incoming.bytes.borrow_mut();
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
        self.incoming.reader.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.bytes.borrow().len() < CAPACITY || self.outgoing.broken.get() {
            return Poll::Ready(Ok(()));
        }
        self.outgoing.writer.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    pub(crate) fn shutdown_read(&self) -> io::Result<()> {
        self.incoming.ended.set(true);
        wake(&self.incoming.reader);
        Ok(())
    }

    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        self.outgoing.ended.set(true);
        wake(&self.outgoing.reader);
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.outgoing.ended.set(true);
        wake(&self.outgoing.reader);
        self.incoming.broken.set(true);
        wake(&self.incoming.writer);
    }
}

/// The connections that wait to be accepted.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: RefCell<VecDeque<Pipe>>,
    acceptor: RefCell<Option<Waker>>,
    closed: Cell<bool>,
}

impl Queue {
    pub(crate) fn accept(&self) -> io::Result<Pipe> {
        self.waiting
            .borrow_mut()
            .pop_front()
            .ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.borrow().is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.acceptor.replace(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Refuses connections from now on, and drops those that wait.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.waiting.take();
    }
}

fn wake(waiting: &RefCell<Option<Waker>>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}
