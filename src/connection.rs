//! A connection: a stream with its id, peer address, byte counts, timeouts, and a share of the loop's time.
//!
//! What makes servers fair and robust lives here, below every handler: a connection that is always ready lets the
//! others run after a bounded burst, and one whose peer has gone silent or stopped reading ends with an error.

#[cfg(feature = "testing")]
pub(crate) mod pipe;
mod stream;
mod terms;

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_lite::{AsyncRead, AsyncWrite, ready};
use smol::Async;

use crate::address::{Address, CompactAddress};
use crate::executor;
use crate::report::Traffic;
use crate::time::{self, Sleep};

use terms::DrainingKey;

pub(crate) use stream::Stream;
pub use terms::Closing;
pub(crate) use terms::Terms;

/// How many bytes a connection reads in a row before the others have their turn. Streaming gets faster with more, the
/// tail of the others' latency longer.
const READ_BURST: u32 = 64 * 1024;

/// The same for writes. More than a reader's, so that a handler which answers what it reads yields when it reads.
const WRITE_BURST: u32 = 2 * READ_BURST;

/// What a read or write counts for at least: about the cost of its system call, in bytes copied.
const CALL_COST: u32 = 2 * 1024;

/// A connection to a peer: TCP, or a Unix socket.
///
/// It is an ordinary [`AsyncRead`] + [`AsyncWrite`], so everything that is made for those goes on top. A reference
/// reads and writes too, so one task may read while another writes through an `Rc<Connection>`; two readers, or two
/// writers, at once would take turns in waking each other.
///
/// - Reads return end of input (0) when the peer has closed its half; the write half stays open.
/// - Await it in a task of an event loop. Who blocks on it inside one (`smol::block_on`) may wait for ever.
/// - Dropping the connection closes it. A server first sends what is on its way and waits briefly for the peer's end.
/// - Errors are the socket's, and [`TimedOut`](io::ErrorKind::TimedOut) when the server's idle or stall timeout is over.
pub struct Connection {
    link: Rc<Link>,
}

/// The connection itself. The server holds it too, to close it in an orderly way after the handler.
pub(crate) struct Link {
    stream: Stream,
    id: u64,
    peer_addr: CompactAddress,
    /// When it was opened, and when bytes last went in or out, in nanoseconds on the clock of its terms.
    opened: u64,
    last_activity: Cell<u64>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    /// How the last read and the last write left things, and what the next one has to do first.
    reading: Direction,
    writing: Direction,
    state: Cell<State>,
    timers: Cell<Option<Box<ConnectionTimers>>>,
    /// Where it stands among those whose input ends when the server drains.
    draining_key: Cell<Option<DrainingKey>>,
    terms: Rc<Terms>,
}

/// One direction of a connection.
#[derive(Default)]
struct Direction {
    next: Cell<Next>,
    /// Bytes since the others had their turn. Stops counting at 4 GiB, long after its bounds.
    burst: Cell<u32>,
}

/// What a read or write does before its system call.
#[derive(Clone, Copy, Default, PartialEq)]
enum Next {
    #[default]
    Try,
    /// Let those run first that are ready.
    Yield,
    /// Let those run first, too, that become ready meanwhile: it has had its burst.
    GoLast,
    /// The same, and it stands in the queue. The poll in which it went there is where the burst is counted otherwise:
    /// in that poll it gets nothing by asking again.
    IsLast,
    /// Wait for the event that was asked for. Without this, smol would report that event once more at the next wait,
    /// and cost a call that finds nothing.
    Wait,
}

/// How far a connection has come to its end.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum State {
    Open,
    /// The peer has closed its half.
    InputEnded,
    /// A system call failed, or a timeout is over: nothing more can be sent.
    Broken,
    TimedOut,
}

/// The timers of a connection that has waited with a timeout. Few have, so they are not part of every connection.
#[derive(Default)]
struct ConnectionTimers {
    idle: Option<Sleep>,
    stall: Option<Sleep>,
    /// Since when a write has waited for the peer to read.
    stalled_since: Option<Instant>,
}

