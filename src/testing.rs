//! For tests of handlers and servers, without ports and without waiting: in-memory connections that fail as real ones
//! do, drawn from a seed. With the feature `testing`.
//!
//! They behave as Linux's sockets: a [`Wire`] says of which kind, with buffers of which sizes, how far apart and how
//! fast.
//!
//! Together with [`EventLoop::with_test_clock`](crate::EventLoop::with_test_clock), a test of an hour's timeout takes
//! no time:
//!
//! ```
//! use std::time::Duration;
//! use futures_lite::{AsyncReadExt, AsyncWriteExt};
//! use tinyloop::testing::{Faults, pipe};
//!
//! tinyloop::EventLoop::with_test_clock().unwrap().run(async {
//!     let (connection, mut peer) = pipe(Faults::from_seed(42));
//!     let handler = tinyloop::spawn(async move { tinyloop::echo(connection, b"").await });
//!     tinyloop::sleep(Duration::from_secs(3600)).await;
//!     peer.write_all(b"late").await.unwrap();
//!     peer.close().await.unwrap();
//!     let mut reply = Vec::new();
//!     peer.read_to_end(&mut reply).await.unwrap();
//!     assert_eq!(reply, b"late");
//!     handler.await.unwrap();
//! });
//! ```

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use crate::address::Address;
use crate::connection::Connection;
use crate::connection::connect;
use crate::connection::pipe::Pipe;
use crate::executor;
use crate::server::{Queue, QueueEnd, Server};
use crate::time::Timers;

pub use crate::connection::pipe::Faults;
pub use crate::connection::wire::Wire;

/// A connection and its peer, in memory, as over [`Wire::tcp`]. The connection has `faults`, the peer has none.
pub fn pipe(faults: Faults) -> (Connection, Connection) {
    pipe_over(Wire::tcp(), faults)
}

/// Like [`pipe`], over another wire.
pub fn pipe_over(wire: Wire, faults: Faults) -> (Connection, Connection) {
    let (end, peer) = Pipe::pair(wire, faults);
    (Connection::in_memory(end), Connection::in_memory(peer))
}

/// A server in memory, and what connects to it.
pub fn server() -> (Server, Connector) {
    let (server, [connector]) = server_on();
    (server, connector)
}

/// A server in memory that has `N` listeners, and what connects to each.
pub fn server_on<const N: usize>() -> (Server, [Connector; N]) {
    let connectors = [(); N].map(|()| Connector {
        queue: Rc::default(),
    });
    let ends = connectors.iter().map(|to| QueueEnd(to.queue.clone()));
    (Server::from_queues(ends.collect()), connectors)
}

/// A server in memory that [`Connection::connect`] finds under `name`, such as `upstream:80`, on this thread from now
/// on. So a whole tool can be tested. The connecting ends have `faults`. A connect waits only while the queue is full.
///
/// The name is an [`Endpoint`](crate::Endpoint), and a connect finds the server if its endpoint is equal: `"80"`
/// differs from `":80"` and `"localhost:80"`. Connects to other endpoints leave the memory. A later server may have
/// the same name. When the server is gone, connections are refused: so drop one at once to test that nothing listens.
///
/// # Panics
///
/// If the name is no endpoint.
pub fn server_at(name: &str, faults: Faults) -> Server {
    server_at_over(name, Wire::tcp(), faults)
}

/// Like [`server_at`], over another wire.
pub fn server_at_over(name: &str, wire: Wire, faults: Faults) -> Server {
    let (server, Connector { queue }) = server();
    let queue = Rc::downgrade(&queue);
    let connect = move || {
        let queue = queue.upgrade().ok_or(io::ErrorKind::ConnectionRefused)?;
        let (end, peer) = Pipe::pair(wire.clone(), faults.clone());
        queue.push(peer)?;
        Ok(Connection::in_memory(end))
    };
    let endpoint = name.parse().unwrap_or_else(|error| panic!("{error}"));
    connect::set_in_memory(endpoint, Rc::new(connect));
    server
}

/// Connects to the [`server`] that it came with.
#[derive(Clone)]
pub struct Connector {
    queue: Rc<Queue>,
}

impl Connector {
    /// Connects as over [`Wire::tcp`]. The server's end has `faults`; the returned peer has none.
    ///
    /// The connection waits in the listener's queue until the server accepts it. A listener that closes resets those
    /// that wait. The connection takes its server's options: timeouts, and the sizes of the server's buffers.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` if the server accepts no more. `WouldBlock` if the queue is full.
    pub fn connect(&self, faults: Faults) -> io::Result<Connection> {
        self.connect_over(Wire::tcp(), faults)
    }

