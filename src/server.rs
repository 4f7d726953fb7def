//! The server: it accepts connections, runs a task for each of them and shuts down gracefully.
//!
//! [`Incoming`] is the accept loop. It handles accept errors, the connection limit and the shutdown. [`Server::serve`]
//! runs a handler for each connection, counts how the connections end, and drains.

mod accept;
mod candidate;
mod connections;
mod ending;
mod event;
mod farewell;
mod incoming;
pub(crate) mod listener;
mod look;
#[cfg(feature = "proxy-protocol")]
mod proxy_protocol;
mod steps;
mod trouble;

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::Location;
use std::pin::Pin;
use std::time::Duration;

use crate::address::Address;
use crate::connection::{Connection, Timeouts};
use crate::endpoint::{Endpoint, ToEndpoint};
use crate::event_loop;
use crate::io_error;
use crate::report::{LiveReport, Report};
use crate::time::timeout;

use accept::Listeners;
use connections::{Connections, Handler};
use event::{Observer, Record};
use incoming::Limits;
use listener::{ConnectionOptions, max_connections};
use steps::{next_of_drain, next_step, see_to, settle};

#[cfg(feature = "testing")]
pub(crate) use accept::{Queue, QueueEnd};
pub use connections::OnPanic;
pub use event::{CloseReason, Event, WhenFull};
pub use incoming::Incoming;
pub use listener::Listener;

/// A TCP or Unix-socket server: its listening sockets and the settings for their connections.
///
/// The [front page](crate) has an example.
#[must_use = "a server does nothing until it serves"]
pub struct Server {
    listeners: Vec<Listener>,
    local_addrs: Vec<Address>,
    /// In-memory connections, for tests.
    #[cfg(feature = "testing")]
    queues: Vec<QueueEnd>,
    max_connections: usize,
    when_full: WhenFull,
    timeouts: Timeouts,
    socket_buffers: Option<usize>,
    on_panic: OnPanic,
    #[cfg(feature = "proxy-protocol")]
    header_timeout: Option<Duration>,
    shutdown: Option<Pin<Box<dyn Future<Output = ()>>>>,
    lame_duck: Duration,
    drain: Duration,
    observer: Option<Observer>,
    report: LiveReport,
}

impl Server {
    /// Listens on an address, or on every address of a name, with a backlog of 4,096. The address is `"127.0.0.1:80"`,
    /// `"host:80"`, `"80"` (loopback), `":80"` (all interfaces), `"unix:/run/some.sock"` or any other [`Endpoint`].
    /// With port 0 the system chooses the port.
    ///
    /// From this call on, the kernel accepts connections into the backlog. They wait there until you call `serve`.
    ///
    /// # Errors
    ///
    /// If an address cannot be bound (`cannot listen on ADDRESS: …`), if `to` contains no address, or if its text has
    /// none of the forms. If no thread can be started, which the look-up of a name needs.
    pub async fn bind(to: impl ToEndpoint) -> io::Result<Server> {
        let mut endpoint = to.to_endpoint()?;
        if let Endpoint::Name(..) = endpoint {
            let addrs = endpoint.resolve().await;
            let unknown =
                |error| io_error::explain(format_args!("cannot listen on {endpoint}"), error);
            endpoint = Endpoint::Ip(addrs.map_err(unknown)?);
        }
        Server::from_listeners(Listener::bind_endpoint(&endpoint)?)
    }

    /// Uses a socket that is already listening: a [`Listener`], or std's `TcpListener` or `UnixListener`.
    ///
    /// # Errors
    ///
    /// If the socket's local address cannot be read.
    pub fn from_listener(listener: impl Into<Listener>) -> io::Result<Server> {
        Server::from_listeners([listener.into()])
    }

