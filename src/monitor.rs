//! The monitor: a port that shows a loop's task table and its servers' counters. It runs in its own threads.
//!
//! It also answers while a task blocks the loop, and shows which task it is. It uses plain blocking sockets and
//! threads, and does not use the loop or its reactor.

mod health;
mod http;
mod json;
mod line;
mod request;
mod text;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use slab::Slab;

use self::line::read_line;
use self::request::{REQUEST_MAX, Request};
use crate::event_loop::task_table;
use crate::io_error;
use crate::report::lock;
use crate::task_table::TaskTable;

/// Maximum number of connections. When another one comes, the connection that has been silent longest is closed.
const CONNECTIONS: usize = 8;

/// How long a request may take, from its first byte to the end of its line and headers.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// How long a peer may take none of an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time until the next try if no connection can be accepted, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const HELP: &str = "\
ps      the tasks, longest poll first
stats   the servers' counters so far
health  ok, or why no connection should come here
help    this
quit    close this connection
GET / over HTTP is a page for browsers; GET /metrics is for Prometheus, GET /health for balancers.
";

/// Serves the running loop's task table and its servers' counters on `addr`, until the result is dropped.
///
/// For people (`nc 127.0.0.1 25001`, then `help`, or a browser), for Prometheus (`GET /metrics`) and for programs (`GET
/// /tasks.json`, `GET /stats.json`). `GET /health` is for load balancers: 200 when all servers of the loop accept
/// connections. It is 503, with the reason in a line, when a server drains or is about to
/// ([`lame_duck`](crate::Server::lame_duck)), when it is full and [rejects](crate::WhenFull::Reject), when a poll has
/// blocked the loop for 5 s, and when no server is running. Over HTTP the `Host` must be an IP address or `localhost`,
/// so that no other website can read the monitor through its own name. The task table is turned on: it contains the
/// main future, and the tasks and servers that are started after this call. The monitor changes nothing. But it has no
/// password, so `addr` should be a loopback address.
///
/// # Errors
///
/// `cannot monitor on ADDRESS: …` if the address cannot be bound or no thread can be started.
///
/// # Panics
///
/// Outside a running event loop.
pub fn serve(addr: impl Into<SocketAddr>) -> io::Result<Monitor> {
    let (addr, table) = (addr.into(), task_table());
    let start = || {
        let listener = TcpListener::bind(addr)?;
        let local_addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            listener,
            table,
            ended: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let monitor = Monitor {
            local_addr,
            shared: shared.clone(),
        };
        start_thread(move || shared.accept())?;
        Ok(monitor)
    };
    start().map_err(|error| io_error::explain(format_args!("cannot monitor on {addr}"), error))
}

/// A running monitor. Dropping it closes its port and its connections.
#[derive(Debug)]
#[must_use = "the monitor ends when it is dropped"]
pub struct Monitor {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Monitor {
    /// Where the monitor listens, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // Both calls wake the threads that wait on these sockets. They fail only if no thread waits.
        rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Both).ok();
        for (_, open) in lock(&self.shared.open).iter() {
            open.stream.shutdown(Shutdown::Both).ok();
        }
    }
}

#[derive(Debug)]
struct Shared {
    listener: TcpListener,
    table: TaskTable,
    ended: AtomicBool,
    open: Mutex<Slab<Open>>,
}

/// A connection that is open.
#[derive(Debug)]
struct Open {
    stream: Arc<TcpStream>,
    /// The time of its last request, or of its accept.
    heard: Instant,
    /// It was shut down, and its thread is about to end.
    gives_way: bool,
}

impl Shared {
    fn accept(self: &Arc<Self>) {
        loop {
            match self.listener.accept() {
                _ if self.ended.load(Ordering::Acquire) => return,
                // A connection for which there is no thread is closed.
                Ok((stream, _)) => drop(self.admit(stream)),
                Err(_) => thread::sleep(ACCEPT_PAUSE),
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream) -> io::Result<()> {
        let stream = Arc::new(stream);
        let mut open = lock(&self.open);
        // Checked under the lock: the drop of the monitor takes this lock to find the connections to close.
        if self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let staying = || open.iter().filter(|(_, open)| !open.gives_way);
        if staying().count() >= CONNECTIONS
            && let Some((key, _)) = staying().min_by_key(|(_, open)| open.heard)
        {
            open[key].stream.shutdown(Shutdown::Both).ok();
            open[key].gives_way = true;
        }
        let place = Place {
            shared: self.clone(),
            key: open.insert(Open {
                stream: stream.clone(),
                heard: Instant::now(),
                gives_way: false,
            }),
        };
        // Dropped with the thread's closure, also if no thread starts. So the lock must be free here.
        drop(open);
        start_thread(move || {
            // Errors here are errors of the peer's connection.
            converse(&stream, &place).ok();
        })
    }
}

/// A connection's place among those that are open.
struct Place {
    shared: Arc<Shared>,
    key: usize,
}

impl Place {
    /// Notes that a request has come.
    fn hear(&self) {
        lock(&self.shared.open)[self.key].heard = Instant::now();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.shared.open).remove(self.key);
    }
}

fn start_thread(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name("monitor".to_owned())
        .spawn(body)
        .map(drop)
}

/// Answers the requests of a connection until it closes. A person may think for a while between two requests.
fn converse(mut stream: &TcpStream, place: &Place) -> io::Result<()> {
    let table = &place.shared.table;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    loop {
        stream.set_read_timeout(None)?;
        if reader.fill_buf()?.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + REQUEST_TIME;
        let line = read_line(&mut reader, REQUEST_MAX, deadline)?;
        place.hear();
        match Request::parse(&line) {
            Request::Ps => stream.write_all(text::ps(&table.tasks()).as_bytes())?,
            Request::Stats => stream.write_all(text::stats(&table.servers()).as_bytes())?,
            Request::Health => {
                let health = health::health(table);
                stream.write_all(health::line(health).as_bytes())?;
            }
            Request::Help => stream.write_all(HELP.as_bytes())?,
            Request::Quit => return Ok(()),
            Request::Http(request) => {
                if !http::answer(&mut reader, &request, deadline, table)? {
                    return Ok(());
                }
            }
            Request::Unknown => stream.write_all(b"unknown request; try help\n")?,
            Request::Refused => {
                stream.write_all(b"refused: a request is a line of text of at most 255 bytes\n")?;
                return Ok(());
            }
        }
    }
}
