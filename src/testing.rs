//! For tests of handlers and servers, without ports and without waiting: in-memory connections that fail as real ones
//! do, drawn from a seed. With the feature `testing`.
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

use crate::connection::Connection;
use crate::connection::connect;
use crate::connection::pipe::Pipe;
use crate::server::{Queue, QueueEnd, Server};

pub use crate::connection::pipe::Faults;

/// A connection and its peer, in memory. The connection has `faults`, the peer has none. Each direction holds 64 KiB:
/// then a write waits for the other end to read.
pub fn pipe(faults: Faults) -> (Connection, Connection) {
    let (end, peer) = Pipe::pair(faults);
    (
        Connection::in_memory(end, Rc::default()),
        Connection::in_memory(peer, Rc::default()),
    )
}

/// A server in memory, and what connects to it.
pub fn server() -> (Server, Connector) {
    let queue = Rc::new(Queue::default());
    (
        Server::from_queue(QueueEnd(queue.clone())),
        Connector { queue },
    )
}

/// A server in memory that [`Connection::connect`] finds under `name`, such as `upstream:80`, on this thread from now on:
/// so a tool that connects can be tested as a whole. The connecting ends have `faults`.
///
/// A later server may have the same name. When the server is gone, connections are refused.
pub fn server_at(name: &str, faults: Faults) -> Server {
    let (server, Connector { queue }) = server();
    let queue = Rc::downgrade(&queue);
    let connect = move || {
        let queue = queue.upgrade().ok_or(io::ErrorKind::ConnectionRefused)?;
        let (end, peer) = Pipe::pair(faults.clone());
        queue.push(peer)?;
        Ok(Connection::in_memory(end, Rc::default()))
    };
    connect::set_in_memory(name, Rc::new(connect));
    server
}

/// Connects to the [`server`] that it came with.
#[derive(Clone)]
pub struct Connector {
    queue: Rc<Queue>,
}

impl Connector {
    /// Connects. The server's end has `faults`; the returned peer has none.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` if the server accepts no more.
    pub fn connect(&self, faults: Faults) -> io::Result<Connection> {
        let (end, peer) = Pipe::pair(faults);
        self.queue.push(end)?;
        Ok(Connection::in_memory(peer, Rc::default()))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
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
