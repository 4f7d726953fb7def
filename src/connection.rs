//! A connection: a stream with its id, peer address, byte counts, timeouts, and a share of the loop's time.
//!
//! What makes servers fair and robust lives here, below every handler: a connection that is always ready lets the
//! others run after a bounded burst, and one whose peer has gone silent or stopped reading ends with an error.

mod activity;
pub(crate) mod chunk;
pub(crate) mod connect;
mod direction;
#[cfg(feature = "testing")]
mod ends;
mod link;
#[cfg(feature = "testing")]
pub(crate) mod pipe;
mod rare;
mod state;
mod stream;
mod terms;
#[cfg(feature = "testing")]
pub(crate) mod wire;

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite};

use crate::address::Address;
use crate::platform;

pub(crate) use link::Link;
pub(crate) use state::State;
use stream::Stream;
pub(crate) use stream::set_user_timeout;
#[cfg(feature = "testing")]
pub(crate) use stream::user_timeout;
pub use terms::Closing;
pub(crate) use terms::Terms;

/// How long a connection is quiet before a drain ends its input, if the handler did not choose. Long enough for lost
/// packets to be sent again and for a peer to get its share of a busy machine, so that a transfer is not taken for idle.
const QUIET: Duration = Duration::from_secs(1);

/// How long a peer may take nothing before a reset on purpose comes all the same. The kernel takes three times that.
#[cfg(feature = "faults")]
const RESET_PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a peer: TCP, or a Unix socket.
///
/// It is an ordinary [`AsyncRead`] + [`AsyncWrite`], so everything that is made for those goes on top. A reference
/// reads and writes too, so one task may read while another writes through an `Rc<Connection>`. Several readers, or
/// several writers, each get a part of the bytes.
///
/// - Reads return end of input (0) when the peer has closed its half; the write half stays open.
/// - Await it in a task of an event loop. Who blocks on it inside one (`smol::block_on`) may wait for ever.
/// - Dropping a connection that a server's handler got lets the server finish it, when the handler has returned too: see
///   [`Server::serve`](crate::Server::serve). Any other connection is closed when it is dropped; then unread input, or
///   input that comes later, makes the kernel reset the connection and throw away what is still under way.
/// - Errors are the socket's, and [`TimedOut`](io::ErrorKind::TimedOut) when the server's idle or stall timeout is over.
///
/// # Lines with a limit
///
/// `read_until` and `lines` of futures-lite collect a line whatever its length, so that a peer can fill the memory. With
/// `take` in front, a line that is too long is known by its missing end:
///
/// ```
/// use std::io;
/// use futures_lite::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
///
/// /// The next line without its end, or none at the end of input.
/// async fn read_line(input: impl AsyncBufRead + Unpin, max: u64) -> io::Result<Option<Vec<u8>>> {
///     let mut line = Vec::new();
///     let length = input.take(max).read_until(b'\n', &mut line).await?;
///     if line.pop_if(|last| *last == b'\n').is_none() && length as u64 == max {
///         return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
///     }
///     Ok((length > 0).then_some(line))
/// }
///
/// # tinyloop::run(async {
/// // Of a connection: let mut input = futures_lite::io::BufReader::new(&connection);
/// let mut input = &b"one\ntwo\nmuch too long"[..];
/// assert_eq!(read_line(&mut input, 10).await.unwrap().unwrap(), b"one");
/// assert_eq!(read_line(&mut input, 10).await.unwrap().unwrap(), b"two");
/// assert!(read_line(&mut input, 10).await.is_err());
/// # });
/// ```
pub struct Connection {
    link: Rc<Link>,
}

impl Connection {
    fn new(stream: Stream, peer_addr: Address, terms: Rc<Terms>) -> Connection {
        Connection {
            link: Rc::new(Link::new(stream, peer_addr, terms)),
        }
    }

    /// A number that no other connection of this process has.
    pub fn id(&self) -> u64 {
        self.link.id()
    }

