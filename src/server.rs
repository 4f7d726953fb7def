//! The server: from listening sockets to a task for each connection, and to an orderly end.
//!
//! [`Incoming`] is the accept loop: what to do about errors, when there is no room, and when it is over. [`Server::serve`]
//! goes on from there: it runs a handler for each connection, counts how they end, and drains.

mod event;
mod listener;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_net::AsyncToSocketAddrs;
use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt, Stream};
use pin_project_lite::pin_project;
use rustix::io::Errno;
use smol::Task;

use crate::address::Address;
use crate::connection::{Connection, Link, State, Terms, Traffic};
use crate::event_loop::{self, spawn_named};
use crate::io_error;
use crate::task_group::TaskGroup;
use crate::task_table::{ConnectionLabel, Label, lock};
#[cfg(feature = "testing")]
use crate::testing::Queue;
use crate::time::{self, Sleep, sleep, timeout};

use listener::{Accepted, Listeners};

pub use event::{CloseReason, Event, Report};
pub use listener::Listener;

/// How many connections are accepted, or errors met, before the others on the loop have their turn.
const ACCEPT_BURST: u32 = 16;

/// How long a server that ran out of descriptors or memory waits for one of its connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// After how many errors in a row, each of them of a single connection as it seems, the server pauses all the same: so
/// many connections do not fail at once, but a filter of system calls fails for ever.
const ERRORS_MAX: u32 = 100;

/// How long a closed connection is read to its end, so that unread input does not make the system throw away what is
/// still on its way to the peer. A peer that closes too ends it at once.
const LINGER: Duration = Duration::from_secs(1);

/// A server: listeners, and what to do with the connections that they bring.
///
/// The [front page](crate) has one in ten lines.
#[must_use = "a server does nothing until it serves"]
pub struct Server {
    listeners: Vec<Listener>,
    local_addrs: Vec<Address>,
    /// Connections in memory, of a test.
    #[cfg(feature = "testing")]
    queue: Option<Rc<Queue>>,
    max_connections: usize,
    when_full: WhenFull,
    idle_timeout: Option<Duration>,
    stall_timeout: Option<Duration>,
    socket_buffers: Option<usize>,
    on_panic: OnPanic,
    shutdown: Option<Pin<Box<dyn Future<Output = ()>>>>,
    drain: Duration,
    observer: Option<Observer>,
}

type Observer = Box<dyn FnMut(&Event<'_>)>;

/// What a full server does with the next connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Leaves it to the kernel, which holds it in its queue until a place is free.
    #[default]
    Wait,
    /// Accepts it, closes it and counts it.
    Reject,
}

/// What a server does about a handler's panic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnPanic {
    /// Counts it. It ends its own connection only.
    #[default]
    Isolate,
    /// Cancels the other connections and goes on with the panic, out of [`Server::serve`].
    Propagate,
}

