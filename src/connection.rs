//! A connection: a byte stream with an id, the peer's address, byte counts, timeouts and a fair share of the loop.
//!
//! This module keeps servers fair and robust. A connection that always has data lets other tasks run after a limited
//! burst. A connection whose peer is silent or has stopped reading ends with an error.

mod activity;
pub(crate) mod chunk;
pub(crate) mod connect;
pub(crate) mod copy;
mod direction;
#[cfg(feature = "testing")]
mod ends;
mod link;
#[cfg(feature = "testing")]
pub(crate) mod pipe;
#[cfg(feature = "proxy-protocol")]
pub(crate) mod proxy_header;
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
use rustix::net::sockopt;

use crate::address::Address;
#[cfg(feature = "proxy-protocol")]
use crate::address::CompactAddress;
use crate::platform;

pub(crate) use link::Link;
pub(crate) use state::State;
pub(crate) use stream::{Stream, user_timeout};
pub use terms::Closing;
pub(crate) use terms::{Terms, Timeouts};

/// How long a connection must be quiet before a drain ends its input, unless the handler chose a time. A second is
/// enough for lost packets to be sent again and for a peer on a busy machine to run, so a transfer does not count as
/// idle.
const QUIET: Duration = Duration::from_secs(1);

/// How long a peer may take no data before a reset on purpose comes anyway. The kernel waits three times as long.
#[cfg(feature = "faults")]
const RESET_PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a peer: TCP, or a Unix socket.
///
/// It implements [`AsyncRead`] and [`AsyncWrite`] of futures-io, so all adapters for these traits work. A reference
/// implements them too: one task can read while another writes, through an `Rc<Connection>`. If several tasks read, or
/// several tasks write, each of them gets a part of the bytes.
///
/// - Reads return end of input (0) when the peer has closed its half. The write half stays open.
/// - Use it with `.await` in a task. If you block on it inside an event loop (`smol::block_on`), the program may hang.
/// - If a server's handler drops its connection, the server finishes it after the handler has returned: see
///   [`Server::serve`](crate::Server::serve). Any other connection is closed when it is dropped. Unread input, or input
///   that arrives later, then makes the kernel reset the connection and discard data that is still on its way.
/// - Errors are those of the socket, and [`TimedOut`](io::ErrorKind::TimedOut) after the idle or stall timeout.
///
/// # Lines with a limit
///
/// `read_until` and `lines` of futures-lite have no limit on the length of a line, so a peer can fill the memory. With
/// `take` in front, a line is too long if its end is missing:
///
/// ```
/// use std::io;
/// use futures_lite::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
///
/// /// The next line without its end, or none at the end of input.
/// async fn read_line(input: impl AsyncBufRead + Unpin, max: u64) -> io::Result<Option<Vec<u8>>> {
///     let mut line = Vec::new();
///     let length = input.take(max).read_until(b'\n', &mut line).await? as u64;
///     if length == 0 {
///         return Ok(None);
///     }
///     // Half a line must not be taken for a whole one: the peer may be gone, or the server drains.
///     match line.pop_if(|last| *last == b'\n') {
///         Some(_) => Ok(Some(line)),
///         None if length == max => Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long")),
///         None => Err(io::ErrorKind::UnexpectedEof.into()),
///     }
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
///
/// A peer that sends a byte now and then is never idle. To limit the time for a line or a request too, wrap the read in
/// [`timeout`](crate::timeout). A handler that waits for something else for long, such as an upstream, may be cut by the
/// idle timeout meanwhile: [`set_idle_timeout`](Connection::set_idle_timeout) turns it off and on again.
pub struct Connection {
    link: Rc<Link>,
}

impl Connection {
    pub(crate) fn new(stream: Stream, peer_addr: Address, terms: Rc<Terms>) -> Connection {
        Connection {
            link: Rc::new(Link::new(stream, peer_addr, terms)),
        }
    }

    /// A number that is unique in this process.
    pub fn id(&self) -> u64 {
        self.link.id()
    }

    /// The peer's address, recorded when the connection was created.
    pub fn peer_addr(&self) -> Address {
        self.link.peer_addr()
    }

    /// The local address. [`Address::Unknown`] for a connection in memory, or if the system cannot tell it.
    pub fn local_addr(&self) -> Address {
        self.link.stream().local_addr().unwrap_or(Address::Unknown)
    }

    /// The socket, to set its options with rustix or socket2 (keepalive, buffers). `None` for a connection in memory.
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
    /// Never resolves if no server made the connection. Can be awaited any number of times, and resolves at once if the
    /// server is already draining.
    pub fn closing(&self) -> Closing {
        self.link.terms().clone().closing()
    }

    /// Whether the server is draining.
    pub fn is_closing(&self) -> bool {
        self.link.terms().is_closing()
    }

