//! Accepting: the order of the listeners, and the options that connections inherit.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::task::{Context, Poll};
#[cfg(feature = "testing")]
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::Waker,
};

use futures_lite::ready;
use rustix::io::Errno;
use rustix::net::sockopt;
use smol::Async;

use crate::address::Address;
use crate::connection::Stream;
#[cfg(feature = "testing")]
use crate::connection::{pipe::Pipe, user_timeout};
use crate::platform;

#[cfg(feature = "testing")]
use super::listener::BACKLOG;
use super::listener::{ConnectionOptions, Listener, Socket, SocketFile};

/// The listeners that a server accepts from.
pub(super) struct Listeners {
    listeners: Vec<Serving>,
    /// The index of the listener to try first, so that a busy listener does not shut out the others.
    next: usize,
}

/// A listener that is registered with the reactor.
struct Serving {
    /// Kept only for its drop, which comes before the socket's.
    _file: Option<SocketFile>,
    socket: AsyncSocket,
    /// The last accept found no connection, so the next one waits for an event.
    waiting: bool,
    /// Options to set on accepted connections, until the kernel's queue was empty once. Connections that were complete
    /// before the listener had its options have inherited none.
    old_queue: Option<ConnectionOptions>,
}

enum AsyncSocket {
    Tcp(Async<TcpListener>),
    Unix(Async<UnixListener>),
    #[cfg(feature = "testing")]
    Memory(QueueEnd),
}

/// The result of [`Listeners::poll_accept`].
pub(super) struct Accepted {
    pub(super) peer_addr: Address,
    /// An error if the reactor could not watch the connection, for lack of resources. The connection is then closed.
    pub(super) stream: io::Result<Stream>,
}

impl Listeners {
    /// Registers the listeners with the reactor, and sets the options that their connections inherit.
    pub(super) fn new(
        listeners: Vec<Listener>,
        options: ConnectionOptions,
    ) -> io::Result<Listeners> {
        let serve = |listener: Listener| {
            let socket = match listener.socket {
                Socket::Tcp(listener) => {
                    options.set(&listener)?;
                    AsyncSocket::Tcp(Async::new(listener)?)
                }
                Socket::Unix(listener) => AsyncSocket::Unix(Async::new(listener)?),
            };
            Ok(Serving {
                socket,
                waiting: false,
                old_queue: Some(options),
                _file: listener.file,
            })
        };
        let listeners = listeners
            .into_iter()
            .map(serve)
            .collect::<io::Result<_>>()?;
        Ok(Listeners { listeners, next: 0 })
    }

    /// Also accepts from a queue in memory.
    #[cfg(feature = "testing")]
    pub(super) fn add_queue(&mut self, queue: QueueEnd, options: ConnectionOptions) {
        queue.0.options.set(Some(options));
        self.listeners.push(Serving {
            socket: AsyncSocket::Memory(queue),
            waiting: false,
            old_queue: None,
            _file: None,
        });
    }

    /// Whether at least one of them is a socket, and not in memory.
    pub(super) fn has_sockets(&self) -> bool {
        let is_socket = |serving: &Serving| match serving.socket {
            AsyncSocket::Tcp(_) | AsyncSocket::Unix(_) => true,
            #[cfg(feature = "testing")]
            AsyncSocket::Memory(_) => false,
        };
        self.listeners.iter().any(is_socket)
    }

    /// Closes the listeners: from now on the system refuses new connections.
    pub(super) fn close(&mut self) {
        self.listeners.clear();
    }

    /// Accepts a connection from a kernel's queue, even if the reactor has not reported it yet. `None` if the queues
    /// are empty.
    pub(super) fn accept_queued(&self) -> Option<io::Result<Accepted>> {
        self.listeners.iter().find_map(|serving| {
            let accepted = serving.socket.accept(serving.old_queue.as_ref());
            let is_empty =
                matches!(&accepted, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            (!is_empty).then_some(accepted)
        })
    }

    /// Accepts a connection from any listener. The listeners take turns.
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        for _ in 0..self.listeners.len() {
            self.next = (self.next + 1) % self.listeners.len();
            let result = self.listeners[self.next].poll_accept(cx);
            if result.is_ready() {
                return result;
            }
        }
        Poll::Pending
    }
}

