//! A chat server: connections that talk to each other, without locks and without `Send`.
//!
//! ```console
//! $ cargo run --example chat             # or with an address: -- 127.0.0.1:7000
//! listening on 127.0.0.1:25000
//! ```
//!
//! In two or more other terminals:
//!
//! ```console
//! $ nc 127.0.0.1 25000
//! * you are 1, and 0 others are here
//! hello
//! 2: good morning
//! ```
//!
//! A peer that reads gets every line: if it is slow, the speakers wait. If it stops reading, the speakers wait once,
//! for a tenth of a second. Then the peer misses lines, and after half a minute its connection is closed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::env;
use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, FutureExt};
use smol::channel::{Receiver, Sender, bounded};
use tinyloop::{Connection, Server, signal, timeout, yield_now};

/// Maximum number of lines that wait for a peer.
const QUEUE: usize = 64;

/// How long a speaker waits for room in this queue, before the peer counts as not reading.
const PATIENCE: Duration = Duration::from_millis(100);

/// The longest line, in bytes. A longer one is passed on in pieces.
const LINE_MAX: u64 = 1024;

/// The peers in the room, by their numbers.
pub(crate) type Room = RefCell<HashMap<u64, Rc<Peer>>>;

pub(crate) struct Peer {
    lines: Sender<Rc<str>>,
    reads: Cell<bool>,
}

fn main() -> ExitCode {
    let addr = env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:25000".to_owned());
    match tinyloop::run(serve(addr)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(addr: String) -> io::Result<()> {
    let server = Server::bind(addr)
        .await?
        .max_connections(1000)
        .stall_timeout(Duration::from_secs(30))
        .socket_buffers(64 * 1024)
        .shutdown_on(signal::shutdown()?)
        .drain(Duration::from_secs(2));
    println!("listening on {}", server.local_addrs()[0]);
    let room = Rc::new(Room::default());
    let report = server
        .serve(async move |connection| chat(&room, connection).await)
        .await?;
    eprintln!("{report}");
    Ok(())
}

/// Serves a peer in the room: it speaks and listens at the same time, until it leaves or the server closes.
pub(crate) async fn chat(room: &Rc<Room>, connection: Connection) -> io::Result<()> {
    let (member, lines) = Member::enter(room, &connection);
    let closing = async {
        connection.closing().await;
        Ok(())
    };
    speak(&member, &connection)
        .or(listen(&lines, &connection))
        .or(closing)
        .await
}

/// Passes on the lines of the peer.
async fn speak(member: &Member, connection: &Connection) -> io::Result<()> {
    let mut input = BufReader::new(connection);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut input).take(LINE_MAX);
        if bounded.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let line = format!("{}: {}\n", member.number, printable(&line));
        member.say(line.into()).await;
        // If a peer sends many lines at once, this gives the others time to take them.
        yield_now().await;
    }
}

/// Writes the lines of the other peers.
async fn listen(lines: &Receiver<Rc<str>>, mut connection: &Connection) -> io::Result<()> {
    while let Ok(line) = lines.recv().await {
        connection.write_all(line.as_bytes()).await?;
    }
    Ok(())
}

/// A line as text that is harmless to a terminal: without escape sequences and bells.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line.trim_ascii_end());
    text.replace(|c: char| c.is_control(), "\u{fffd}")
}

/// A peer's entry in the room. Dropping it removes the peer, also after an error.
struct Member {
    number: u64,
    room: Rc<Room>,
}

impl Member {
    /// Enters the room. Returns the lines that are said there from now on.
    fn enter(room: &Rc<Room>, connection: &Connection) -> (Member, Receiver<Rc<str>>) {
        let (queue, lines) = bounded(QUEUE);
        let (number, others) = (connection.id(), room.borrow().len());
        let greeting = format!("* you are {number}, and {others} others are here\n");
        // A new queue has room.
        queue.try_send(greeting.into()).ok();
        let member = Member {
            number,
            room: room.clone(),
        };
        member.tell_others(&format!("* {number} is here\n"));
        let peer = Peer {
            lines: queue,
            reads: Cell::new(true),
        };
        room.borrow_mut().insert(number, Rc::new(peer));
        (member, lines)
    }

    /// Passes a line on to the others. Waits for peers that read slowly.
    async fn say(&self, line: Rc<str>) {
        for other in self.others() {
            if other.lines.try_send(line.clone()).is_ok() {
                other.reads.set(true);
            } else if other.reads.get() {
                let sent = timeout(PATIENCE, other.lines.send(line.clone())).await;
                other.reads.set(sent.is_ok());
            }
        }
    }

    /// Tells the others without waiting. A peer with a full queue misses the line.
    fn tell_others(&self, news: &str) {
        let news: Rc<str> = news.into();
        for other in self.others() {
            other.lines.try_send(news.clone()).ok();
        }
    }

    fn others(&self) -> Vec<Rc<Peer>> {
        let room = self.room.borrow();
        let others = room.iter().filter(|&(&number, _)| number != self.number);
        others.map(|(_, peer)| peer.clone()).collect()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.room.borrow_mut().remove(&self.number);
        self.tell_others(&format!("* {} has left\n", self.number));
    }
}
