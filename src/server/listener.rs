//! Listening sockets: how they are made, what their connections inherit, and how one accepts from several.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
#[cfg(feature = "testing")]
use std::rc::Rc;
use std::task::{Context, Poll};

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use smol::Async;

use crate::address::Address;
use crate::connection::Stream;
use crate::io_error;
#[cfg(feature = "testing")]
use crate::testing::Queue;

/// How many connections the kernel holds that were not accepted yet. With std's and async-net's 128, most of a burst
/// of 1,000 wait a second, until their SYN is sent again. The system's own limit (somaxconn) holds too.
const BACKLOG: i32 = 4096;

/// A socket that listens, on TCP or on a Unix path, and is not served yet.
///
/// A listener that [`bind_unix`](Listener::bind_unix) made removes its file when it is dropped, if the file is still
/// its own.
#[derive(Debug)]
pub struct Listener {
    /// The file of a Unix socket that we made. Removed before the socket is closed, when the path may be another's.
    file: Option<SocketFile>,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens on a TCP address, with a backlog of 4,096. An IPv6 address takes no IPv4 connections.
    ///
    /// # Errors
    ///
    /// `cannot listen on ADDRESS: …`, with the system's kind, such as `AddrInUse`.
    pub fn bind(addr: SocketAddr) -> io::Result<Listener> {
        let listen = || {
            let family = if addr.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            if addr.is_ipv6() {
                // So that all of IPv4 and all of IPv6 can be listened on side by side, whatever the system's default.
                sockopt::set_ipv6_v6only(&socket, true)?;
            }
            set_options(&socket, None)?;
            net::bind(&socket, &addr)?;
            net::listen(&socket, BACKLOG)?;
            io::Result::Ok(TcpListener::from(socket))
        };
        listen()
            .map(Listener::from)
            .map_err(|error| cannot_listen(&Address::Tcp(addr), &error))
    }

    /// Listens on a Unix socket at `path`, with a backlog of 4,096.
    ///
    /// A socket's file that nobody listens on any more is removed first. One that is in use is left alone, and so is
    /// a file that is no socket.
    ///
    /// # Errors
    ///
    /// `cannot listen on unix:PATH: …`, with the system's kind, such as `AddrInUse`.
    pub fn bind_unix(path: impl AsRef<Path>) -> io::Result<Listener> {
        let path = path.as_ref();
        let listen = || {
            if is_stale(path)? {
                fs::remove_file(path)?;
            }
            let listener = UnixListener::bind(path)?;
            let file = SocketFile::new(path)?;
            net::listen(&listener, BACKLOG)?;
            Ok(Listener {
                socket: Socket::Unix(listener),
                file: Some(file),
            })
        };
        listen().map_err(|error| cannot_listen(&Address::Unix(Some(path.to_owned())), &error))
    }

    /// The address that this listens on.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn local_addr(&self) -> io::Result<Address> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Socket::Unix(listener) => listener.local_addr().map(Address::from),
        }
    }

    /// The TCP listener inside, if it is one.
    pub fn into_tcp(self) -> Option<TcpListener> {
        match self.socket {
            Socket::Tcp(listener) => Some(listener),
            Socket::Unix(_) => None,
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Listener {
        Listener {
            socket: Socket::Tcp(listener),
            file: None,
        }
    }
}

impl From<UnixListener> for Listener {
    /// The socket's file stays when the listener is dropped.
    fn from(listener: UnixListener) -> Listener {
        Listener {
            socket: Socket::Unix(listener),
            file: None,
        }
    }
}

fn cannot_listen(addr: &Address, error: &io::Error) -> io::Error {
    io_error::explain(format_args!("cannot listen on {addr}"), error)
}

/// Whether `path` is a socket that nobody listens on.
fn is_stale(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        // Connecting to any other kind of file is refused too, so it must not count.
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the file exists and is not a socket",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    // Without waiting: a live server whose backlog is full would let us wait.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(error) => Ok(error == rustix::io::Errno::CONNREFUSED),
        Ok(()) => Ok(false),
    }
}