impl Connection {
    pub(crate) fn new(stream: Stream, peer_addr: Address, terms: Rc<Terms>) -> Connection {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let now = terms.nanos_now();
        terms.connected();
        let link = Link {
            stream,
            id: LAST_ID.fetch_add(1, Ordering::Relaxed) + 1,
            peer_addr: CompactAddress::from(peer_addr),
            opened: now,
            last_activity: Cell::new(now),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            reading: Direction::default(),
            writing: Direction::default(),
            state: Cell::new(State::Open),
            timers: Cell::new(None),
            draining_key: Cell::new(None),
            terms,
        };
        Connection {
            link: Rc::new(link),
        }
    }

    /// A number that no other connection of this process has.
    pub fn id(&self) -> u64 {
        self.link.id
    }

    /// Whom this connection goes to, as it was when the connection was made.
    pub fn peer_addr(&self) -> Address {
        self.link.peer_addr()
    }

    /// How many bytes were read so far.
    pub fn bytes_in(&self) -> u64 {
        self.link.bytes_in.get()
    }

    /// How many bytes were written so far, to the system: the peer may not have them yet.
    pub fn bytes_out(&self) -> u64 {
        self.link.bytes_out.get()
    }

    /// Resolves when the server begins to drain: from then on a handler should come to its end.
    ///
    /// Never resolves on a connection that no server made. May be awaited any number of times, and resolves at once
    /// if the server drains already.
    pub fn closing(&self) -> Closing {
        self.link.terms.clone().closing()
    }

    /// Lets reads return end of input when the server drains and nothing went in or out for a second.
    ///
    /// For handlers whose peers may be silent between their requests, such as [`echo`](crate::echo): they come to
    /// their usual end, and a transfer that is under way is not cut. Does nothing on a connection that no server made.
    pub fn end_when_draining(&self) {
        let Link {
            draining_key,
            terms,
            ..
        } = &*self.link;
        if draining_key.get().is_none() {
            draining_key.set(Some(terms.add_draining(&self.link)));
        }
    }

    pub(crate) fn link(&self) -> Rc<Link> {
        self.link.clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(key) = self.draining_key.get() {
            self.terms.remove_draining(key);
        }
        self.terms.disconnected();
    }
}

impl From<Rc<Link>> for Connection {
    fn from(link: Rc<Link>) -> Connection {
        Connection { link }
    }
}

impl TryFrom<async_net::TcpStream> for Connection {
    type Error = io::Error;

    /// Sets `TCP_NODELAY`, and takes urgent data in line, as a server does. There is no timeout.
    ///
    /// # Errors
    ///
    /// If the system does not let the options be set, or the stream has clones and no descriptor is left for one more.
    fn try_from(stream: async_net::TcpStream) -> io::Result<Connection> {
        let peer_addr = stream.peer_addr().map_or(Address::Unknown, Address::Tcp);
        stream.set_nodelay(true)?;
        rustix::net::sockopt::set_socket_oobinline(&stream, true)?;
        let stream = owned(stream.into(), TcpStream::try_clone)?;
        Ok(Connection::new(
            Stream::Tcp(stream),
            peer_addr,
            Rc::default(),
        ))
    }
}

impl TryFrom<async_net::unix::UnixStream> for Connection {
    type Error = io::Error;

    /// There is no timeout.
    ///
    /// # Errors
    ///
    /// If the stream has clones and no descriptor is left for one more.
    fn try_from(stream: async_net::unix::UnixStream) -> io::Result<Connection> {
        let peer_addr = stream.peer_addr().map_or(Address::Unknown, Address::from);
        let stream = owned(stream.into(), UnixStream::try_clone)?;
        Ok(Connection::new(
            Stream::Unix(stream),
            peer_addr,
            Rc::default(),
        ))
    }
}

