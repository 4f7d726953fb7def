//! Listening sockets: how they are created, and the options that their connections inherit.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, sockopt};
use rustix::process::{Resource, getrlimit};

use crate::address::Address;
use crate::connection::set_user_timeout;
use crate::endpoint::Endpoint;
use crate::io_error;
use crate::platform;

/// Number of connections that the kernel holds before they are accepted. With a backlog of 128 (std, async-net), most
/// clients in a burst of 1,000 wait a second until their SYN is sent again. The system's own limit (somaxconn) also
/// applies.
pub(super) const BACKLOG: i32 = 4096;

/// How long to wait for another process that binds a Unix socket in the same folder, and the time between two checks.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Maximum number of tries to find a port that is free for IPv4 and IPv6, if the system may choose it.
const PORT_TRIES: usize = 16;

/// A listening TCP or Unix socket that no server uses yet.
///
/// When a listener from [`bind_unix`](Listener::bind_unix) is dropped, it removes its file, if no other file has
/// replaced it.
#[derive(Debug)]
pub struct Listener {
    /// The file of a Unix socket that this listener created. It is removed before the socket is closed, because another
    /// process may use the path after that.
    pub(super) file: Option<SocketFile>,
    pub(super) socket: Socket,
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens on a TCP address, with a backlog of 4,096. An IPv6 address takes no IPv4 connections.
    ///
    /// # Errors
    ///
    /// `cannot listen on ADDRESS: …`, with the kind of the system's error, such as `AddrInUse`.
    pub fn bind(addr: SocketAddr) -> io::Result<Listener> {
        let listen = || {
            let family = if addr.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            let socket = platform::stream_socket(family)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            if addr.is_ipv6() {
                // So IPv4 and IPv6 sockets can use the same port side by side, whatever the system's default is.
                sockopt::set_ipv6_v6only(&socket, true)?;
            }
            ConnectionOptions::default().set(&socket)?;
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
    /// If the path has an old socket file on which no process listens, this file is removed first. A socket file that
    /// is in use stays, and so does a file that is not a socket.
    ///
    /// # Errors
    ///
    /// `cannot listen on unix:PATH: …`, with the kind of the system's error, such as `AddrInUse`.
    pub fn bind_unix(path: impl AsRef<Path>) -> io::Result<Listener> {
        let path = path.as_ref();
        let (length, most) = (path.as_os_str().len(), platform::UNIX_PATH_MAX);
        if length > most {
            return Err(io::Error::new(
                io::ErrorKind::InvalidFilename,
                format!(
                    "cannot listen on a Unix socket: its path has {length} bytes, and may have {most} at most"
                ),
            ));
        }
        let listen = || {
            // Held until the socket listens. Otherwise another process would think that nobody listens on this socket.
            let _lock = lock_folder(path);
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

    /// Listens on all addresses that `endpoint` stands for. The look-up of a name blocks this thread.
    ///
    /// # Errors
    ///
    /// `cannot listen on ADDRESS: …`, with the kind of the system's error, such as `AddrInUse`.
    pub fn bind_endpoint(endpoint: &Endpoint) -> io::Result<Vec<Listener>> {
        match endpoint {
            Endpoint::Loopback(port) => both((Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST), *port),
            Endpoint::All(port) => both((Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED), *port),
            Endpoint::Ip(addrs) => addrs.iter().copied().map(Listener::bind).collect(),
            Endpoint::Name(name, port) => {
                let addrs = (name.as_str(), *port).to_socket_addrs();
                let unknown =
                    |error| io_error::explain(format_args!("cannot listen on {endpoint}"), &error);
                let mut addrs: Vec<SocketAddr> = addrs.map_err(unknown)?.collect();
                // On some systems the look-up returns an address twice.
                addrs.sort();
                addrs.dedup();
                addrs.into_iter().map(Listener::bind).collect()
            }
            Endpoint::Unix(path) => Listener::bind_unix(path).map(|listener| vec![listener]),
        }
    }

    /// The address of the listening socket.
    ///
    /// # Errors
    ///
    /// Errors of the system.
    pub fn local_addr(&self) -> io::Result<Address> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Socket::Unix(listener) => listener.local_addr().map(Address::from),
        }
    }

    /// The TCP listener inside, if there is one. Only for the program: not a part of the public API.
    #[doc(hidden)]
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
    /// The socket's file is not removed when the listener is dropped.
    fn from(listener: UnixListener) -> Listener {
        Listener {
            socket: Socket::Unix(listener),
            file: None,
        }
    }
}

/// Listens with IPv4 and, where the machine has it, IPv6, on the same port.
fn both((v4, v6): (Ipv4Addr, Ipv6Addr), port: u16) -> io::Result<Vec<Listener>> {
    let mut tries = if port == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let first = Listener::bind((v4, port).into())?;
        let Some(chosen) = first.local_addr()?.tcp() else {
            return Ok(vec![first]);
        };
        match Listener::bind((v6, chosen.port()).into()) {
            Ok(second) => return Ok(vec![first, second]),
            Err(_) if !has_ipv6() => return Ok(vec![first]),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn cannot_listen(addr: &Address, error: &io::Error) -> io::Error {
    io_error::explain(format_args!("cannot listen on {addr}"), error)
}

/// Locks the folder of `path`. If several processes bind a path at the same time, each of them finds the others either
/// listening or absent. `None` if the lock is not available: another process holds it for too long, or this process may
/// not read the folder.
fn lock_folder(path: &Path) -> Option<fs::File> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let folder = fs::File::open(folder.unwrap_or(Path::new("."))).ok()?;
    let start = Instant::now();
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(Errno::WOULDBLOCK) if start.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_PAUSE),
            Err(_) => return None,
        }
    }
}