    /// Whom this connection goes to, as it was when the connection was made.
    pub fn peer_addr(&self) -> Address {
        self.link.peer_addr()
    }

    /// The address of this end. [`Address::Unknown`] in memory, and if the system does not tell.
    pub fn local_addr(&self) -> Address {
        self.link.stream().local_addr().unwrap_or(Address::Unknown)
    }

    /// The socket, for its options (keepalive, buffers: all that rustix and socket2 do). None in memory.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.stream().as_fd()
    }

    /// Number of bytes read so far.
    pub fn bytes_in(&self) -> u64 {
        self.link.traffic().bytes_in
    }

    /// Number of bytes handed to the kernel. The peer may not have received them yet.
    pub fn bytes_out(&self) -> u64 {
        self.link.traffic().bytes_out
    }

    /// Resolves when the server begins to drain. The handler should then finish its work and return.
    ///
    /// Never resolves on a connection that no server made. May be awaited any number of times, and resolves at once
    /// if the server drains already.
    pub fn closing(&self) -> Closing {
        self.link.closing()
    }

    /// Whether the server drains.
    pub fn is_closing(&self) -> bool {
        self.link.terms().is_closing()
    }

    /// Waits for `future`, but no longer than until the server begins to drain: then it is dropped, and the result is
    /// `None`. A future that is ready comes first.
    pub async fn until_closing<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let finished = async { Some(future.await) };
        let closing = async {
            self.closing().await;
            None
        };
        futures_lite::FutureExt::or(finished, closing).await
    }

    /// Lets reads return end of input when the server drains and nothing went in or out for a second.
    ///
    /// For handlers whose peers may be silent between their requests, such as [`echo`](crate::echo): such handlers then
    /// return normally. Transfers in progress are not cut off: a connection whose write waits is not quiet. Does nothing
    /// on a connection that no server made.
    pub fn end_when_draining(&self) {
        self.end_when_draining_after(QUIET);
    }

    /// Like [`end_when_draining`](Connection::end_when_draining), after another time of quiet: for a handler that may
    /// itself take long to answer, longer than it takes. It counts in milliseconds, rounded up, and up to 49 days.
    pub fn end_when_draining_after(&self, quiet: Duration) {
        self.link.end_when_quiet(quiet);
    }

    /// Sets an idle timeout of the connection's own, or none. For a server's connection it stands in place of the
    /// [server's](crate::Server::idle_timeout). The time counts from this call.
    ///
    /// On a connection that no server made it ends reads only: nobody watches over a task that waits for something else.
    /// A read that waits already, in another task and without a timeout, knows of it when it is polled next.
    pub fn set_idle_timeout(&self, timeout: Option<Duration>) {
        self.link.set_own_timeouts(|own| own.idle = Some(timeout));
    }

    /// Sets a stall timeout of the connection's own, or none. For a server's connection it stands in place of the
    /// [server's](crate::Server::stall_timeout), with the same effect. A write that waits already is as with
    /// [`set_idle_timeout`](Connection::set_idle_timeout).
    pub fn set_stall_timeout(&self, timeout: Option<Duration>) {
        self.link.set_own_timeouts(|own| own.stall = Some(timeout));
        // What fails is broken, and the next call tells.
        self.link.stream().set_user_timeout(timeout).ok();
    }

    /// Resets the connection. The peer's reads fail (`ConnectionReset`) after what has arrived; what is unsent is thrown
    /// away. Unix sockets know no reset: there, both halves are closed.
    pub fn reset(self) {
        self.link.reset();
    }

    /// A connection that a server has accepted, with the options that its listener has.
    pub(crate) fn accepted(
        stream: async_net::TcpStream,
        peer_addr: Address,
        terms: Rc<Terms>,
    ) -> Connection {
        Connection::new(Stream::Tcp(stream.into()), peer_addr, terms)
    }

    /// The same for a Unix socket.
    pub(crate) fn accepted_unix(
        stream: async_net::unix::UnixStream,
        peer_addr: Address,
        terms: Rc<Terms>,
    ) -> Connection {
        Connection::new(Stream::Unix(stream.into()), peer_addr, terms)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn in_memory(pipe: pipe::Pipe, terms: Rc<Terms>) -> Connection {
        let peer_addr = pipe.peer_addr().clone();
        Connection::new(Stream::Pipe(pipe), peer_addr, terms)
    }

    /// The handler's side of a connection, of which [`Link::is_released`] tells whether it is there.
    pub(crate) fn held(link: Rc<Link>) -> Connection {
        link.hold();
        Connection { link }
    }

    pub(crate) fn link(&self) -> Rc<Link> {
        self.link.clone()
    }

    /// Notes what befalls the connection on purpose, for its server's line and report.
    #[cfg(feature = "faults")]
    pub(crate) fn note_faults(&self, faults: String) {
        self.link
            .rare
            .with(|rare| rare.faults = Some(Rc::new(faults)));
    }

    /// Resets the connection when the peer's system has nearly all that was written, or takes nothing for long.
    #[cfg(feature = "faults")]
    pub(crate) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.link.prepare_end(RESET_PATIENCE);
        // An error is told by the reads and writes that follow.
        futures_lite::ready!(self.link.poll_taken(cx)).ok();
        self.link.reset();
        Poll::Ready(())
    }
}

