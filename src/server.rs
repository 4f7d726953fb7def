//! The server: from listening sockets to a task for each connection, and to an orderly end.
//!
//! [`Incoming`] is the accept loop: what to do about errors, when there is no room, and when it is over. [`Server::serve`]
//! goes on from there: it runs a handler for each connection, counts how they end, and drains.

mod accept;
mod connections;
mod event;
mod farewell;
mod incoming;
mod listener;
mod look;
mod trouble;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{self, Location};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::Stream;

use crate::address::Address;
use crate::connection::Connection;
use crate::endpoint::{Endpoint, ToEndpoint};
use crate::event_loop;
use crate::io_error;
use crate::report::{LiveReport, Report};
use crate::time::timeout;

use accept::Listeners;
use connections::{Connections, EndedWithPanic, Handler};
use event::{Observer, Record};
use incoming::Limits;
use listener::{ConnectionOptions, max_connections};

#[cfg(feature = "testing")]
pub(crate) use accept::{Queue, QueueEnd};
pub use connections::OnPanic;
pub use event::{CloseReason, Event, WhenFull};
pub use incoming::Incoming;
pub use listener::Listener;

/// A server: listeners, and what to do with the connections that they bring.
///
/// The [front page](crate) has one in ten lines.
#[must_use = "a server does nothing until it serves"]
pub struct Server {
    listeners: Vec<Listener>,
    local_addrs: Vec<Address>,
    /// Connections in memory, of a test.
    #[cfg(feature = "testing")]
    queues: Vec<QueueEnd>,
    max_connections: usize,
    when_full: WhenFull,
    idle_timeout: Option<Duration>,
    stall_timeout: Option<Duration>,
    socket_buffers: Option<usize>,
    on_panic: OnPanic,
    shutdown: Option<Pin<Box<dyn Future<Output = ()>>>>,
    drain: Duration,
    observer: Option<Observer>,
    report: LiveReport,
}

impl Server {
    /// Listens on an address, or on every address of a name, with a backlog of 4,096: `"127.0.0.1:80"`, `"host:80"`,
    /// `"80"` (loopback), `":80"` (all interfaces), `"unix:/run/some.sock"`, and all that is an [`Endpoint`]. Port 0 lets
    /// the system choose.
    ///
    /// From here on the kernel takes connections; they wait until the server serves.
    ///
    /// # Errors
    ///
    /// If one of the addresses cannot be bound (`cannot listen on ADDRESS: …`), or there is none. If the address has
    /// none of the forms. If the system lets this process start no thread, which the look-up of a name needs.
    pub async fn bind(to: impl ToEndpoint) -> io::Result<Server> {
        let mut endpoint = to.to_endpoint()?;
        if let Endpoint::Name(..) = endpoint {
            let addrs = endpoint.resolve().await;
            let unknown =
                |error| io_error::explain(format_args!("cannot listen on {endpoint}"), &error);
            endpoint = Endpoint::Ip(addrs.map_err(unknown)?);
        }
        Server::from_listeners(Listener::bind_endpoint(&endpoint)?)
    }

    /// Serves a socket that listens already: a [`Listener`], or std's `TcpListener` or `UnixListener`.
    ///
    /// # Errors
    ///
    /// If the system does not tell the socket's address.
    pub fn from_listener(listener: impl Into<Listener>) -> io::Result<Server> {
        Server::from_listeners([listener.into()])
    }