/// The file of a Unix socket, known by its inode, which goes with its listener.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile {
            path: path.to_owned(),
            device_and_inode: device_and_inode(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have put a socket of their own in this place.
        if device_and_inode(&self.path).is_ok_and(|found| found == self.device_and_inode) {
            fs::remove_file(&self.path).ok();
        }
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The listeners that a server accepts from.
pub(super) struct Listeners {
    listeners: Vec<Serving>,
    /// Whose turn it is, so that a busy one does not shut out the others.
    next: usize,
}

/// A listener in the reactor.
struct Serving {
    /// Held for its drop, which comes before the socket's.
    _file: Option<SocketFile>,
    socket: AsyncSocket,
    /// The last accept found nothing, so that an event comes before the next.
    waiting: bool,
    /// Until the kernel's queue was empty once.
    old_queue: Option<OldQueue>,
}

/// The connections that were complete before the listener had its options: they have inherited none.
struct OldQueue {
    buffer_size: Option<usize>,
}

enum AsyncSocket {
    Tcp(Async<TcpListener>),
    Unix(Async<UnixListener>),
    #[cfg(feature = "testing")]
    Memory(Rc<Queue>),
}

/// What [`Listeners::poll_accept`] brings.
pub(super) enum Accepted {
    Stream(Stream, Address),
    /// The connection is there, but the system has no resources to watch it. It is closed.
    Unwatchable(Address, io::Error),
}

impl Listeners {
    /// Puts the listeners into the reactor, and gives them the options that their connections inherit.
    pub(super) fn new(
        listeners: Vec<Listener>,
        buffer_size: Option<usize>,
    ) -> io::Result<Listeners> {
        let serve = |listener: Listener| {
            let socket = match listener.socket {
                Socket::Tcp(listener) => {
                    set_options(&listener, buffer_size)?;
                    AsyncSocket::Tcp(Async::new(listener)?)
                }
                Socket::Unix(listener) => AsyncSocket::Unix(Async::new(listener)?),
            };
            Ok(Serving {
                socket,
                waiting: false,
                old_queue: Some(OldQueue { buffer_size }),
                _file: listener.file,
            })
        };
        let listeners = listeners
            .into_iter()
            .map(serve)
            .collect::<io::Result<_>>()?;
        Ok(Listeners { listeners, next: 0 })
    }

    /// Accepts from a queue in memory, too.
    #[cfg(feature = "testing")]
    pub(super) fn add_queue(&mut self, queue: Rc<Queue>) {
        self.listeners.push(Serving {
            socket: AsyncSocket::Memory(queue),
            waiting: false,
            old_queue: None,
            _file: None,
        });
    }

    /// Closes the listeners: from now on the system refuses connections to them.
    pub(super) fn close(&mut self) {
        #[cfg(feature = "testing")]
        for serving in &self.listeners {
            if let AsyncSocket::Memory(queue) = &serving.socket {
                queue.close();
            }
        }
        self.listeners.clear();
    }

    /// Accepts from whichever listener has a connection, in turn.
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

impl Drop for Listeners {
    fn drop(&mut self) {
        self.close();
    }
}

/// Sets what a connection needs: `TCP_NODELAY`, urgent data in line (else it would wake us for ever without being
/// read), and the size of its buffers.
fn set_options(socket: impl AsFd, buffer_size: Option<usize>) -> io::Result<()> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_oobinline(&socket, true)?;
    if let Some(size) = buffer_size {
        sockopt::set_socket_recv_buffer_size(&socket, size)?;
        sockopt::set_socket_send_buffer_size(&socket, size)?;
    }
    Ok(())
}

impl Serving {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        loop {
            if self.waiting {
                match self.socket.poll_readable(cx) {
                    Poll::Ready(ready) => ready?,
                    Poll::Pending => return Poll::Pending,
                }
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
            AsyncSocket::Memory(queue) => queue.poll_readable(cx),
        }
    }

    fn accept(&self, old_queue: Option<&OldQueue>) -> io::Result<Accepted> {
        match self {
            AsyncSocket::Tcp(listener) => {
                // Nonblocking from the start, which saves a system call over std's accept.
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let (socket, peer_addr) = net::acceptfrom_with(listener.get_ref(), flags)?;
                if let Some(old_queue) = old_queue {
                    // Can fail on a broken socket only, whose next read tells.
                    set_options(&socket, old_queue.buffer_size).ok();
                }
                let stream = Async::new_nonblocking(TcpStream::from(socket)).map(Stream::Tcp);
                let peer_addr = peer_addr.and_then(|addr| SocketAddr::try_from(addr).ok());
                Ok(Accepted::new(
                    stream,
                    peer_addr.map_or(Address::Unknown, Address::Tcp),
                ))
            }
            AsyncSocket::Unix(listener) => {
                let (stream, peer_addr) = listener.get_ref().accept()?;
                let stream = Async::new(stream).map(Stream::Unix);
                Ok(Accepted::new(stream, Address::from(peer_addr)))
            }
            #[cfg(feature = "testing")]
            AsyncSocket::Memory(queue) => Ok(Accepted::Stream(
                Stream::Pipe(queue.accept()?),
                Address::Unknown,
            )),
        }
    }
}

impl Accepted {
    fn new(stream: io::Result<Stream>, peer_addr: Address) -> Accepted {
        match stream {
            Ok(stream) => Accepted::Stream(stream, peer_addr),
            Err(error) => Accepted::Unwatchable(peer_addr, error),
        }
    }
}