impl Serving {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        loop {
            if self.waiting {
                ready!(self.socket.poll_readable(cx))?;
                self.waiting = false;
            }
            match self.socket.accept(self.old_queue.as_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting = true;
                    self.old_queue = None;
                }
                accepted => return Poll::Ready(accepted),
            }
        }
    }
}

impl AsyncSocket {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            AsyncSocket::Tcp(listener) => listener.poll_readable(cx),
            AsyncSocket::Unix(listener) => listener.poll_readable(cx),
            #[cfg(feature = "testing")]
            AsyncSocket::Memory(queue) => queue.0.poll_readable(cx),
        }
    }

    fn accept(&self, old_queue: Option<&ConnectionOptions>) -> io::Result<Accepted> {
        match self {
            AsyncSocket::Tcp(listener) => {
                let (socket, peer_addr) = platform::accept(listener.get_ref())?;
                if let Some(options) = old_queue {
                    // This fails only on a broken socket, and the next read returns the error.
                    options.set(&socket).ok();
                }
                let stream = Async::new_nonblocking(socket).map(async_net::TcpStream::from);
                Ok(Accepted {
                    peer_addr: peer_addr.map_or(Address::Unknown, Address::Tcp),
                    stream: stream.map(|stream| Stream::Tcp(stream.into())),
                })
            }
            AsyncSocket::Unix(listener) => {
                let (stream, peer_addr) = listener.get_ref().accept()?;
                sockopt::set_socket_oobinline(&stream, true).ok();
                platform::prevent_sigpipe(&stream).ok();
                let stream = Async::new(stream).map(async_net::unix::UnixStream::from);
                Ok(Accepted {
                    peer_addr: Address::from(peer_addr),
                    stream: stream.map(|stream| Stream::Unix(stream.into())),
                })
            }
            #[cfg(feature = "testing")]
            AsyncSocket::Memory(queue) => queue.0.accept().map(|pipe| Accepted {
                peer_addr: pipe.peer_addr().clone(),
                stream: Ok(Stream::Pipe(pipe)),
            }),
        }
    }
}

/// The cause of an `accept` error, which decides the reaction.
#[derive(Debug, PartialEq)]
pub(super) enum AcceptError {
    /// A single connection failed before it was accepted: accept the next one.
    Connection,
    /// The process or the system has no file descriptors or memory left: wait.
    Resources,
    /// The listener is broken: end.
    Listener,
}

impl AcceptError {
    pub(super) fn of(error: &io::Error) -> AcceptError {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                AcceptError::Resources
            }
            // PERM: a firewall forbids the connection. From NETDOWN on: Linux passes on a pending network error of the
            // new socket. OPNOTSUPP could also be such an error, but a socket that cannot accept returns it for ever.
            Some(
                Errno::CONNABORTED
                | Errno::PROTO
                | Errno::PERM
                | Errno::INTR
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NOPROTOOPT
                | Errno::CONNRESET
                | Errno::TIMEDOUT,
            ) => AcceptError::Connection,
            Some(errno) if platform::is_network_error(errno) => AcceptError::Connection,
            _ => AcceptError::Listener,
        }
    }
}

/// A listener in memory: the connections that wait to be accepted.
#[cfg(feature = "testing")]
pub(crate) struct Queue {
    waiting: RefCell<VecDeque<Pipe>>,
    backlog: Cell<usize>,
    acceptor: RefCell<Option<Waker>>,
    closed: Cell<bool>,
    /// The options that connections inherit.
    options: Cell<Option<ConnectionOptions>>,
    /// The errors of the next accepts, each with the number of accepts that fail with it.
    failures: RefCell<VecDeque<(Errno, u64)>>,
    /// The maximum number of accepted connections, and the reference that each of them holds.
    descriptors_max: Cell<usize>,
    descriptors: Rc<()>,
}

