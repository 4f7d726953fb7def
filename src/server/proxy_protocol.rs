//! Behind a balancer: each connection begins with a header that says whose it is.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::Stream as _;

use crate::address::Address;
use crate::connection::proxy_header::{LOOKED_AT, Look, look};
use crate::connection::{Connection, Stream};
use crate::task_group::TaskGroup;
use crate::task_table::Label;
use crate::time::timeout;

use super::event::Record;

/// The connections whose header is awaited. Each has its place in the server, and a task until the header is there.
pub(super) struct Headers {
    timeout: Duration,
    /// From where they come, by their ids.
    awaited: BTreeMap<u64, Address>,
    tasks: TaskGroup<Introduced>,
}

/// A connection after its header, and whether that was one.
type Introduced = (Connection, io::Result<()>);

impl Headers {
    pub(super) fn new(timeout: Duration) -> Headers {
        Headers {
            timeout,
            awaited: BTreeMap::new(),
            tasks: TaskGroup::new(),
        }
    }

    /// Waits for a connection's header.
    pub(super) fn wait_for(&mut self, mut connection: Connection) {
        let patience = self.timeout;
        self.awaited.insert(connection.id(), connection.peer_addr());
        let label = Label {
            name: Some("PROXY header".into()),
            ..Label::new(Location::caller())
        };
        self.tasks.start(label, async move {
            let link = connection.link();
            let read = timeout(patience, read_header(link.stream())).await;
            drop(link);
            let introduced = match read {
                Ok(read) => read.map(|client| connection.introduce(client)),
                Err(_) => {
                    let words = format!("no PROXY header within {patience:?}");
                    Err(error(ErrorKind::TimedOut, &words))
                }
            };
            (connection, introduced)
        });
    }

    /// The next connection whose header is there; the others are rejected. Ready with `None` if no header is awaited.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        record: &mut Record,
    ) -> Poll<Option<Connection>> {
        while let Some((connection, introduced)) = ready!(Pin::new(&mut self.tasks).poll_next(cx)) {
            self.awaited.remove(&connection.id());
            match introduced {
                Ok(()) => return Poll::Ready(Some(connection)),
                Err(error) => record.rejected(&connection.peer_addr(), Some(&error)),
            }
        }
        Poll::Ready(None)
    }

    /// Rejects the connections whose header is still awaited, and waits until they are closed.
    pub(super) async fn give_up(&mut self, record: &mut Record) {
        self.tasks.cancel().await;
        let words = "no PROXY header before the server ended";
        let why = error(ErrorKind::TimedOut, words);
        for peer_addr in mem::take(&mut self.awaited).values() {
            record.rejected(peer_addr, Some(&why));
        }
    }
}

fn error(kind: ErrorKind, words: &str) -> io::Error {
    io::Error::new(kind, words)
}

/// Reads the header of a connection, and not a byte behind it. Returns for whom it comes, if it says so.
///
/// The bytes in the socket are looked at before they are taken. While the header is incomplete, all of them are its own
/// and are taken: the socket would stay readable with them, and nobody could wait for more.
async fn read_header(stream: &Stream) -> io::Result<Option<Address>> {
    let mut bytes = [0; LOOKED_AT];
    let mut taken = 0;
    let (length, client) = loop {
        let seen = receive(stream, || stream.peek(&mut bytes[taken..])).await?;
        let seen = taken + seen;
        match look(&bytes[..seen]) {
            Look::Incomplete => {
                taken += receive(stream, || stream.read(&mut bytes[taken..seen])).await?;
            }
            Look::Complete { length, client } => break (length, client),
            Look::Absent => return Err(error(ErrorKind::InvalidData, "no PROXY header")),
            Look::Wrong => {
                return Err(error(ErrorKind::InvalidData, "its PROXY header is wrong"));
            }
        }
    };
    while taken < length {
        let most = LOOKED_AT.min(length - taken);
        taken += receive(stream, || stream.read(&mut bytes[..most])).await?;
    }
    Ok(client.map(Address::Tcp))
}

/// Calls `call` until it receives something, and waits for input in between.
async fn receive(
    stream: &Stream,
    mut call: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match call() {
            Ok(0) => {
                let words = "it closed before its PROXY header";
                return Err(error(ErrorKind::UnexpectedEof, words));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll_fn(|cx| stream.poll_readable(cx)).await?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}
