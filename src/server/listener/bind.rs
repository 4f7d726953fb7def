//! How listening sockets are created.

use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{self, AddressFamily, SocketAddrUnix, sockopt};

use crate::address::Address;
use crate::endpoint::Endpoint;
use crate::io_error;
use crate::platform;

use super::{BACKLOG, ConnectionOptions, Listener, Socket, SocketFile};

/// How long to wait for another process that binds a Unix socket in the same folder, and the time between two checks.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Maximum number of tries to find a port that is free for IPv4 and IPv6, if the system may choose it.
const PORT_TRIES: usize = 16;

impl Listener {
    /// Listens on a TCP address, with the options' defaults: see [`ListenOptions`].
    ///
    /// # Errors
    ///
    /// `cannot listen on ADDRESS: …`, with the kind of the system's error, such as `AddrInUse`.
    pub fn bind(addr: SocketAddr) -> io::Result<Listener> {
        ListenOptions::new().bind(addr)
    }

    /// Listens on a Unix socket at `path`, with the options' defaults: see [`ListenOptions::bind_unix`].
    ///
    /// # Errors
    ///
    /// `cannot listen on unix:PATH: …`, with the kind of the system's error, such as `AddrInUse`.
    pub fn bind_unix(path: impl AsRef<Path>) -> io::Result<Listener> {
        ListenOptions::new().bind_unix(path)
    }

    /// Listens on all addresses that `endpoint` stands for. The look-up of a name blocks this thread.
    ///
    /// # Errors
    ///
    /// `cannot listen on ADDRESS: …`, with the kind of the system's error, such as `AddrInUse`.
    pub fn bind_endpoint(endpoint: &Endpoint) -> io::Result<Vec<Listener>> {
        ListenOptions::new().bind_endpoint(endpoint)
    }
}

/// How to listen. Each option has a good default.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// use tinyloop::ListenOptions;
///
/// // Several processes, each with a socket of its own on the same port: the kernel spreads the connections.
/// let listener = ListenOptions::new().reuse_port().bind(([127, 0, 0, 1], 0).into())?;
/// # drop(listener);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "options do nothing until a socket is bound with them"]
pub struct ListenOptions {
    backlog: i32,
    reuse_port: bool,
    ipv6_only: bool,
    unix_mode: Option<u32>,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions::new()
    }
}

impl ListenOptions {
    /// The defaults: a backlog of 4,096, a port of its own, IPv6 without IPv4, and the file mode that the umask leaves.
    pub fn new() -> ListenOptions {
        ListenOptions {
            backlog: BACKLOG,
            reuse_port: false,
            ipv6_only: true,
            unix_mode: None,
        }
    }

    /// How many connections the kernel holds that the server has not accepted yet; by default 4,096. The system's own
    /// limit (`somaxconn`) holds too.
    pub fn backlog(mut self, connections: u32) -> ListenOptions {
        self.backlog = connections.try_into().unwrap_or(i32::MAX);
        self
    }

    /// Lets other sockets of the same user listen on the same TCP address (`SO_REUSEPORT`), if they have this option,
    /// too. The kernel spreads the connections evenly.
    ///
    /// A connection stays with the socket that the kernel chose. So it waits if that server is busy, and it is reset if
    /// that socket is closed before the connection is accepted. A socket that several processes share has neither
    /// trouble.
    pub fn reuse_port(mut self) -> ListenOptions {
        self.reuse_port = true;
        self
    }

    /// Lets an IPv6 socket take IPv4 connections, too (no `IPV6_V6ONLY`). Their peers have addresses such as
    /// `::ffff:127.0.0.1`. Endpoints that mean both families have a socket for each of them and ignore this option.
    pub fn dual_stack(mut self) -> ListenOptions {
        self.ipv6_only = false;
        self
    }

    /// The permissions of a Unix socket's file, such as `0o660`: who may write may connect. By default the umask
    /// decides.
    pub fn unix_mode(mut self, mode: u32) -> ListenOptions {
        self.unix_mode = Some(mode);
        self
    }

