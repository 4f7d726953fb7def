//! The server: accept errors, limits, timeouts, fairness, backpressure, isolation, events.

mod accept_errors;
pub(crate) mod backpressure;
mod endings;
mod events;
mod fairness;
pub(crate) mod incoming;
mod isolation;
mod limits;
mod patience;
mod timeouts;

use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use tinyloop::{Connection, Event, Server};

use crate::support::{DEADLINE, Served};

/// Serves `handler` as `configure` says, and hands on what the server tells.
fn observed<H>(
    configure: impl FnOnce(Server) -> Server + Send + 'static,
    handler: H,
) -> (Served, Receiver<String>)
where
    H: AsyncFn(Connection) -> io::Result<()> + Send + 'static,
{
    let (sender, events) = mpsc::channel();
    let observe = move |event: &Event<'_>| sender.send(describe(event)).unwrap_or_default();
    let served = Served::start(move |server| configure(server).observe(observe), handler);
    (served, events)
}

/// The event's line; of a closed connection without how long it was open.
fn describe(event: &Event<'_>) -> String {
    let line = event.to_string();
    match event {
        Event::Closed { .. } => line.rsplit_once(", ").unwrap().0.to_owned(),
        _ => line,
    }
}

/// Whether nothing comes in for `duration`, and the connection stays open.
pub(crate) fn is_silent_for(mut stream: &TcpStream, duration: Duration) -> bool {
    stream.set_read_timeout(Some(duration)).unwrap();
    let read = stream.read(&mut [0]);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Whether the connection ends, with an end of input or a reset, before anything comes in.
pub(crate) fn has_ended(mut stream: &TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}
