//! The monitor: a port that shows a loop's task table and its servers' counters, from a thread of its own.
//!
//! It answers while a task blocks the loop, and shows which: it uses plain blocking sockets and threads, and neither
//! the loop nor its reactor.

mod request;

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use slab::Slab;

use self::request::{REQUEST_MAX, Request};
use crate::event_loop::task_table;
use crate::io_error;
use crate::report::Report;
use crate::task_table::{TaskInfo, TaskState, TaskTable, lock};

/// How many connections the monitor has at most. More are closed at once.
const CONNECTIONS: usize = 8;

/// The most bytes of HTTP headers that are read, and thrown away.
const HEADERS_MAX: u64 = 16 * 1024;

/// How long a connection may be silent, and how long its peer may not read.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait before the next try when no connection can be accepted, for example for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const HELP: &str = "\
ps      the tasks, longest poll first
stats   the servers' counters so far
help    this
quit    close this connection
GET /metrics over HTTP answers in the Prometheus text format.
";

/// Serves the running loop's task table and its servers' counters on `addr`, until the result is dropped.
///
/// For people (`nc 127.0.0.1 25001`, then `help`) and for Prometheus (`GET /metrics`). The task table is on from now
/// on: it knows the main future, and the tasks and servers that are started after this call. The monitor reads, and
/// changes nothing; but it has no password, so `addr` should be a loopback address.
///
/// # Errors
///
/// `cannot monitor on ADDRESS: …` if the address cannot be bound or there is no thread to be had.
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
    start().map_err(|error| io_error::explain(format_args!("cannot monitor on {addr}"), &error))
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
        // Both wake the threads that wait on them. They fail only if there is nothing to wake.
        rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Both).ok();
        for (_, stream) in lock(&self.shared.open).iter() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

#[derive(Debug)]
struct Shared {
    listener: TcpListener,
    table: TaskTable,
    ended: AtomicBool,
    open: Mutex<Slab<Arc<TcpStream>>>,
}