    /// Like [`connect`](Connector::connect), over another wire.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn connect_over(&self, wire: Wire, faults: Faults) -> io::Result<Connection> {
        self.connect_from(Address::Unknown, wire, faults)
    }

    /// Like [`connect_over`](Connector::connect_over), from an address: the server's end has it as its
    /// [`peer_addr`](Connection::peer_addr). Otherwise that is [`Address::Unknown`].
    ///
    /// # Errors
    ///
    /// The same.
    pub fn connect_from(
        &self,
        from: Address,
        wire: Wire,
        faults: Faults,
    ) -> io::Result<Connection> {
        let (mut end, peer) = Pipe::pair(wire, faults);
        end.set_peer_addr(from);
        self.queue.push(end)?;
        Ok(Connection::in_memory(peer))
    }

    /// Lets the server's next `count` accepts fail with the system's error of the number `errno`, after those that are
    /// to fail already: 24 (`EMFILE`), 103 (`ECONNABORTED`). Connections stay in the queue.
    pub fn fail_accepts(&self, errno: i32, count: u64) {
        let error = Errno::from_raw_os_error(errno);
        self.queue.fail_accepts(error, count);
    }

    /// How many connections the server may hold, after which an accept fails with `EMFILE`. Without a limit at first.
    /// A descriptor is free again when the server has closed its connection.
    pub fn limit_descriptors(&self, most: usize) {
        self.queue.limit_descriptors(most);
    }

    /// How many connections may wait to be accepted: 4,096 at first. As on Linux, one more finds room.
    pub fn set_backlog(&self, connections: usize) {
        self.queue.set_backlog(connections);
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// Lets the test clock go on by `duration` at once, as when a task computes for so long, or the process is stopped.
/// Timers that are due by then fire in the loop's next turn, in the order of their deadlines.
///
/// Does nothing in a loop whose clock is the system's.
///
/// # Panics
///
/// Outside a running event loop.
pub fn advance(duration: Duration) {
    Timers::current_for("testing::advance").advance(duration);
}

/// How many tasks the running loop has. The main future is one, and a task that was cancelled is one until its next
/// turn.
///
/// With this and [`timers`] a test can tell whether a handler leaves something behind.
pub fn tasks() -> usize {
    executor::tasks()
}

/// How many timers somebody waits for in the running loop.
///
/// # Panics
///
/// Outside a running event loop.
pub fn timers() -> usize {
    Timers::current_for("testing::timers").waiting()
}

/// A listener and its connections without a server: the system calls alone, for the test that compares them with
/// Linux's.
#[doc(hidden)]
pub struct RawListener {
    queue: Rc<Queue>,
    end: Option<QueueEnd>,
}

#[doc(hidden)]
impl RawListener {
    pub fn new(backlog: usize) -> RawListener {
        let queue = Rc::new(Queue::default());
        queue.set_backlog(backlog);
        let end = Some(QueueEnd(queue.clone()));
        RawListener { queue, end }
    }

    pub fn connect(&self, wire: Wire) -> io::Result<RawSocket> {
        let (end, peer) = Pipe::pair(wire, Faults::none());
        self.queue.push(end)?;
        Ok(RawSocket(peer))
    }

    pub fn accept(&self) -> io::Result<RawSocket> {
        self.queue.accept().map(RawSocket)
    }

    pub fn close(&mut self) {
        self.end = None;
    }
}

/// One end of a connection, with the system calls alone.
#[doc(hidden)]
pub struct RawSocket(Pipe);

#[doc(hidden)]
impl RawSocket {
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    pub fn shutdown_write(&self) -> io::Result<()> {
        self.0.shutdown_write()
    }

    pub fn reset(&self) {
        self.0.reset();
    }

    /// What `poll` tells, as its bits.
    pub fn events(&self) -> u16 {
        // Its type differs between backends of rustix.
        u16::from_ne_bytes(self.0.events().bits().to_ne_bytes())
    }
}

impl fmt::Debug for RawListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawListener").finish_non_exhaustive()
    }
}

impl fmt::Debug for RawSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawSocket").finish_non_exhaustive()
    }
}

/// Calls `test` with each seed. A panic names the seed that it came with, which replays it.
///
/// # Panics
///
/// If `test` does.
pub fn for_each_seed(seeds: Range<u64>, mut test: impl FnMut(u64)) {
    for seed in seeds {
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| test(seed))) {
            panic!("with seed {seed}: {}", message(&*payload));
        }
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
}