/// Whether `path` is a socket on which no process listens.
fn is_stale(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        // Connecting to other kinds of files is refused, too, so they are excluded first.
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the file exists and is not a socket",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    // Nonblocking: a running server with a full backlog would make this call wait.
    let probe = platform::stream_socket(AddressFamily::UNIX)?;
    rustix::io::ioctl_fionbio(&probe, true)?;
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(error) => Ok(error == Errno::CONNREFUSED),
        Ok(()) => Ok(false),
    }
}

/// The file of a Unix socket, identified by its inode. It is removed with its listener.
#[derive(Debug)]
pub(super) struct SocketFile {
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
        // Another process may have replaced the file with its own socket.
        if device_and_inode(&self.path).is_ok_and(|found| found == self.device_and_inode) {
            fs::remove_file(&self.path).ok();
        }
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Number of file descriptors that are not for connections.
const OTHER_DESCRIPTORS: u64 = 32;

/// The default connection limit. In memory there is no limit.
pub(super) fn max_connections(listeners: &[Listener]) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    match listeners {
        [] => usize::MAX,
        _ => descriptors.saturating_sub(OTHER_DESCRIPTORS).max(1) as usize,
    }
}

/// The options that a listener's TCP connections inherit.
#[derive(Clone, Copy, Default)]
pub(super) struct ConnectionOptions {
    /// The size of the send buffer and of the receive buffer, in bytes.
    pub(super) buffer_size: Option<usize>,
    /// How long the peer may take none of the sent data.
    pub(super) stall_timeout: Option<Duration>,
}

impl ConnectionOptions {
    /// Sets the options on a listener, or on a connection that has not inherited them. Also sets `TCP_NODELAY` and
    /// `SO_OOBINLINE`: without the second, unread urgent data would wake the loop for ever.
    pub(super) fn set(&self, socket: impl AsFd) -> io::Result<()> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_oobinline(&socket, true)?;
        if let Some(size) = self.buffer_size {
            // The kernel takes an `int`, and applies its own limits.
            let size = size.min(i32::MAX as usize);
            sockopt::set_socket_recv_buffer_size(&socket, size)?;
            sockopt::set_socket_send_buffer_size(&socket, size)?;
        }
        if let Some(timeout) = self.stall_timeout {
            set_user_timeout(&socket, timeout)?;
        }
        Ok(())
    }
}
