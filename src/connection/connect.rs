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

use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::addr::SocketAddrArg;
use rustix::net::{self, AddressFamily, SocketAddrUnix, sockopt};
use smol::Async;

use crate::address::Address;
use crate::endpoint::{Endpoint, ToEndpoint};
use crate::io_error;
use crate::platform;
use crate::time::{self, sleep, timeout};

use super::Connection;
use super::stream::{Stream, output_state};

/// Time until the next try if the server's queue is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

impl Connection {
    /// Connects to an address in the forms of [`Server::bind`](crate::Server::bind): `"127.0.0.1:80"`, `"host:80"`,
    /// `"80"` (this machine), `"unix:/run/some.sock"` or any other [`Endpoint`].
    ///
    /// The addresses of a name are tried in turn. Each try lasts until the system gives up: about two minutes, and with
    /// a Unix socket never. For a limit, use [`connect_timeout`](Connection::connect_timeout).
    ///
    /// Like a server for accepted connections, this sets `TCP_NODELAY` and `SO_OOBINLINE` (urgent data is read in
    /// order). The connection has no timeout: see [`set_idle_timeout`](Connection::set_idle_timeout) and
    /// [`set_stall_timeout`](Connection::set_stall_timeout). Dropping the future cancels the attempt.
    ///
    /// With the feature `testing`, a name may stand for a server in memory (`testing::server_at`).
    ///
    /// # Errors
    ///
    /// `cannot connect to ADDRESS: …`, with the error kind of the last address, such as `ConnectionRefused`. The
    /// system's error is its `source`. Also if the address has none of the forms, or if the name is unknown.
    ///
    /// # Panics
    ///
    /// Outside a running event loop.
    pub async fn connect(to: impl ToEndpoint) -> io::Result<Connection> {
        Connection::connect_timeout(to, Duration::MAX).await
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
        connect_to(&endpoint, limit)
            .await
            .map_err(|error| io_error::explain(format_args!("cannot connect to {endpoint}"), error))
    }
}

async fn connect_to(endpoint: &Endpoint, limit: Duration) -> io::Result<Connection> {
    #[cfg(feature = "testing")]
    if let Some(connect) = IN_MEMORY.with_borrow(|servers| servers.get(endpoint).cloned()) {
        return timeout(limit, while_full(|| connect())).await?;
    }
    if let Endpoint::Unix(path) = endpoint {
        let stream = timeout(limit, connect_unix(path)).await??;
        let peer_addr = Address::Unix(Some(path.clone()));
        return Ok(Connection::new(stream, peer_addr, Rc::default()));
    }
    let deadline = time::later(time::now(), limit);
    let addrs = timeout(limit, endpoint.resolve()).await??;
    let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "there is no address");
    for (index, &addr) in addrs.iter().enumerate() {
        let left = deadline.saturating_duration_since(time::now());
        let share = left / (addrs.len() - index) as u32;
        match timeout(share, connect_tcp(addr)).await {
            Ok(Ok(stream)) => return Ok(Connection::new(stream, addr.into(), Rc::default())),
            Ok(Err(error)) => failed = error,
            Err(timed_out) => failed = timed_out.into(),
        }
    }
    Err(failed)
}

async fn connect_tcp(addr: SocketAddr) -> io::Result<Stream> {
    let socket = platform::stream_socket(addr.as_any().address_family())?;
    ioctl_fionbio(&socket, true)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_oobinline(&socket, true)?;
    match net::connect(&socket, &addr) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = Async::new_nonblocking(TcpStream::from(socket))?;
    // On the same machine the connection is already established, and there is no need to wait.
    if output_state(&stream).is_empty() {
        stream.writable().await?;
    }
    match stream.get_ref().take_error()? {
        Some(error) => Err(error),
        None => Ok(Stream::Tcp(Arc::new(stream))),
    }
}

async fn connect_unix(path: &Path) -> io::Result<Stream> {
    let socket = platform::stream_socket(AddressFamily::UNIX)?;
    ioctl_fionbio(&socket, true)?;
    sockopt::set_socket_oobinline(&socket, true).ok();
    let addr = SocketAddrUnix::new(path)?;
    // A Unix socket either connects at once, or the server's queue is full.
    while_full(|| Ok(net::connect(&socket, &addr)?)).await?;
    let stream = Async::new_nonblocking(UnixStream::from(socket))?;
    Ok(Stream::Unix(Arc::new(stream)))
}

/// Tries again while the server's queue is full. No event reports room in it.
async fn while_full<T>(mut connect: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match connect() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE_PAUSE).await,
            connected => return connected,
        }
    }
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
    drop(IN_MEMORY.with_borrow_mut(|servers| servers.insert(endpoint, connect)));
}