    /// Waits for `future` until the server begins to drain. Then the future is dropped, and the result is `None`. If
    /// the future is ready at that moment, its result is returned.
    pub async fn until_closing<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let finished = async { Some(future.await) };
        let closing = async {
            self.closing().await;
            None
        };
        futures_lite::FutureExt::or(finished, closing).await
    }

    /// Lets reads return end of input when the server drains and no bytes went in or out for a second.
    ///
    /// For handlers whose peers may be silent between their requests, such as [`echo`](crate::echo). Such handlers then
    /// return normally. Transfers in progress are not cut off: a connection is not quiet while a write waits. Does
    /// nothing if no server made the connection.
    pub fn end_when_draining(&self) {
        self.end_when_draining_after(QUIET);
    }

    /// Like [`end_when_draining`](Connection::end_when_draining), but after another time than a second. If the handler
    /// needs long to answer, choose a longer time than that. The time is rounded up to milliseconds, and is at most 49
    /// days.
    pub fn end_when_draining_after(&self, quiet: Duration) {
        self.link.quiet.set(Some(terms::Quiet::new(quiet)));
    }

    /// Sets an idle timeout for this connection, or turns it off (`None`). On a server's connection it replaces the
    /// [server's](crate::Server::idle_timeout). The time counts from this call.
    ///
    /// If no server made the connection, the timeout ends only reads: nothing watches a task that waits for something
    /// else. If another task already waits without a timeout, in a read or in a server's handler, the new timeout counts
    /// when this task is polled next.
    pub fn set_idle_timeout(&self, timeout: Option<Duration>) {
        self.link.set_timeouts(|own| own.idle = timeout);
    }

    /// Sets a stall timeout for this connection, or turns it off (`None`). On a server's connection it replaces the
    /// [server's](crate::Server::stall_timeout), with the same effect. For a write that already waits, see
    /// [`set_idle_timeout`](Connection::set_idle_timeout).
    pub fn set_stall_timeout(&self, timeout: Option<Duration>) {
        self.link.set_timeouts(|own| own.stall = timeout);
        // If this fails, the socket is broken, and the next read or write returns the error.
        self.link.stream().set_user_timeout(timeout).ok();
    }

    /// Resets the connection. The peer first reads the data that has arrived; then its reads fail (`ConnectionReset`).
    /// Unsent data is discarded. Unix sockets have no reset: instead, both halves are closed.
    pub fn reset(self) {
        self.link.reset();
    }

    /// A connection in memory that no server has accepted.
    #[cfg(feature = "testing")]
    pub(crate) fn in_memory(pipe: pipe::Pipe) -> Connection {
        Connection::new(Stream::Pipe(pipe), Address::Unknown, Rc::default())
    }

    /// Notes that the peer speaks for `client`, before anybody else holds the connection. `None` if it speaks for
    /// itself. The idle time counts from here.
    #[cfg(feature = "proxy-protocol")]
    pub(crate) fn introduce(&mut self, client: Option<Address>) {
        let link = Rc::get_mut(&mut self.link).expect("nobody else holds it yet");
        if let Some(client) = client {
            link.peer_addr = CompactAddress::from(client);
        }
        link.activity.happened();
    }

    /// The handler's side of a connection. [`Link::is_released`] tells whether this side still exists.
    pub(crate) fn held(link: Rc<Link>) -> Connection {
        link.released.set(false);
        Connection { link }
    }

    pub(crate) fn link(&self) -> Rc<Link> {
        self.link.clone()
    }

    /// Records the faults of the connection, for its server's line and report.
    #[cfg(feature = "faults")]
    pub(crate) fn note_faults(&self, faults: String) {
        self.link
            .rare
            .with(|rare| rare.faults = Some(Rc::new(faults)));
    }

    /// Resets the connection when the peer's kernel has nearly all written data, or takes none for a long time.
    #[cfg(feature = "faults")]
    pub(crate) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.link.prepare_end(RESET_PATIENCE);
        // The next reads and writes return the error.
        futures_lite::ready!(self.link.poll_taken(cx)).ok();
        self.link.reset();
        Poll::Ready(())
    }
}

impl Link {
    /// The faults of this connection.
    pub(crate) fn faults(&self) -> Option<Rc<String>> {
        self.rare.if_there(|rare| rare.faults.clone()).flatten()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.release();
    }
}

/// Converts a stream of async-net into a connection, and back.
macro_rules! conversions {
    ($stream:ty, $kind:ident, $other_kind:literal) => {
        impl From<$stream> for Connection {
            /// Sets `TCP_NODELAY` (TCP) and `SO_OOBINLINE` (urgent data is read in order) as a server does. No timeout.
            ///
            /// If the system refuses an option, the connection works without it.
            fn from(stream: $stream) -> Connection {
                let peer_addr = stream.peer_addr().map_or(Address::Unknown, Address::from);
                sockopt::set_tcp_nodelay(&stream, true).ok();
                sockopt::set_socket_oobinline(&stream, true).ok();
                platform::prevent_sigpipe(&stream).ok();
                Connection::new(Stream::$kind(stream.into()), peer_addr, Rc::default())
            }
        }

        /// Gives the socket to code that is written for async-net. The connection's timeouts, its byte counts, its place
        /// in the server and its part in the drain end.
        ///
        /// Fails, and closes the connection, if its socket is of another kind, or if no file descriptor is free: the
        /// server may still hold the connection's own descriptor, so the socket needs another one.
        impl TryFrom<Connection> for $stream {
            type Error = io::Error;

            fn try_from(connection: Connection) -> io::Result<$stream> {
                let Stream::$kind(stream) = connection.link.stream() else {
                    return Err(io::Error::other($other_kind));
                };
                let stream = <$stream>::try_from(stream.get_ref().try_clone()?)?;
                connection.link.give_away();
                Ok(stream)
            }
        }
    };
}
conversions!(async_net::TcpStream, Tcp, "this is no TCP connection");
conversions!(async_net::unix::UnixStream, Unix, "this is no Unix socket");

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

/// Implements reading and writing for a connection and for a reference to it.
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

            /// Closes the write half: the peer reads all written data and then end of input. Reading still works.
            fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(self.link.shutdown_write())
            }
        }
    };
}
read_and_write!(Connection);
read_and_write!(&Connection);
