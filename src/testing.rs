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
use std::time::Duration;

use crate::connection::Connection;
use crate::connection::pipe::Pipe;
use crate::server::{Queue, QueueEnd, Server};
use crate::time::Timers;

pub use crate::connection::pipe::Faults;

/// A connection and its peer, in memory. The connection has `faults`, the peer has none.
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

/// Lets the test clock go on by `duration` at once, as when a task computes for so long, or the process is stopped. Timers
/// that are due by then fire in the loop's next turn, in the order of their deadlines.
///
/// Does nothing in a loop whose clock is the system's.
///
/// # Panics
///
/// Outside a running event loop.
pub fn advance(duration: Duration) {
    Timers::current_for("testing::advance").advance(duration);
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