impl Link {
    /// What befalls the connection on purpose.
    pub(crate) fn faults(&self) -> Option<Rc<String>> {
        self.rare.if_there(|rare| rare.faults.clone()).flatten()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.release();
    }
}

impl From<async_net::TcpStream> for Connection {
    /// Sets `TCP_NODELAY`, and takes urgent data in line (`SO_OOBINLINE`), as a server does. No timeout is set.
    ///
    /// If the system does not set an option, the connection works without it.
    fn from(stream: async_net::TcpStream) -> Connection {
        let peer_addr = stream.peer_addr().map_or(Address::Unknown, Address::Tcp);
        stream.set_nodelay(true).ok();
        rustix::net::sockopt::set_socket_oobinline(&stream, true).ok();
        platform::prevent_sigpipe(&stream).ok();
        Connection::new(Stream::Tcp(stream.into()), peer_addr, Rc::default())
    }
}

impl From<async_net::unix::UnixStream> for Connection {
    /// Takes urgent data in line (`SO_OOBINLINE`), as a server does. No timeout is set.
    fn from(stream: async_net::unix::UnixStream) -> Connection {
        let peer_addr = stream.peer_addr().map_or(Address::Unknown, Address::from);
        rustix::net::sockopt::set_socket_oobinline(&stream, true).ok();
        platform::prevent_sigpipe(&stream).ok();
        Connection::new(Stream::Unix(stream.into()), peer_addr, Rc::default())
    }
}

/// Gives the socket to code that is written for async-net. Timeouts and byte counts end with the connection, and so do
/// its place in the server and its part in the drain.
///
/// Fails, and closes the connection, if it is no TCP connection, or if no file descriptor is free: the server may still
/// hold the connection's own, so the socket gets another.
impl TryFrom<Connection> for async_net::TcpStream {
    type Error = io::Error;

    fn try_from(connection: Connection) -> io::Result<async_net::TcpStream> {
        let Stream::Tcp(stream) = connection.link.stream() else {
            return Err(io::Error::other("this is no TCP connection"));
        };
        let stream = async_net::TcpStream::try_from(stream.get_ref().try_clone()?)?;
        connection.link.give_away();
        Ok(stream)
    }
}

/// Like the conversion to a TCP stream, for a Unix socket.
impl TryFrom<Connection> for async_net::unix::UnixStream {
    type Error = io::Error;

    fn try_from(connection: Connection) -> io::Result<async_net::unix::UnixStream> {
        let Stream::Unix(stream) = connection.link.stream() else {
            return Err(io::Error::other("this is no connection of a Unix socket"));
        };
        let stream = async_net::unix::UnixStream::try_from(stream.get_ref().try_clone()?)?;
        connection.link.give_away();
        Ok(stream)
    }
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