impl Server {
    /// Listens on every address that `addrs` resolves to, with a backlog of 4,096. Port 0 lets the system choose.
    ///
    /// From here on the kernel takes connections; they wait until the server serves.
    ///
    /// # Errors
    ///
    /// If one of the addresses cannot be bound (`cannot listen on ADDRESS: …`), or there is none.
    pub async fn bind(addrs: impl AsyncToSocketAddrs) -> io::Result<Server> {
        let addrs = addrs.to_socket_addrs().await?;
        let listeners = addrs.map(Listener::bind).collect::<io::Result<Vec<_>>>()?;
        Server::from_listeners(listeners)
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
    pub(crate) fn from_queue(queue: Rc<Queue>) -> Server {
        Server {
            queue: Some(queue),
            ..Server::new(Vec::new(), Vec::new())
        }
    }

    fn new(listeners: Vec<Listener>, local_addrs: Vec<Address>) -> Server {
        Server {
            listeners,
            local_addrs,
            #[cfg(feature = "testing")]
            queue: None,
            max_connections: usize::MAX,
            when_full: WhenFull::default(),
            idle_timeout: None,
            stall_timeout: None,
            socket_buffers: None,
            on_panic: OnPanic::default(),
            shutdown: None,
            drain: Duration::ZERO,
            observer: None,
        }
    }

    /// The addresses that the server listens on, with the ports that the system chose.
    pub fn local_addrs(&self) -> &[Address] {
        &self.local_addrs
    }

    /// Keeps at most `max` connections open. Without this there is no limit but the system's.
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

    /// Ends a connection's read with an error when nothing went in or out for `timeout`. Off by default.
    ///
    /// A connection whose write waits is not idle but stalled: see [`stall_timeout`](Server::stall_timeout).
    pub fn idle_timeout(mut self, timeout: Duration) -> Server {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Ends a connection's write with an error when the peer has read nothing for `timeout`. Off by default.
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

    /// The connections as a stream, for those who write their own loop.
    ///
    /// Errors of single connections, shortages, limits, timeouts and the shutdown are seen to as in
    /// [`serve`](Server::serve); a connection holds its place until it is dropped. The stream ends after the shutdown,
    /// and after an error, which means that a listener is broken. Draining is the caller's.
    ///
    /// Keep the stream until the connections have ended: without it, [`Connection::closing`] does not resolve, and
    /// quiet connections go on during a drain. It tells of no connection and counts none, but for those it rejects.
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
        #[cfg_attr(not(feature = "testing"), expect(unused_mut))]
        let mut listeners = Listeners::new(self.listeners, self.socket_buffers).map_err(watch)?;
        #[cfg(feature = "testing")]
        if let Some(queue) = self.queue {
            listeners.add_queue(queue);
        }
        let mut record = Record {
            observer: self.observer,
            report: Arc::default(),
        };
        if let Some(table) = event_loop::current("Server::incoming").table_if_on() {
            let addrs: Vec<String> = self.local_addrs.iter().map(Address::to_string).collect();
            table.add_server(addrs.join(" "), &record.report);
        }
        for addr in &self.local_addrs {
            record.tell(&Event::Listening { addr });
        }
        Ok(Incoming {
            listeners,
            terms: Rc::new(Terms::new(self.idle_timeout, self.stall_timeout)),
            max_connections: self.max_connections,
            when_full: self.when_full,
            full: false,
            shortage: None,
            shutdown: self
                .shutdown
                .map(|shutdown| spawn_named("shutdown", shutdown)),
            ended: false,
            quiet_ends: None,
            burst: 0,
            errors: 0,
            record,
        })
    }

    /// Accepts connections and runs `handler` in a task for each, until the shutdown and the drain are over.
    ///
    /// The handler's error or panic ends its own connection only. After a handler has returned, what it wrote is still
    /// delivered: the connection is half-closed and read to its end for up to a second.
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
        let mut connections = Connections::new(handler, place);

        let mut broken = None;
        loop {
            match next_step(&mut incoming, &mut connections).await {
                Step::Accepted(connection) => {
                    incoming
                        .record
                        .connected(&connection, connections.open() + 1);
                    connections.start(connection);
                }
                Step::Ended(ended) => incoming.record.closed(ended, on_panic),
                Step::Broken(error) => broken = Some(error),
                Step::ShutDown => break,
            }
        }

        let record = &mut incoming.record;
        if connections.open() > 0 {
            record.tell(&Event::Draining {
                connections: connections.open(),
                timeout: drain,
            });
        }
        let drained = timeout(drain, async {
            while let Some(ended) = connections.next_ended().await {
                record.closed(ended, on_panic);
            }
        });
        if drained.await.is_err() {
            for ended in connections.cancel().await {
                record.closed(ended, on_panic);
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
    Accepted(Connection),
    Ended(Ended),
    Broken(io::Error),
    ShutDown,
}

/// Waits for the next thing to see to. Connections that have ended come first, since they make room; there can only be
/// so many of them before their tasks run again.
async fn next_step<H: Handler>(incoming: &mut Incoming, connections: &mut Connections<H>) -> Step {
    poll_fn(|cx| {
        if let Poll::Ready(Some(ended)) = connections.poll_ended(cx) {
            return Poll::Ready(Step::Ended(ended));
        }
        Poll::Ready(match ready!(Pin::new(&mut *incoming).poll_next(cx)) {
            Some(Ok(connection)) => Step::Accepted(connection),
            Some(Err(error)) => Step::Broken(error),
            None => Step::ShutDown,
        })
    })
    .await
}

/// The bound of [`Server::serve`], under a name.
trait Handler: AsyncFn(Connection) -> io::Result<()> + 'static {}
impl<H: AsyncFn(Connection) -> io::Result<()> + 'static> Handler for H {}

/// The connections' tasks, and how those that have ended did so.
struct Connections<H> {
    shared: Rc<Shared<H>>,
    /// Where the server was started.
    place: &'static Location<'static>,
    tasks: TaskGroup<()>,
}

/// What the connections' tasks share with the server. One reference for all of it, since each of them holds one.
struct Shared<H> {
    handler: H,
    /// The connections that have ended and are not recorded yet.
    ended: RefCell<VecDeque<Ended>>,
}

impl<H: Handler> Connections<H> {
    fn new(handler: H, place: &'static Location<'static>) -> Connections<H> {
        let shared = Shared {
            handler,
            ended: RefCell::default(),
        };
        Connections {
            shared: Rc::new(shared),
            place,
            tasks: TaskGroup::new(),
        }
    }

    fn open(&self) -> usize {
        self.tasks.running()
    }

    /// Starts a connection's task: the handler, and an orderly close after it.
    fn start(&mut self, connection: Connection) {
        let ending = Ending {
            shared: self.shared.clone(),
            link: connection.link(),
            outcome: Cell::new(Outcome::Aborted),
        };
        self.tasks.spawn_now(self.label(&ending.link), async move {
            Isolated {
                handler: ending.call_handler(connection),
                outcome: &ending.outcome,
            }
            .await;
            if ending.needs_linger() {
                // Boxed, since few connections come here and all would hold the room for it.
                Box::pin(linger(ending.link.clone())).await;
                // If that has failed or timed out, it is nothing of the handler's.
                ending.link.reopen();
            }
        });
    }

    /// What the task table shows of a connection's task, if it is on.
    fn label(&self, link: &Rc<Link>) -> Label {
        let table_is_on = event_loop::current("Server::serve").table_if_on().is_some();
        let connection = table_is_on.then(|| {
            let (peer_addr, link) = (link.peer_addr().to_string(), Rc::downgrade(link));
            let traffic = move || link.upgrade().map(|link| link.traffic());
            ConnectionLabel {
                peer_addr,
                traffic: Box::new(traffic),
            }
        });
        Label {
            name: Some("connection".into()),
            place: self.place,
            connection,
        }
    }

    /// The next connection that has ended. Ready with `None` when none is open.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Option<Ended>> {
        loop {
            if let Some(ended) = self.shared.ended.borrow_mut().pop_front() {
                return Poll::Ready(Some(ended));
            }
            if ready!(Pin::new(&mut self.tasks).poll_next(cx)).is_none() {
                return Poll::Ready(None);
            }
        }
    }

    async fn next_ended(&mut self) -> Option<Ended> {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    /// Cancels all that are open. Returns all that have ended, these too.
    async fn cancel(&mut self) -> VecDeque<Ended> {
        self.tasks.cancel().await;
        self.shared.ended.take()
    }
}

pin_project! {
    /// A handler whose panics end here, and so does that of a value that it holds and that panics when it is dropped.
    /// async-task would end the process if it met one as it drops a task that is cancelled.
    struct Isolated<'o, F> {
        // None if there is none to poll, or no more.
        #[pin]
        handler: Option<F>,
        outcome: &'o Cell<Outcome>,
    }

    impl<F> PinnedDrop for Isolated<'_, F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let dropped = panic::catch_unwind(AssertUnwindSafe(|| this.handler.set(None)));
            if let Err(payload) = dropped {
                this.outcome.set(Outcome::Panicked(Box::new(payload)));
            }
        }
    }
}