    /// Serves several sockets that listen already.
    ///
    /// # Errors
    ///
    /// If there is none, or the system does not tell a socket's address.
    pub fn from_listeners(listeners: impl IntoIterator<Item = Listener>) -> io::Result<Server> {
        let listeners: Vec<Listener> = listeners.into_iter().collect();
        if listeners.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "there is no address to listen on",
            ));
        }
        let local_addrs = listeners
            .iter()
            .map(Listener::local_addr)
            .collect::<io::Result<_>>()?;
        Ok(Server::new(listeners, local_addrs))
    }

    #[cfg(feature = "testing")]
    pub(crate) fn from_queues(queues: Vec<QueueEnd>) -> Server {
        Server {
            queues,
            ..Server::new(Vec::new(), Vec::new())
        }
    }

    fn new(listeners: Vec<Listener>, local_addrs: Vec<Address>) -> Server {
        Server {
            max_connections: max_connections(&listeners),
            listeners,
            local_addrs,
            #[cfg(feature = "testing")]
            queues: Vec::new(),
            when_full: WhenFull::default(),
            idle_timeout: None,
            stall_timeout: None,
            socket_buffers: None,
            on_panic: OnPanic::default(),
            shutdown: None,
            drain: Duration::ZERO,
            observer: None,
            report: LiveReport::default(),
        }
    }

    /// The addresses that the server listens on, with the ports that the system chose.
    pub fn local_addrs(&self) -> &[Address] {
        &self.local_addrs
    }

    /// Keeps at most `max` connections open. By default that is the process's limit of descriptors (`ulimit -n`, as it is
    /// when the server is made) less 32, which are left for listeners, standard streams and the like; at least 1.
    ///
    /// If handlers open descriptors of their own, set a limit that leaves room for them: a forwarder has two for each
    /// connection, so half of the default.
    ///
    /// # Panics
    ///
    /// If `max` is zero.
    pub fn max_connections(mut self, max: usize) -> Server {
        assert!(
            max > 0,
            "a server that may hold no connection would serve nobody"
        );
        self.max_connections = max;
        self
    }

    /// What to do with connections over the limit; by default they wait.
    pub fn when_full(mut self, when_full: WhenFull) -> Server {
        self.when_full = when_full;
        self
    }

    /// Ends connections that are idle: nothing went in or out for `timeout`. Off by default.
    ///
    /// A read that waits then fails with [`TimedOut`](io::ErrorKind::TimedOut), after one last look at the socket. If the
    /// handler goes on all the same, the time counts anew. A handler that waits for something else, and neither reads nor
    /// writes, is dropped a twentieth of the timeout later (at most 0.1 s) and counted as timed out.
    ///
    /// The time in which a handler computes without an `await` counts too; but when it writes after that, the time
    /// counts from there. A connection whose write waits for the peer is not idle but stalled: see
    /// [`stall_timeout`](Server::stall_timeout).
    pub fn idle_timeout(mut self, timeout: Duration) -> Server {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Ends connections whose peer has taken nothing of what was sent for `timeout`. Off by default.
    ///
    /// A write that waits then fails with [`TimedOut`](io::ErrorKind::TimedOut). Where no write waits, because all fits
    /// into the kernel's buffers, the kernel ends a TCP connection after three times the timeout (`TCP_USER_TIMEOUT`),
    /// and the next read or write fails so.
    ///
    /// A peer that reads slowly is seen to take something when its window opens, in steps that grow with its receive
    /// buffer. Measured on loopback with the system's own buffers: a peer that read 300 kB in seven tenths of the timeout
    /// was served, one that read 200 kB was cut.
    pub fn stall_timeout(mut self, timeout: Duration) -> Server {
        self.stall_timeout = Some(timeout);
        self
    }

    /// Caps the kernel's buffers of each TCP connection, in bytes for each direction; the kernel doubles it for its own
    /// bookkeeping. By default the system sizes them as it sees fit, up to megabytes for a peer that does not read.
    pub fn socket_buffers(mut self, bytes: usize) -> Server {
        self.socket_buffers = Some(bytes);
        self
    }

    /// Ends the server in an orderly way when `shutdown` resolves, such as
    /// [`signal::shutdown()`](crate::signal::shutdown).
    ///
    /// First the listeners are closed, so that new connections are refused. Then [`Connection::closing`] resolves for
    /// every connection, and idle echo connections end. What is still open after the time to [drain](Server::drain)
    /// is cancelled.
    pub fn shutdown_on(mut self, shutdown: impl Future<Output = ()> + 'static) -> Server {
        self.shutdown = Some(Box::pin(shutdown));
        self
    }

    /// How long open connections may go on after the shutdown. By default they are cancelled at once.
    pub fn drain(mut self, timeout: Duration) -> Server {
        self.drain = timeout;
        self
    }

    /// What to do about a handler's panic; by default it ends its own connection only.
    pub fn on_panic(mut self, on_panic: OnPanic) -> Server {
        self.on_panic = on_panic;
        self
    }

    /// Calls `observer` for each [`Event`], on the loop's thread: it should not block.
    pub fn observe(mut self, observer: impl FnMut(&Event<'_>) + 'static) -> Server {
        self.observer = Some(Box::new(observer));
        self
    }

    /// The server's counters, which can be read while it runs. [`Server::incoming`] counts nothing but rejected
    /// connections.
    pub fn live_report(&self) -> LiveReport {
        self.report.clone()
    }

    /// The connections as a stream, for those who write their own loop.
    ///
    /// Errors of single connections, shortages, limits, timeouts and the shutdown are seen to as in
    /// [`serve`](Server::serve); a connection holds its place until it is dropped. The stream ends after the shutdown,
    /// and after an error, which means that a listener is broken. Draining is the caller's.
    ///
    /// Keep the stream until the connections have ended: without it, [`Connection::closing`] does not resolve. After the
    /// shutdown it still yields the connections that had come before. It tells of no connection and counts none, except
    /// those that it rejects.
    ///
    /// # Errors
    ///
    /// If the system cannot watch the listeners.
    ///
    /// # Panics
    ///
    /// Outside a running event loop.
    pub fn incoming(self) -> io::Result<Incoming> {
        let watch = |error| io_error::explain("cannot watch the listeners", &error);
        let options = ConnectionOptions {
            buffer_size: self.socket_buffers,
            stall_timeout: self.stall_timeout,
        };
        #[cfg_attr(not(feature = "testing"), expect(unused_mut))]
        let mut listeners = Listeners::new(self.listeners, options).map_err(watch)?;
        #[cfg(feature = "testing")]
        for queue in self.queues {
            listeners.add_queue(queue, options);
        }
        let mut record = Record::new(self.observer, self.report.clone());
        if let Some(table) = event_loop::current("Server::incoming").table_if_on() {
            let addrs: Vec<String> = self.local_addrs.iter().map(Address::to_string).collect();
            table.add_server(addrs.join(" "), self.report.shared());
        }
        for addr in &self.local_addrs {
            record.tell(&Event::Listening { addr });
        }
        let limits = Limits {
            max_connections: self.max_connections,
            when_full: self.when_full,
            idle_timeout: self.idle_timeout,
            stall_timeout: self.stall_timeout,
            shutdown: self.shutdown,
        };
        Ok(Incoming::new(listeners, limits, record))
    }

    /// Accepts connections and runs `handler` in a task for each, until the shutdown and the drain are over.
    ///
    /// The handler's error or panic ends its own connection only. How a connection ends depends on its handler:
    ///
    /// - It returned `Ok`: the connection gives up its place at once. The peer gets all that was written, for as long as it
    ///   goes on taking it; if it resets before that, the connection counts as failed. Then the connection is half-closed.
    ///   Up to 64 MiB of input are read and dropped, until the peer closes too, or is silent for the stall timeout
    ///   (without one: 30 s). A drain waits for a second only, unless the handler has closed its half itself.
    /// - It returned an error: the peer has a second to read what was written. Then the connection is reset.
    /// - It panicked, or was cancelled by the idle timeout or at the end of the drain: the connection is reset.
    ///
    /// A connection that the handler has passed on ends when it is dropped, and counts until then.
    ///
    /// A handler's panic runs the process's panic hook on the loop's thread. std's hook writes to stderr, and waits while
    /// that is a full pipe. A program that must not wait sets a hook of its own (`std::panic::set_hook`).
    ///
    /// Dropping the future closes the listeners and cancels all connections.
    ///
    /// A value in the handler that panics when it is dropped is a panic of the handler, too: its connection counts as
    /// panicked and the others go on, whether the handler has returned or is cancelled. But when it is another panic
    /// that drops the value, Rust ends the process, as it does everywhere.
    ///
    /// # Errors
    ///
    /// If the listener itself is broken; the open connections are drained first. If the system cannot watch the
    /// listeners.
    ///
    /// # Panics
    ///
    /// Outside a running event loop; by a panic of the observer or of the future to shut down on; and by a handler's
    /// panic under [`OnPanic::Propagate`].
    #[track_caller]
    pub fn serve<H>(self, handler: H) -> impl Future<Output = io::Result<Report>>
    where
        H: AsyncFn(Connection) -> io::Result<()> + 'static,
    {
        // Where the connections' tasks are from, as far as the caller is concerned.
        self.serve_from(handler, Location::caller())
    }

    async fn serve_from(
        self,
        handler: impl Handler,
        place: &'static Location<'static>,
    ) -> io::Result<Report> {
        let (drain, on_panic) = (self.drain, self.on_panic);
        let mut incoming = self.incoming()?;
        let mut connections = Connections::new(handler, place, incoming.lingering().clone());

        let mut broken = None;
        while let Some(step) = next_step(&mut incoming, &mut connections).await {
            broken = broken.or(see_to(step, &mut incoming, &mut connections, on_panic));
        }

        let open = incoming.open() + incoming.late();
        if open > 0 {
            incoming.record.tell(&Event::Draining {
                connections: open,
                timeout: drain,
            });
        }
        let drained = timeout(drain, async {
            while let Some(step) = next_of_drain(&mut incoming, &mut connections).await {
                see_to(step, &mut incoming, &mut connections, on_panic);
            }
        });
        if drained.await.is_err() {
            incoming.give_up_late();
            for ended in connections.cancel().await {
                settle(&mut incoming, ended, on_panic);
            }
        }
        let report = incoming.record.report().clone();
        broken.map_or(Ok(report), Err)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("local_addrs", &self.local_addrs)
            .finish_non_exhaustive()
    }
}

/// What [`Server::serve`] has to see to.
enum Step {
    Connected(Connection),
    Ended(EndedWithPanic),
    Broken(io::Error),
}

/// Waits for the next thing to see to. None when the server shuts down. Connections that have ended come first, since
/// they make room; there can only be so many of them before their tasks run again.
async fn next_step<H: Handler>(
    incoming: &mut Incoming,
    connections: &mut Connections<H>,
) -> Option<Step> {
    poll_fn(|cx| {
        if let Poll::Ready(Some(ended)) = connections.poll_ended(cx) {
            return Poll::Ready(Some(Step::Ended(ended)));
        }
        if incoming.poll_ended(cx).is_ready() {
            return Poll::Ready(None);
        }
        poll_connected(incoming, cx)
    })
    .await
}

/// The same during the drain. None when no connection is left.
async fn next_of_drain<H: Handler>(
    incoming: &mut Incoming,
    connections: &mut Connections<H>,
) -> Option<Step> {
    poll_fn(|cx| {
        let ended = connections.poll_ended(cx);
        if let Poll::Ready(Some(ended)) = ended {
            return Poll::Ready(Some(Step::Ended(ended)));
        }
        match poll_connected(incoming, cx) {
            Poll::Ready(None) => ended.map(|_| None),
            connected => connected,
        }
    })
    .await
}

fn poll_connected(incoming: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Step>> {
    let next = ready!(Pin::new(incoming).poll_next(cx));
    Poll::Ready(next.map(|next| next.map_or_else(Step::Broken, Step::Connected)))
}

/// Does what a step asks for. Returns the error of a listener that is broken.
fn see_to<H: Handler>(
    step: Step,
    incoming: &mut Incoming,
    connections: &mut Connections<H>,
    on_panic: OnPanic,
) -> Option<io::Error> {
    match step {
        Step::Connected(connection) => {
            let open = incoming.open();
            incoming.record.connected(&connection, open);
            connections.start(connection);
        }
        Step::Ended(ended) => settle(incoming, ended, on_panic),
        Step::Broken(error) => return Some(error),
    }
    None
}

/// Counts and tells how a connection ended, and goes on with its handler's panic if that is asked for.
fn settle(incoming: &mut Incoming, (ended, panic): EndedWithPanic, on_panic: OnPanic) {
    incoming.record.closed(&ended);
    if let (OnPanic::Propagate, Some(payload)) = (on_panic, panic) {
        panic::resume_unwind(payload);
    }
}