    /// Uses several sockets that are already listening.
    ///
    /// # Errors
    ///
    /// If `listeners` is empty, or a socket's local address cannot be read.
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
            timeouts: Timeouts::default(),
            socket_buffers: None,
            on_panic: OnPanic::default(),
            #[cfg(feature = "proxy-protocol")]
            header_timeout: None,
            shutdown: None,
            lame_duck: Duration::ZERO,
            drain: Duration::ZERO,
            observer: None,
            report: LiveReport::default(),
        }
    }

    /// The addresses that the server listens on, with the ports that the system chose.
    pub fn local_addrs(&self) -> &[Address] {
        &self.local_addrs
    }

    /// Connection limit: at most `max` connections are open. The default is the file descriptor limit (`ulimit -n`,
    /// read when the server is created) minus 32 for listeners, standard streams and the like; at least 1.
    ///
    /// If handlers open file descriptors of their own, set a lower limit. A forwarder, for example, needs two for each
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

    /// What to do with connections over the limit. By default they wait in the backlog.
    pub fn when_full(mut self, when_full: WhenFull) -> Server {
        self.when_full = when_full;
        self
    }

    /// Idle timeout: ends a connection when no bytes went in or out for `timeout`. Off by default.
    ///
    /// A waiting read then fails with [`TimedOut`](io::ErrorKind::TimedOut), after one last check of the socket. If the
    /// handler continues after this error, the time starts again. A handler that waits for something else, and neither
    /// reads nor writes, is dropped a twentieth of the timeout later (at most 0.1 s) and counted as timed out.
    ///
    /// The time in which a handler computes without an `.await` counts, too; but if the handler then writes, the time
    /// starts again at the write. While a write waits for the peer, the connection counts as stalled, not as idle: see
    /// [`stall_timeout`](Server::stall_timeout).
    pub fn idle_timeout(mut self, timeout: Duration) -> Server {
        self.timeouts.idle = Some(timeout);
        self
    }

    /// Stall timeout: ends a connection whose peer takes none of the sent data for `timeout`. Off by default.
    ///
    /// A waiting write then fails with [`TimedOut`](io::ErrorKind::TimedOut). This may come up to a quarter later: the
    /// system's send buffer can grow while the write waits, which looks like progress. If no write waits, because all
    /// data fits into the kernel's buffers, the kernel ends a TCP connection after three times the timeout
    /// (`TCP_USER_TIMEOUT`), and the next read or write fails with the same error.
    ///
    /// The server sees the progress of a slow reader only when the reader's window opens, in steps that grow with its
    /// receive buffer. Measured on loopback with the system's own buffers: a peer that read 800 kB each time seven
    /// tenths of the timeout had passed was served, and a peer that read 200 kB each time was cut off.
    pub fn stall_timeout(mut self, timeout: Duration) -> Server {
        self.timeouts.stall = Some(timeout);
        self
    }

    /// Limits `SO_RCVBUF` and `SO_SNDBUF` of each TCP connection to this number of bytes; the kernel doubles the value
    /// for its own bookkeeping. By default the system chooses the sizes, up to megabytes for a peer that does not read.
    pub fn socket_buffers(mut self, bytes: usize) -> Server {
        self.socket_buffers = Some(bytes);
        self
    }

    /// Takes from each connection a header of the [PROXY
    /// protocol](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt), version 1 or 2, before its handler
    /// starts. The TCP address in the header becomes the
    /// [`peer_addr`](Connection::peer_addr), also in the events and the task table. If the header has none (`LOCAL`,
    /// `UNKNOWN`, a Unix socket's), the address is the socket's. The handler reads only the bytes behind the header.
    ///
    /// If the header is missing, wrong, or not complete after `header_timeout`, the connection is closed and counts as
    /// rejected. The protocol's specification advises 3 s or more, because TCP then has time to send a lost packet
    /// again. A connection that waits for its header counts as open.
    ///
    /// Everybody who reaches the listener can claim any address. So only the load balancer should reach it.
    #[cfg(feature = "proxy-protocol")]
    pub fn proxy_protocol(mut self, header_timeout: Duration) -> Server {
        self.header_timeout = Some(header_timeout);
        self
    }

    /// Graceful shutdown: begins when the future `shutdown` resolves, for example
    /// [`signal::shutdown()`](crate::signal::shutdown).
    ///
    /// First the listeners are closed, so new connections are refused. Then [`Connection::closing`] resolves for every
    /// connection, and idle echo connections end. Connections that are still open after the [drain](Server::drain) time
    /// are cancelled.
    pub fn shutdown_on(mut self, shutdown: impl Future<Output = ()> + 'static) -> Server {
        self.shutdown = Some(Box::pin(shutdown));
        self
    }

    /// How long the server still accepts connections after the [shutdown](Server::shutdown_on), before it closes the
    /// listeners and drains. By default it closes them at once.
    ///
    /// During this time the [monitor](crate::monitor) answers `/health` with 503. A load balancer that asks more often
    /// than that sends no client to a closed port.
    pub fn lame_duck(mut self, duration: Duration) -> Server {
        self.lame_duck = duration;
        self
    }

    /// Drain time: how long open connections may continue after the shutdown. By default they are cancelled at once.
    pub fn drain(mut self, timeout: Duration) -> Server {
        self.drain = timeout;
        self
    }

    /// What to do when a handler panics. By default only the handler's own connection ends.
    pub fn on_panic(mut self, on_panic: OnPanic) -> Server {
        self.on_panic = on_panic;
        self
    }

    /// Calls `observer` for each [`Event`], on the loop's thread. `observer` should not block. It replaces an earlier
    /// one.
    pub fn observe(mut self, observer: impl FnMut(&Event<'_>) + 'static) -> Server {
        self.observer = Some(Box::new(observer));
        self
    }

    /// The server's counters, which can be read while it runs. With [`Server::incoming`] they count only rejected
    /// connections.
    pub fn live_report(&self) -> LiveReport {
        self.report.clone()
    }

    /// The connections as a stream, for programs with a loop of their own.
    ///
    /// The stream handles errors of single connections, shortages, limits, timeouts and the shutdown like
    /// [`serve`](Server::serve). A connection counts towards the limit until you drop it. The stream ends after the
    /// shutdown, and after an error, which means that a listener is broken. Drain the open connections yourself.
    ///
    /// Keep the stream until the connections have ended: without it, [`Connection::closing`] does not resolve. After
    /// the shutdown the stream still yields the connections that came before. It reports and counts only the
    /// connections that it rejects.
    ///
    /// # Errors
    ///
    /// If the reactor cannot watch the listeners.
    ///
    /// # Panics
    ///
    /// Outside a running event loop.
    pub fn incoming(self) -> io::Result<Incoming> {
        let watch = |error| io_error::explain("cannot watch the listeners", error);
        let options = ConnectionOptions {
            buffer_size: self.socket_buffers,
            stall_timeout: self.timeouts.stall,
        };
        #[cfg_attr(not(feature = "testing"), expect(unused_mut))]
        let mut listeners = Listeners::new(self.listeners, options).map_err(watch)?;
        #[cfg(feature = "testing")]
        for queue in self.queues {
            listeners.add_queue(queue, options);
        }
        let mut record = Record::new(self.observer, self.report.clone());
        let mut health = None;
        if let Some(table) = event_loop::current("Server::incoming").table_if_on() {
            let addrs: Vec<String> = self.local_addrs.iter().map(Address::to_string).collect();
            let addrs = addrs.join(" ");
            health = Some(table.entered_servers().enter(addrs, self.report.shared()));
        }
        for addr in &self.local_addrs {
            record.tell(&Event::Listening { addr });
        }
        let limits = Limits {
            max_connections: self.max_connections,
            when_full: self.when_full,
            timeouts: self.timeouts,
            #[cfg(feature = "proxy-protocol")]
            header_timeout: self.header_timeout,
            shutdown: self.shutdown,
            lame_duck: self.lame_duck,
            health,
        };
        Ok(Incoming::new(listeners, limits, record))
    }

    /// Accepts connections and runs `handler` in a task for each of them, until the shutdown and the drain are over.
    ///
    /// A handler's error or panic ends only its own connection. How a connection ends depends on its handler:
    ///
    /// - It returned `Ok`: the connection no longer counts towards the limit. The peer gets all written data, as long
    ///   as it keeps reading; if it resets before that, the connection counts as failed. Then the connection is
    ///   half-closed. Up to 64 MiB of input are read and dropped, until the peer closes too, or is silent for the stall
    ///   timeout (if there is none: 30 s). A drain waits only a second, unless the handler has closed its half itself.
    /// - It returned an error: the peer has a second to read the written data. Then the connection is reset.
    /// - It panicked, or the idle timeout or the end of the drain cancelled it: the connection is reset.
    ///
    /// If a handler passed its connection on, the connection ends when the new owner drops it, and counts until then.
    ///
    /// A handler's panic runs the process's panic hook on the loop's thread. std's hook writes to stderr, and blocks
    /// while stderr is a full pipe. A program that must not block there sets its own hook (`std::panic::set_hook`).
    ///
    /// Dropping the future closes the listeners and cancels all connections.
    ///
    /// If a destructor in the handler panics, this counts as a panic of the handler, whether the handler has returned
    /// or is cancelled; the other connections continue. But if the destructor runs because of another panic, Rust
    /// aborts the process, as always.
    ///
    /// # Errors
    ///
    /// If a listening socket fails; the open connections are drained first. If the reactor cannot watch the listeners.
    ///
    /// # Panics
    ///
    /// Outside a running event loop; if the observer or the shutdown future panics; or if a handler panics under
    /// [`OnPanic::Propagate`].
    #[track_caller]
    pub fn serve<H>(self, handler: H) -> impl Future<Output = io::Result<Report>>
    where
        H: AsyncFn(Connection) -> io::Result<()> + 'static,
    {
        // The task table shows the caller's line as the place of the connections' tasks.
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
            incoming.give_up_late().await;
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