impl<F: Future<Output = io::Result<()>>> Future for Isolated<'_, F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let Some(handler) = this.handler.as_pin_mut() else {
            return Poll::Ready(());
        };
        let outcome = match panic::catch_unwind(AssertUnwindSafe(|| handler.poll(cx))) {
            Ok(result) => Outcome::Returned(ready!(result)),
            Err(payload) => Outcome::Panicked(Box::new(payload)),
        };
        this.outcome.set(outcome);
        Poll::Ready(())
    }
}

/// Half-closes a connection and reads what its peer still sends, until the peer closes too.
async fn linger(link: Rc<Link>) {
    let mut connection = Connection::from(link);
    let mut unread = vec![0; 4096];
    let read_to_end = async {
        connection.close().await?;
        while connection.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    // A courtesy: when it fails or takes too long, the connection is closed all the same.
    timeout(LINGER, read_to_end).await.ok();
}

/// Lives as long as a connection's task and tells, when it is dropped, how the connection ended: so a task that is
/// cancelled is counted, too.
struct Ending<H> {
    shared: Rc<Shared<H>>,
    link: Rc<Link>,
    outcome: Cell<Outcome>,
}

/// What became of a handler.
enum Outcome {
    /// It was cancelled.
    Aborted,
    Returned(io::Result<()>),
    /// Boxed twice, since every connection has room for its outcome.
    Panicked(Box<Box<dyn Any + Send>>),
}

/// How a connection ended.
struct Ended {
    id: u64,
    peer_addr: Address,
    traffic: Traffic,
    reason: CloseReason,
    panic: Option<Box<dyn Any + Send>>,
}

impl<H: Handler> Ending<H> {
    /// Calls the handler. None if it panics before it has made its future.
    fn call_handler(&self, connection: Connection) -> Option<impl Future<Output = io::Result<()>>> {
        let call = AssertUnwindSafe(|| (self.shared.handler)(connection));
        match panic::catch_unwind(call) {
            Ok(handler) => Some(handler),
            Err(payload) => {
                self.outcome.set(Outcome::Panicked(Box::new(payload)));
                None
            }
        }
    }
}

impl<H> Ending<H> {
    /// Whether the handler has let go of a connection whose peer may still be sending.
    fn needs_linger(&self) -> bool {
        // A handler may also have passed the connection on: then it is its new owner's to close.
        Rc::strong_count(&self.link) == 1 && self.link.may_have_input()
    }
}

impl<H> Drop for Ending<H> {
    fn drop(&mut self) {
        let (reason, panic) = match self.outcome.replace(Outcome::Aborted) {
            Outcome::Aborted => (CloseReason::Aborted, None),
            Outcome::Panicked(payload) => (CloseReason::Panicked, Some(*payload)),
            Outcome::Returned(_) if self.link.state() == State::TimedOut => {
                (CloseReason::TimedOut, None)
            }
            Outcome::Returned(Ok(())) => (CloseReason::Completed, None),
            Outcome::Returned(Err(error)) => (CloseReason::Failed(error), None),
        };
        let ended = Ended {
            id: self.link.id(),
            peer_addr: self.link.peer_addr(),
            traffic: self.link.traffic(),
            reason,
            panic,
        };
        self.shared.ended.borrow_mut().push_back(ended);
    }
}

/// What a server tells: its events, and the sum of them.
struct Record {
    observer: Option<Observer>,
    /// Shared with the monitor's thread.
    report: Arc<Mutex<Report>>,
}

impl Record {
    fn report(&self) -> MutexGuard<'_, Report> {
        lock(&self.report)
    }

    fn tell(&mut self, event: &Event<'_>) {
        if let Some(observer) = &mut self.observer {
            observer(event);
        }
    }

    fn connected(&mut self, connection: &Connection, open: usize) {
        let mut report = self.report();
        report.accepted += 1;
        report.peak_connections = report.peak_connections.max(open);
        drop(report);
        self.tell(&Event::Connected {
            id: connection.id(),
            peer_addr: &connection.peer_addr(),
        });
    }

    fn rejected(&mut self, peer_addr: &Address, error: Option<&io::Error>) {
        self.report().rejected += 1;
        self.tell(&Event::Rejected { peer_addr, error });
    }

    fn closed(&mut self, ended: Ended, on_panic: OnPanic) {
        let Ended {
            id,
            peer_addr,
            traffic:
                Traffic {
                    bytes_in,
                    bytes_out,
                    duration,
                },
            reason,
            panic,
        } = ended;
        let mut report = self.report();
        *match reason {
            CloseReason::Completed => &mut report.completed,
            CloseReason::Failed(_) => &mut report.failed,
            CloseReason::TimedOut => &mut report.timed_out,
            CloseReason::Panicked => &mut report.panicked,
            CloseReason::Aborted => &mut report.aborted,
        } += 1;
        report.bytes_in += bytes_in;
        report.bytes_out += bytes_out;
        drop(report);
        self.tell(&Event::Closed {
            id,
            peer_addr: &peer_addr,
            reason: &reason,
            bytes_in,
            bytes_out,
            duration,
        });
        if let (OnPanic::Propagate, Some(payload)) = (on_panic, panic) {
            panic::resume_unwind(payload);
        }
    }
}

