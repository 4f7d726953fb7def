//! Outgoing connections.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
#[cfg(feature = "testing")]
use std::{cell::RefCell, collections::HashMap};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, sockopt};
use smol::Async;

use crate::address::Address;
use crate::endpoint::{Endpoint, ToEndpoint};
use crate::io_error;
use crate::platform;
use crate::time::{self, TimedOut, timeout};

use super::Connection;
use super::stream::{Stream, is_writable};

/// Time until the next try if the queue of a Unix socket is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

impl Connection {
    /// Connects to an address in the forms of [`Server::bind`](crate::Server::bind): `"127.0.0.1:80"`, `"host:80"`,
    /// `"80"` (this machine), `"unix:/run/some.sock"` or any other [`Endpoint`].
    ///
    /// The addresses of a name are tried in turn. Each try lasts until the system gives up (about two minutes). For a
    /// shorter limit, use [`connect_timeout`](Connection::connect_timeout).
    ///
    /// Like a server for accepted connections, this sets `TCP_NODELAY` and `SO_OOBINLINE` (urgent data is read in
    /// order). The connection has no timeout: see [`set_idle_timeout`](Connection::set_idle_timeout) and
    /// [`set_stall_timeout`](Connection::set_stall_timeout). Dropping the future cancels the attempt.
    ///
    /// With the feature `testing`, a name may stand for a server in memory (`testing::server_at`).
    ///
    /// # Errors
    ///
    /// `cannot connect to ADDRESS: …`, with the error kind of the last address, such as `ConnectionRefused`. Also if
    /// the address has none of the forms, or if the name is unknown.
    pub async fn connect(to: impl ToEndpoint) -> io::Result<Connection> {
        let endpoint = to.to_endpoint()?;
        connect_to(&endpoint, None)
            .await
            .map_err(|error| cannot_connect(&endpoint, &error))
    }

    /// Like [`connect`](Connection::connect), but with a limit of `limit` for the look-up of a name and all addresses.
    /// Each address gets an equal share of the time that is left.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Connection::connect), and `TimedOut`.
    ///
    /// # Panics
    ///
    /// Outside a running event loop.
    pub async fn connect_timeout(to: impl ToEndpoint, limit: Duration) -> io::Result<Connection> {
        let endpoint = to.to_endpoint()?;
        let connected = timeout(limit, connect_to(&endpoint, Some(limit))).await;
        let connected = connected.unwrap_or_else(|timed_out| Err(timed_out.into()));
        connected.map_err(|error| cannot_connect(&endpoint, &error))
    }
}

fn cannot_connect(endpoint: &Endpoint, error: &io::Error) -> io::Error {
    io_error::explain(format_args!("cannot connect to {endpoint}"), error)
}

async fn connect_to(endpoint: &Endpoint, limit: Option<Duration>) -> io::Result<Connection> {
    #[cfg(feature = "testing")]
    if let Some(connect) = in_memory(endpoint) {
        return connect();
    }
    if let Endpoint::Unix(path) = endpoint {
        let addr = Address::Unix(Some(path.clone()));
        return Ok(Connection::new(
            connect_unix(path).await?,
            addr,
            Rc::default(),
        ));
    }
    let deadline = limit.map(|limit| time::later(time::now(), limit));
    let addrs = endpoint.resolve().await?;
    let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "there is no address");
    for (index, &addr) in addrs.iter().enumerate() {
        let tried = match deadline {
            None => connect_tcp(addr).await,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(time::now());
                let share = left / (addrs.len() - index) as u32;
                let tried = timeout(share, connect_tcp(addr)).await;
                tried.unwrap_or_else(|TimedOut| Err(TimedOut.into()))
            }
        };
        match tried {
            Ok(stream) => return Ok(Connection::new(stream, addr.into(), Rc::default())),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn connect_tcp(addr: SocketAddr) -> io::Result<Stream> {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = platform::nonblocking_socket(family)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_oobinline(&socket, true)?;
    match net::connect(&socket, &addr) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = Async::new_nonblocking(TcpStream::from(socket))?;
    // On the same machine the connection is already established, and there is no need to wait.
    if !is_writable(&stream) {
        stream.writable().await?;
    }
    match stream.get_ref().take_error()? {
        Some(error) => Err(error),
        None => Ok(Stream::Tcp(Arc::new(stream))),
    }
}

async fn connect_unix(path: &Path) -> io::Result<Stream> {
    let socket = platform::nonblocking_socket(AddressFamily::UNIX)?;
    sockopt::set_socket_oobinline(&socket, true).ok();
    let addr = SocketAddrUnix::new(path)?;
    // A Unix socket either connects at once, or the server's queue is full. No event reports room in the queue.
    while let Err(error) = net::connect(&socket, &addr) {
        match error {
            Errno::AGAIN => smol::Timer::after(QUEUE_PAUSE).await,
            error => return Err(error.into()),
        };
    }
    let stream = Async::new_nonblocking(UnixStream::from(socket))?;
    Ok(Stream::Unix(Arc::new(stream)))
}

/// Connects to a server in memory.
#[cfg(feature = "testing")]
pub(crate) type Connect = Rc<dyn Fn() -> io::Result<Connection>>;

#[cfg(feature = "testing")]
thread_local! {
    /// The in-memory servers of this thread's loops.
    static IN_MEMORY: RefCell<HashMap<Endpoint, Connect>> = RefCell::default();
}

/// From now on, connections to `endpoint` on this thread go to a server in memory.
#[cfg(feature = "testing")]
pub(crate) fn set_in_memory(endpoint: Endpoint, connect: Connect) {
    let before = IN_MEMORY.with_borrow_mut(|servers| servers.insert(endpoint, connect));
    drop(before);
}

#[cfg(feature = "testing")]
fn in_memory(endpoint: &Endpoint) -> Option<Connect> {
    IN_MEMORY.with_borrow(|servers| servers.get(endpoint).cloned())
}