    /// Listens on a TCP address.
    ///
    /// # Errors
    ///
    /// `cannot listen on ADDRESS: …`, with the kind of the system's error, such as `AddrInUse`.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<Listener> {
        let listen = || {
            let socket = platform::stream_socket(addr.as_any().address_family())?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            if self.reuse_port {
                sockopt::set_socket_reuseport(&socket, true)?;
            }
            if addr.is_ipv6() {
                // Set in any case: the system's default may be either.
                sockopt::set_ipv6_v6only(&socket, self.ipv6_only)?;
            }
            ConnectionOptions::default().set(&socket)?;
            net::bind(&socket, &addr)?;
            net::listen(&socket, self.backlog)?;
            io::Result::Ok(TcpListener::from(socket))
        };
        listen()
            .map(Listener::from)
            .map_err(|error| cannot_listen(&Address::Tcp(addr), error))
    }

    /// Listens on a Unix socket at `path`.
    ///
    /// If the path has an old socket file on which no process listens, this file is removed first. A socket file that
    /// is in use stays, and so does a file that is not a socket.
    ///
    /// # Errors
    ///
    /// `cannot listen on unix:PATH: …`, with the kind of the system's error, such as `AddrInUse`.
    pub fn bind_unix(&self, path: impl AsRef<Path>) -> io::Result<Listener> {
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
            let socket = platform::stream_socket(AddressFamily::UNIX)?;
            net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            let file = SocketFile::new(path)?;
            if let Some(mode) = self.unix_mode {
                // Nobody can connect before we listen, so no connection comes under other permissions.
                fs::set_permissions(path, Permissions::from_mode(mode))?;
            }
            net::listen(&socket, self.backlog)?;
            Ok(Listener {
                socket: Socket::Unix(socket.into()),
                file: Some(file),
            })
        };
        listen().map_err(|error| cannot_listen(&Address::Unix(Some(path.to_owned())), error))
    }

    /// Listens on all addresses that `endpoint` stands for. The look-up of a name blocks this thread.
    ///
    /// # Errors
    ///
    /// `cannot listen on ADDRESS: …`, with the kind of the system's error, such as `AddrInUse`.
    pub fn bind_endpoint(&self, endpoint: &Endpoint) -> io::Result<Vec<Listener>> {
        let bind_all = |addrs: &[SocketAddr]| addrs.iter().map(|addr| self.bind(*addr)).collect();
        match endpoint {
            Endpoint::Loopback(port) => {
                self.bind_both((Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST), *port)
            }
            Endpoint::All(port) => {
                self.bind_both((Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED), *port)
            }
            Endpoint::Ip(addrs) => bind_all(addrs),
            Endpoint::Name(name, port) => {
                let addrs = (name.as_str(), *port).to_socket_addrs();
                let unknown =
                    |error| io_error::explain(format_args!("cannot listen on {endpoint}"), error);
                let mut addrs: Vec<SocketAddr> = addrs.map_err(unknown)?.collect();
                // On some systems the look-up returns an address twice.
                addrs.sort();
                addrs.dedup();
                bind_all(&addrs)
            }
            Endpoint::Unix(path) => self.bind_unix(path).map(|listener| vec![listener]),
        }
    }

    /// Listens with IPv4 and, where the machine has it, IPv6, on the same port.
    fn bind_both(&self, (v4, v6): (Ipv4Addr, Ipv6Addr), port: u16) -> io::Result<Vec<Listener>> {
        let options = ListenOptions {
            ipv6_only: true,
            ..self.clone()
        };
        let mut tries = if port == 0 { PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            let first = options.bind((v4, port).into())?;
            let Some(chosen) = first.local_addr()?.tcp() else {
                return Ok(vec![first]);
            };
            match options.bind((v6, chosen.port()).into()) {
                Ok(second) => return Ok(vec![first, second]),
                Err(_) if !has_ipv6() => return Ok(vec![first]),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn cannot_listen(addr: &Address, error: io::Error) -> io::Error {
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