/// A server's connections as a stream: the accept loop of [`Server::incoming`].
#[must_use = "streams do nothing unless they are polled"]
pub struct Incoming {
    listeners: Listeners,
    /// What the connections know of their server, and it of them.
    terms: Rc<Terms>,
    max_connections: usize,
    when_full: WhenFull,
    /// The limit is reached, and that was told.
    full: bool,
    shortage: Option<Shortage>,
    /// Finishes when the server is to shut down. A task of its own, so that it is not polled at every accept.
    shutdown: Option<Task<()>>,
    ended: bool,
    /// During a drain, ends connections that are quiet. Held for its drop.
    quiet_ends: Option<Task<()>>,
    /// How many connections were accepted without a break.
    burst: u32,
    /// How many errors of connections there were in a row.
    errors: u32,
    record: Record,
}

/// A time without descriptors or memory for another connection.
struct Shortage {
    since: Instant,
    /// When to try again, if no connection of ours ends before.
    retry: Sleep,
    /// How many connections had ended before the last try.
    ended_before: u64,
}

impl Incoming {
    /// Ready when there is room for a connection, or the next is to be rejected.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.terms.open() < self.max_connections {
            self.full = false;
            return Poll::Ready(());
        }
        if !mem::replace(&mut self.full, true) {
            let (max_connections, when_full) = (self.max_connections, self.when_full);
            self.record.tell(&Event::LimitReached {
                max_connections,
                when_full,
            });
        }
        match self.when_full {
            WhenFull::Reject => Poll::Ready(()),
            WhenFull::Wait => {
                self.terms.wake_at_next_end(cx.waker());
                Poll::Pending
            }
        }
    }

    /// Ready when there is no shortage, or it is time for another try.
    fn poll_shortage(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(shortage) = &mut self.shortage else {
            return Poll::Ready(());
        };
        if self.terms.ended() > shortage.ended_before {
            return Poll::Ready(());
        }
        self.terms.wake_at_next_end(cx.waker());
        Pin::new(&mut shortage.retry).poll(cx)
    }

    fn fall_short(&mut self, error: &io::Error) {
        if self.shortage.is_none() {
            self.record.tell(&Event::AcceptPaused { error });
        }
        let since = self
            .shortage
            .as_ref()
            .map_or_else(time::now, |shortage| shortage.since);
        self.shortage = Some(Shortage {
            since,
            retry: sleep(ACCEPT_PAUSE),
            ended_before: self.terms.ended(),
        });
    }

    fn recover(&mut self) {
        self.errors = 0;
        if let Some(shortage) = self.shortage.take() {
            let paused = time::now().saturating_duration_since(shortage.since);
            self.record.tell(&Event::AcceptResumed { paused });
        }
    }

    /// Takes nothing new, and tells the connections.
    fn end(&mut self) {
        self.ended = true;
        self.listeners.close();
        self.terms.close();
        let quiet_ends = self.terms.clone().end_quiet_connections();
        self.quiet_ends = Some(spawn_named("drain", quiet_ends));
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Connection>>> {
        let this = &mut *self;
        if let Some(shutdown) = &mut this.shutdown
            && shutdown.poll(cx).is_ready()
        {
            this.shutdown = None;
            this.end();
        }
        while !this.ended {
            ready!(this.poll_room(cx));
            ready!(this.poll_shortage(cx));
            // Errors that come back at once, and a flood of connections, must let the loop's other tasks run.
            if this.burst == ACCEPT_BURST {
                this.burst = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            this.burst += 1;
            let Poll::Ready(accepted) = this.listeners.poll_accept(cx) else {
                this.burst = 0;
                return Poll::Pending;
            };
            match accepted {
                Ok(Accepted::Stream(stream, peer_addr)) => {
                    this.recover();
                    if !this.full {
                        let connection = Connection::new(stream, peer_addr, this.terms.clone());
                        return Poll::Ready(Some(Ok(connection)));
                    }
                    this.record.rejected(&peer_addr, None);
                }
                Ok(Accepted::Unwatchable(peer_addr, error)) => {
                    this.record.rejected(&peer_addr, Some(&error))
                }
                Err(error) => match AcceptError::of(&error) {
                    AcceptError::Connection if this.errors < ERRORS_MAX => this.errors += 1,
                    AcceptError::Connection => this.fall_short(&error),
                    AcceptError::Resources => this.fall_short(&error),
                    AcceptError::Listener => {
                        this.end();
                        return Poll::Ready(Some(Err(io_error::explain(
                            "cannot accept connections",
                            &error,
                        ))));
                    }
                },
            }
        }
        Poll::Ready(None)
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("open", &self.terms.open())
            .finish_non_exhaustive()
    }
}

/// What an error of `accept` is about, and so what to do.
#[derive(Debug, PartialEq)]
enum AcceptError {
    /// One connection, which failed before we had it: go on with the next.
    Connection,
    /// The process or the system, which has no descriptors or memory left: wait.
    Resources,
    /// The listener: it is over.
    Listener,
}

impl AcceptError {
    fn of(error: &io::Error) -> AcceptError {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                AcceptError::Resources
            }
            // PERM is a firewall's no. From NETDOWN on: Linux passes a pending error of the new socket's network on.
            // OPNOTSUPP could be one of these, too, but for ever comes from a socket that is not for accepting.
            Some(
                Errno::CONNABORTED
                | Errno::PROTO
                | Errno::PERM
                | Errno::INTR
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::NONET
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NOPROTOOPT
                | Errno::CONNRESET
                | Errno::TIMEDOUT,
            ) => AcceptError::Connection,
            _ => AcceptError::Listener,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_accept_has_its_case() {
        let case = |errno: Errno| AcceptError::of(&errno.into());
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(case(errno), AcceptError::Resources, "{errno:?}");
        }
        for errno in [
            Errno::CONNABORTED,
            Errno::PROTO,
            Errno::PERM,
            Errno::INTR,
            Errno::NETDOWN,
            Errno::HOSTUNREACH,
        ] {
            assert_eq!(case(errno), AcceptError::Connection, "{errno:?}");
        }
        for errno in [
            Errno::BADF,
            Errno::INVAL,
            Errno::NOTSOCK,
            Errno::OPNOTSUPP,
            Errno::FAULT,
        ] {
            assert_eq!(case(errno), AcceptError::Listener, "{errno:?}");
        }
        assert_eq!(
            AcceptError::of(&io::Error::other("no number")),
            AcceptError::Listener
        );
    }
}