/// The stream that async-net shares, for us alone.
fn owned<T: AsFd>(
    stream: Arc<Async<T>>,
    clone: impl FnOnce(&T) -> io::Result<T>,
) -> io::Result<Async<T>> {
    Arc::try_unwrap(stream).or_else(|shared| Async::new(clone(shared.get_ref())?))
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id())
            .field("peer_addr", &self.peer_addr())
            .field("bytes_in", &self.bytes_in())
            .field("bytes_out", &self.bytes_out())
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn state(&self) -> State {
        self.state.get()
    }

    /// Forgets how the connection came to its end.
    pub(crate) fn reopen(&self) {
        self.state.set(State::Open);
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn peer_addr(&self) -> Address {
        Address::from(&self.peer_addr)
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            duration: self.terms.since(self.opened),
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        ready!(self.reading.poll_turn(cx));
        loop {
            if self.reading.next.get() == Next::Wait {
                match self.stream.poll_readable(cx) {
                    Poll::Ready(Ok(())) => self.reading.next.set(Next::Try),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                    Poll::Pending => return self.poll_idle(cx).map(Err),
                }
            }
            match self.stream.read(buffer) {
                Ok(0) if !buffer.is_empty() => {
                    self.end_of_input();
                    return Poll::Ready(Ok(0));
                }
                Ok(n) => {
                    self.bytes_in.set(self.bytes_in.get() + n as u64);
                    self.last_activity.set(self.terms.nanos_now());
                    if self.reading.spend(n, READ_BURST) {
                        self.yield_reading(Next::GoLast);
                    } else if n < buffer.len() {
                        // A short read has emptied the socket. By the time the others have run, the peer's next
                        // message may be here, and need not be waited for.
                        self.yield_reading(Next::Yield);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The first time after a burst, the others have their turn before we wait: see above.
                    if self.reading.burst.get() > 0 {
                        self.yield_reading(Next::Yield);
                        ready!(self.reading.poll_turn(cx));
                    }
                    self.reading.next.set(Next::Wait);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
        }
    }

    /// Lets the others run before the next read, and so before the next write of a handler that answers what it reads.
    fn yield_reading(&self, next: Next) {
        self.reading.yield_next(next);
        self.writing.forget_burst();
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.writing.poll_turn(cx));
        let mut last_try = false;
        loop {
            if self.writing.next.get() == Next::Wait {
                match self.stream.poll_writable(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                    Poll::Pending => {
                        ready!(self.poll_stall(cx));
                        // Linux tells of room when a third of the buffer is free. A slow reader may have made less.
                        last_try = true;
                    }
                }
                self.writing.next.set(Next::Try);
            }
            match self.stream.write(bytes) {
                Ok(n) => {
                    self.bytes_out.set(self.bytes_out.get() + n as u64);
                    self.last_activity.set(self.terms.nanos_now());
                    self.end_stall();
                    if self.writing.spend(n, WRITE_BURST) {
                        self.writing.yield_next(Next::GoLast);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if last_try {
                        return Poll::Ready(Err(self.timed_out("the peer stopped reading")));
                    }
                    self.writing.next.set(Next::Wait);
                    self.writing.forget_burst();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self.stream.shutdown_write() {
            // The peer has reset the connection meanwhile: there is no half left to close.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    /// Whether bytes of the peer's are unread, or may be on their way. Takes one of them.
    pub(crate) fn may_have_input(&self) -> bool {
        // Who waits for a peer that is silent at this moment can close without harm.
        let was_waiting = self.reading.next.get() == Next::Wait;
        self.state.get() == State::Open
            && (!was_waiting || self.stream.read(&mut [0]).is_ok_and(|n| n > 0))
    }

    fn end_of_input(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::InputEnded);
        }
    }

    fn broken(&self, error: io::Error) -> io::Error {
        self.state.set(State::Broken);
        error
    }

    fn timed_out(&self, what: &str) -> io::Error {
        self.state.set(State::TimedOut);
        io::Error::new(io::ErrorKind::TimedOut, what)
    }

    /// Ready with an error when a read has waited and nothing went in or out for the idle timeout.
    ///
    /// The timer is not set anew at every read: when it fires, it looks at the last activity and waits for the rest.
    fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(timeout) = self.terms.idle_timeout else {
            return Poll::Pending;
        };
        self.with_timers(|timers| {
            loop {
                let last_activity = self.terms.instant(self.last_activity.get());
                let deadline = || time::later(last_activity, timeout);
                ready!(poll_timer(&mut timers.idle, cx, deadline));
                if self.terms.since(self.last_activity.get()) >= timeout {
                    return Poll::Ready(self.timed_out("the connection was idle for too long"));
                }
            }
        })
    }

    /// Ready when a write has waited for the stall timeout.
    fn poll_stall(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(timeout) = self.terms.stall_timeout else {
            return Poll::Pending;
        };
        self.with_timers(|timers| {
            let since = *timers.stalled_since.get_or_insert_with(time::recent);
            loop {
                ready!(poll_timer(&mut timers.stall, cx, || time::later(
                    since, timeout
                )));
                if time::recent().saturating_duration_since(since) >= timeout {
                    return Poll::Ready(());
                }
            }
        })
    }

    fn end_stall(&self) {
        let mut timers = self.timers.take();
        if let Some(timers) = &mut timers {
            timers.stalled_since = None;
        }
        self.timers.set(timers);
    }

    fn with_timers<T>(&self, body: impl FnOnce(&mut ConnectionTimers) -> T) -> T {
        let mut timers = self.timers.take().unwrap_or_default();
        let result = body(&mut timers);
        self.timers.set(Some(timers));
        result
    }
}

/// Waits on the timer in `slot`, which is set if it is not. Ready, with the slot empty, when the timer has fired.
fn poll_timer(
    slot: &mut Option<Sleep>,
    cx: &mut Context<'_>,
    deadline: impl FnOnce() -> Instant,
) -> Poll<()> {
    let sleep = slot.get_or_insert_with(|| time::sleep_until(deadline()));
    ready!(Pin::new(sleep).poll(cx));
    *slot = None;
    Poll::Ready(())
}

impl Direction {
    /// Lets the others run first, if that is due.
    fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.next.get() {
            Next::Try | Next::Wait => return Poll::Ready(()),
            Next::IsLast if executor::this_poll() == Some(self.burst.get()) => {
                return Poll::Pending;
            }
            Next::IsLast => {
                self.yield_next(Next::Try);
                return Poll::Ready(());
            }
            Next::Yield => {
                self.next.set(Next::Try);
                cx.waker().wake_by_ref();
            }
            Next::GoLast => {
                self.next.set(Next::IsLast);
                self.burst.set(executor::this_poll().unwrap_or_default());
                executor::go_last(cx.waker());
            }
        }
        Poll::Pending
    }

    /// Counts `n` bytes. Returns whether the burst is over.
    fn spend(&self, n: usize, burst: u32) -> bool {
        let cost = u32::try_from(n).unwrap_or(u32::MAX).max(CALL_COST);
        self.burst.set(self.burst.get().saturating_add(cost));
        self.burst.get() >= burst
    }

    fn yield_next(&self, next: Next) {
        self.next.set(next);
        self.burst.set(0);
    }

    /// The others have had their turn.
    fn forget_burst(&self) {
        if self.next.get() != Next::IsLast {
            self.burst.set(0);
        }
    }
}

/// Reads and writes, for a connection and for a reference to one.
macro_rules! read_and_write {
    ($connection:ty) => {
        impl AsyncRead for $connection {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buffer: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                self.link.poll_read(cx, buffer)
            }
        }

        impl AsyncWrite for $connection {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                self.link.poll_write(cx, bytes)
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            /// Closes the write half: the peer reads to the end of what was sent. Reading goes on.
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(self.link.shutdown_write())
            }
        }
    };
}
read_and_write!(Connection);
read_and_write!(&Connection);