#[cfg(feature = "testing")]
impl Default for Queue {
    fn default() -> Queue {
        Queue {
            waiting: RefCell::default(),
            backlog: Cell::new(BACKLOG as usize),
            acceptor: RefCell::default(),
            closed: Cell::new(false),
            options: Cell::new(None),
            failures: RefCell::default(),
            descriptors_max: Cell::new(usize::MAX),
            descriptors: Rc::new(()),
        }
    }
}

#[cfg(feature = "testing")]
impl Queue {
    /// Adds a connection, or refuses it.
    pub(crate) fn push(&self, pipe: Pipe) -> io::Result<()> {
        if self.closed.get() {
            return Err(Errno::CONNREFUSED.into());
        }
        // Linux accepts one connection more than the backlog.
        if self.waiting.borrow().len() > self.backlog.get() {
            return Err(Errno::AGAIN.into());
        }
        self.set_options(&pipe);
        self.waiting.borrow_mut().push_back(pipe);
        self.wake();
        Ok(())
    }

    pub(crate) fn fail_accepts(&self, error: Errno, count: u64) {
        self.failures.borrow_mut().push_back((error, count));
        self.wake();
    }

    pub(crate) fn limit_descriptors(&self, most: usize) {
        self.descriptors_max.set(most);
    }

    pub(crate) fn set_backlog(&self, backlog: usize) {
        self.backlog.set(backlog);
    }

    fn wake(&self) {
        if let Some(waker) = self.acceptor.take() {
            waker.wake();
        }
    }

    fn set_options(&self, pipe: &Pipe) {
        if let Some(options) = self.options.get() {
            let timeout = options.stall_timeout.map(user_timeout);
            pipe.set_options(options.buffer_size, timeout);
        }
    }

    pub(crate) fn accept(&self) -> io::Result<Pipe> {
        if let Some(error) = self.next_failure() {
            return Err(error.into());
        }
        // As in accept4, the file descriptor is allocated before the queue is checked.
        if Rc::strong_count(&self.descriptors) > self.descriptors_max.get() {
            return Err(Errno::MFILE.into());
        }
        let mut pipe = self.waiting.borrow_mut().pop_front().ok_or(Errno::AGAIN)?;
        self.set_options(&pipe);
        pipe.set_descriptor(self.descriptors.clone());
        Ok(pipe)
    }

    /// The error of the next accept.
    fn next_failure(&self) -> Option<Errno> {
        let mut failures = self.failures.borrow_mut();
        while failures.front().is_some_and(|(_, count)| *count == 0) {
            failures.pop_front();
        }
        let (error, count) = failures.front_mut()?;
        *count -= 1;
        Some(*error)
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.borrow().is_empty() || !self.failures.borrow().is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.acceptor.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

/// The listener's end of a queue. When it is dropped, waiting connections are reset and later ones are refused.
#[cfg(feature = "testing")]
pub(crate) struct QueueEnd(pub(crate) Rc<Queue>);

#[cfg(feature = "testing")]
impl Drop for QueueEnd {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.waiting.take().iter().for_each(Pipe::abandon);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_accept_has_its_case() {
        let case = |errno: Errno| AcceptError::of(&errno.into());
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(case(errno), AcceptError::Resources, "{errno:?}");
        }
        for errno in [
            Errno::CONNABORTED,
            Errno::PROTO,
            Errno::PERM,
            Errno::INTR,
            Errno::NETDOWN,
            Errno::HOSTUNREACH,
        ] {
            assert_eq!(case(errno), AcceptError::Connection, "{errno:?}");
        }
        #[cfg(target_os = "linux")]
        assert_eq!(case(Errno::NONET), AcceptError::Connection);
        for errno in [
            Errno::BADF,
            Errno::INVAL,
            Errno::NOTSOCK,
            Errno::OPNOTSUPP,
            Errno::FAULT,
        ] {
            assert_eq!(case(errno), AcceptError::Listener, "{errno:?}");
        }
        assert_eq!(
            AcceptError::of(&io::Error::other("no number")),
            AcceptError::Listener
        );
    }
}