impl Shared {
    fn accept(self: &Arc<Self>) {
        loop {
            match self.listener.accept() {
                _ if self.ended.load(Ordering::Acquire) => return,
                // A connection for which there is no place or no thread is closed.
                Ok((stream, _)) => drop(self.admit(stream)),
                Err(_) => thread::sleep(ACCEPT_PAUSE),
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream) -> io::Result<()> {
        let stream = Arc::new(stream);
        let mut open = lock(&self.open);
        // Looked at under the lock, by which whoever drops the monitor finds the connections to close.
        if open.len() == CONNECTIONS || self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let place = Place {
            shared: self.clone(),
            key: open.insert(stream.clone()),
        };
        // Dropped with the thread's closure, also when there is no thread: not under the lock.
        drop(open);
        start_thread(move || {
            // Its errors are its peer's.
            converse(&stream, &place.shared.table).ok();
        })
    }
}

/// A connection's place among those that are open.
struct Place {
    shared: Arc<Shared>,
    key: usize,
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

/// Answers the requests of one connection.
fn converse(mut stream: &TcpStream, table: &TaskTable) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        reader
            .by_ref()
            .take(REQUEST_MAX as u64)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        match Request::parse(&line) {
            Request::Ps => stream.write_all(ps(&table.tasks()).as_bytes())?,
            Request::Stats => stream.write_all(stats(&table.servers()).as_bytes())?,
            Request::Help => stream.write_all(HELP.as_bytes())?,
            Request::Quit => return Ok(()),
            Request::Http { path } => {
                // Unread headers would make the system throw the answer away.
                let mut headers = reader.take(HEADERS_MAX).split(b'\n').map_while(Result::ok);
                headers.any(|header| header.trim_ascii().is_empty());
                return answer_http(stream, path, table);
            }
            Request::Unknown => stream.write_all(b"unknown request; try help\n")?,
            Request::Refused => {
                stream.write_all(b"refused: a request is a line of text of at most 255 bytes\n")?;
                return Ok(());
            }
        }
    }
}

fn answer_http(mut stream: &TcpStream, path: &str, table: &TaskTable) -> io::Result<()> {
    let (status, body) = match path {
        "/metrics" => ("200 OK", metrics(&table.tasks(), &table.servers())),
        _ => ("404 Not Found", "the only page is /metrics\n".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The tasks as a table, aligned, at most [`COLUMNS`] wide.
fn ps(tasks: &[TaskInfo]) -> String {
    let header = COLUMNS.map(|(name, _)| name.to_owned());
    let rows: Vec<[String; COLUMNS.len()]> = std::iter::once(header)
        .chain(tasks.iter().map(row))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; COLUMNS.len()] =
        std::array::from_fn(|column| width(column).min(COLUMNS[column].1));
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // What is cut is the beginning: the end of a path tells more.
            let cut = cell.chars().count().saturating_sub(width);
            let shown: String = cell.chars().skip(cut).collect();
            write!(line, "{shown:<width$}  ").expect("a String takes everything");
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

/// The columns of [`ps`], with how wide they may get.
const COLUMNS: [(&str, usize); 11] = [
    ("ID", 8),
    ("STATE", 7),
    ("AGE", 9),
    ("POLLS", 9),
    ("BUSY", 9),
    ("LONGEST", 9),
    ("NAME", 16),
    ("PEER", 24),
    ("IN", 12),
    ("OUT", 12),
    ("SPAWNED AT", 32),
];

fn row(task: &TaskInfo) -> [String; COLUMNS.len()] {
    let connection = task.connection.as_ref();
    [
        task.id.to_string(),
        task.state.to_string(),
        format!("{:.1?}", task.age),
        task.polls.to_string(),
        format!("{:.1?}", task.busy),
        format!("{:.1?}", task.longest_poll),
        task.name
            .as_deref()
            .unwrap_or("-")
            .escape_debug()
            .to_string(),
        connection.map_or_else(|| "-".to_owned(), |connection| connection.peer_addr.clone()),
        connection.map_or_else(
            || "-".to_owned(),
            |connection| connection.bytes_in.to_string(),
        ),
        connection.map_or_else(
            || "-".to_owned(),
            |connection| connection.bytes_out.to_string(),
        ),
        format!("{}:{}", task.place.file(), task.place.line()),
    ]
}

fn stats(servers: &[(String, Report)]) -> String {
    let mut text = String::new();
    for (addrs, report) in servers {
        text.push_str(&format!("server {addrs}\n"));
        for (name, count) in report.counters() {
            text.push_str(&format!("{name:<17} {count}\n"));
        }
    }
    if text.is_empty() {
        text.push_str("no server is running\n");
    }
    text
}

/// Prometheus's text format, version 0.0.4:
/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
fn metrics(tasks: &[TaskInfo], servers: &[(String, Report)]) -> String {
    let mut text = String::from(
        "# HELP tinyloop_tasks Tasks of the event loop.\n# TYPE tinyloop_tasks gauge\n",
    );
    for state in [TaskState::Running, TaskState::Ready, TaskState::Waiting] {
        let count = tasks.iter().filter(|task| task.state == state).count();
        text.push_str(&format!("tinyloop_tasks{{state=\"{state}\"}} {count}\n"));
    }
    let longest = tasks
        .iter()
        .map(|task| task.longest_poll)
        .max()
        .unwrap_or_default();
    text.push_str(
        "# HELP tinyloop_longest_poll_seconds The longest poll of a task that is there.\n\
         # TYPE tinyloop_longest_poll_seconds gauge\n",
    );
    let (seconds, nanos) = (longest.as_secs(), longest.subsec_nanos());
    text.push_str(&format!(
        "tinyloop_longest_poll_seconds {seconds}.{nanos:09}\n"
    ));
    for (index, (name, _)) in Report::default().counters().iter().enumerate() {
        let metric = format!("tinyloop_{}", name.replace(' ', "_"));
        let (metric, kind) = match *name {
            "open" | "peak connections" => (metric, "gauge"),
            _ => (format!("{metric}_total"), "counter"),
        };
        text.push_str(&format!(
            "# HELP {metric} Of each server: {name}.\n# TYPE {metric} {kind}\n"
        ));
        for (addrs, report) in servers {
            let label = addrs.replace('\\', "\\\\").replace('"', "\\\"");
            text.push_str(&format!(
                "{metric}{{server=\"{label}\"}} {}\n",
                report.counters()[index].1
            ));
        }
    }
    text
}
