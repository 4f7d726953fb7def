//! Sockets that listen: how they are made, and what their connections inherit.

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

/// How many connections the kernel holds that were not accepted yet. With std's and async-net's 128, most of a burst
/// of 1,000 wait a second, until their SYN is sent again. The system's own limit (somaxconn) holds too.
pub(super) const BACKLOG: i32 = 4096;

/// How long to wait for somebody who binds a Unix socket in the same folder, and how often to look.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// How often to look for a port that is free in both families, when the system may choose.
const PORT_TRIES: usize = 16;

/// A socket that listens, on TCP or on a Unix path, and is not served yet.
///
/// A listener that [`bind_unix`](Listener::bind_unix) made removes its file when it is dropped, if the file is still
/// its own.
#[derive(Debug)]
pub struct Listener {
    /// The file of a Unix socket that we made. Removed before the socket is closed, when the path may be another's.
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
    /// `cannot listen on ADDRESS: …`, with the system's kind, such as `AddrInUse`.
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
                // So that all of IPv4 and all of IPv6 can be listened on side by side, whatever the system's default.
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
    /// A socket's file that nobody listens on any more is removed first. One that is in use is left alone, and so is
    /// a file that is no socket.
    ///
    /// # Errors
    ///
    /// `cannot listen on unix:PATH: …`, with the system's kind, such as `AddrInUse`.
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
            // Until we listen. Others would take our socket for one that nobody listens on any more.
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

    /// Listens on all that `endpoint` means. A name is looked up on this thread, which waits for it.
    ///
    /// # Errors
    ///
    /// `cannot listen on ADDRESS: …`, with the system's kind, such as `AddrInUse`.
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
                // Some systems' tables of names have an address twice.
                addrs.sort();
                addrs.dedup();
                addrs.into_iter().map(Listener::bind).collect()
            }
            Endpoint::Unix(path) => Listener::bind_unix(path).map(|listener| vec![listener]),
        }
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

    /// The TCP listener inside, if it is one. For the program alone: no promise.
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
    /// The socket's file stays when the listener is dropped.
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

/// Locks the folder of `path`, so that of several who bind a path at the same time each finds the others bound and
/// listening, or not there. None where that cannot be had: somebody holds the lock for long, or the folder is not ours
/// to read.
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
    let probe = platform::stream_socket(AddressFamily::UNIX)?;
    rustix::io::ioctl_fionbio(&probe, true)?;
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(error) => Ok(error == Errno::CONNREFUSED),
        Ok(()) => Ok(false),
    }
}

/// The file of a Unix socket, known by its inode, which goes with its listener.
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
        // Somebody may have put a socket of their own in this place.
        if device_and_inode(&self.path).is_ok_and(|found| found == self.device_and_inode) {
            fs::remove_file(&self.path).ok();
        }
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// How many descriptors are for anything but connections.
const OTHER_DESCRIPTORS: u64 = 32;

/// How many connections a server may have, as far as it was not told. In memory there is no limit.
pub(super) fn max_connections(listeners: &[Listener]) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    match listeners {
        [] => usize::MAX,
        _ => descriptors.saturating_sub(OTHER_DESCRIPTORS).max(1) as usize,
    }
}

/// What a listener's TCP connections inherit.
#[derive(Clone, Copy, Default)]
pub(super) struct ConnectionOptions {
    /// The size of each of its two buffers, in bytes.
    pub(super) buffer_size: Option<usize>,
    /// How long its peer may take nothing of what was sent.
    pub(super) stall_timeout: Option<Duration>,
}

impl ConnectionOptions {
    /// Sets them on a listener, or on a connection that has not inherited them; and what each connection needs:
    /// `TCP_NODELAY`, and urgent data in line (else it would wake us for ever without being read).
    pub(super) fn set(&self, socket: impl AsFd) -> io::Result<()> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_oobinline(&socket, true)?;
        if let Some(size) = self.buffer_size {
            // The kernel takes an int, and bounds it by its own limits.
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
