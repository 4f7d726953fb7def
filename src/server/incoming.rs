//! The accept loop: it handles accept errors, the connection limit and the shutdown.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::Stream;

use crate::connection::{Connection, Terms, Timeouts};
use crate::health::{Ailment, Health};
use crate::io_error;
use crate::time::{Sleep, sleep};

use super::accept::{AcceptError, Accepted, Listeners};
use super::candidate::Candidate;
use super::ending::{Ending, Stage};
use super::event::{Event, Record, WhenFull};
use super::farewell::Lingering;
use super::look::Look;
#[cfg(feature = "proxy-protocol")]
use super::proxy_protocol::Headers;
use super::trouble::Trouble;

/// Number of accepts (or accept errors) in a row before other tasks run.
const ACCEPT_BURST: u32 = 16;

/// How long a server without free file descriptors or memory waits for one of its connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// After this many errors in a row accept pauses, though each seems to concern one connection: think of a seccomp
/// filter.
const ERRORS_MAX: u32 = 100;

/// Maximum number of connections that are taken from the kernel's backlog when the server shuts down.
const LATE_MAX: usize = 4096;

/// A server's connections as a stream: the accept loop of [`Server::incoming`](crate::Server::incoming).
#[must_use = "streams do nothing unless they are polled"]
pub struct Incoming {
    listeners: Listeners,
    /// The state that the connections and the server share.
    terms: Rc<Terms>,
    lingering: Rc<Lingering>,
    max_connections: usize,
    when_full: WhenFull,
    /// Set while the connection limit is reached.
    full: Option<Trouble>,
    /// Set while there are no file descriptors or no memory for another connection.
    shortage: Option<Trouble>,
    retry: Option<Retry>,
    /// Connections that must send a PROXY header first.
    #[cfg(feature = "proxy-protocol")]
    headers: Option<Headers>,
    /// A connection over the limit that is about to be rejected.
    candidate: Option<Candidate>,
    /// Created when the first connection over the limit comes.
    look: Option<Rc<Look>>,
    ending: Ending,
    health: Option<Arc<Health>>,
    /// Connections that had come before the shutdown, and were not accepted by then.
    late: VecDeque<Accepted>,
    /// Number of connections accepted since other tasks last ran.
    burst: u32,
    /// Number of errors of single connections in a row.
    errors: u32,
    pub(super) record: Record,
}

/// The settings for a server's connections.
pub(super) struct Limits {
    pub(super) max_connections: usize,
    pub(super) when_full: WhenFull,
    pub(super) timeouts: Timeouts,
    #[cfg(feature = "proxy-protocol")]
    pub(super) header_timeout: Option<Duration>,
    pub(super) shutdown: Option<Pin<Box<dyn Future<Output = ()>>>>,
    pub(super) lame_duck: Duration,
    pub(super) health: Option<Arc<Health>>,
}

/// The time of the next try after a shortage.
struct Retry {
    at: Sleep,
    /// Number of file descriptors that had become free before the last try.
    closed_before: u64,
}

impl Incoming {
    pub(super) fn new(listeners: Listeners, limits: Limits, record: Record) -> Incoming {
        Incoming {
            listeners,
            terms: Rc::new(Terms::new(limits.timeouts)),
            lingering: Rc::default(),
            max_connections: limits.max_connections,
            when_full: limits.when_full,
            full: None,
            shortage: None,
            retry: None,
            #[cfg(feature = "proxy-protocol")]
            headers: limits.header_timeout.map(Headers::new),
            candidate: None,
            look: None,
            ending: Ending::new(limits.shutdown, limits.lame_duck),
            health: limits.health,
            late: VecDeque::new(),
            burst: 0,
            errors: 0,
            record,
        }
    }

    pub(super) fn lingering(&self) -> &Rc<Lingering> {
        &self.lingering
    }

    /// Number of connections that count towards the limit.
    pub(super) fn open(&self) -> usize {
        self.terms.open()
    }

    /// Number of connections that came before the shutdown and wait for a place.
    pub(super) fn late(&self) -> usize {
        self.late.len()
    }

    /// Ready when no new connections are accepted any more. Late connections may still wait for a place.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Poll::Ready(stage) = self.ending.poll(cx) {
            match stage {
                Stage::Drains => self.end(),
                Stage::LameDuck(duration) => {
                    self.note_health();
                    self.record.tell(&Event::LameDuck { duration });
                }
            }
        }
        if self.ending.has_ended() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Stops accepting, and notifies the connections.
    fn end(&mut self) {
        self.ending.end();
        self.note_health();
        self.late
            .extend(self.candidate.take().map(|candidate| candidate.accepted));
        // A client in the kernel's backlog has connected before the end, and may have sent data. An error counts as one
        // connection. If there is a shortage, the connections that stay in the backlog are reset.
        for _ in 0..LATE_MAX {
            match self.listeners.accept_queued() {
                Some(accepted) => self.late.extend(accepted),
                None => break,
            }
        }
        self.listeners.close();
        self.terms.close();
        if let Some(full) = self.full.take() {
            self.record.limit_cleared(&full);
        }
        if let Some(shortage) = self.shortage.take() {
            self.record.accept_resumed(&shortage);
        }
    }

    /// Rejects the late connections that have found no place, or have not sent their PROXY header.
    pub(super) async fn give_up_late(&mut self) {
        #[cfg(feature = "proxy-protocol")]
        if let Some(headers) = &mut self.headers {
            headers.give_up(&mut self.record).await;
        }
        while let Some(accepted) = self.late.pop_front() {
            self.record
                .rejected(&accepted.peer_addr, accepted.stream.as_ref().err());
        }
    }

    /// Notes for the monitor whether connections are welcome.
    fn note_health(&self) {
        if let Some(health) = &self.health {
            let is_full = self.when_full == WhenFull::Reject && !self.has_room();
            let full = is_full.then_some(Ailment::Full);
            health.set(self.ending.ailment().or(full));
        }
    }

    fn has_room(&self) -> bool {
        self.terms.open() < self.max_connections
    }

    /// Ready when a connection can be accepted, or has to be rejected.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            if let Some(full) = &mut self.full {
                full.is_gone();
                self.note_health();
            }
            return Poll::Ready(());
        }
        if self.full.is_none() {
            let (max_connections, when_full) = (self.max_connections, self.when_full);
            self.record.tell(&Event::LimitReached {
                max_connections,
                when_full,
            });
        }
        self.full.get_or_insert_with(Trouble::begin).is_back();
        match self.when_full {
            WhenFull::Reject => {
                if self.health.is_some() {
                    self.note_health();
                    // Nobody has to come for it to be noted that there is room.
                    self.terms.wake_at_next_end(cx.waker());
                }
                Poll::Ready(())
            }
            WhenFull::Wait => {
                self.terms.wake_at_next_end(cx.waker());
                Poll::Pending
            }
        }
    }

    /// Ready when it is time to accept, or to try again.
    fn poll_retry(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(retry) = &mut self.retry
            && self.terms.closed() == retry.closed_before
        {
            self.terms.wake_at_next_end(cx.waker());
            ready!(Pin::new(&mut retry.at).poll(cx));
        }
        self.retry = None;
        Poll::Ready(())
    }

    fn fall_short(&mut self, error: &io::Error) {
        if self.shortage.is_none() {
            self.record.tell(&Event::AcceptPaused { error });
        }
        let shortage = self.shortage.get_or_insert_with(Trouble::begin);
        shortage.is_back();
        shortage.count += 1;
        self.retry = Some(Retry {
            at: sleep(ACCEPT_PAUSE),
            closed_before: self.terms.closed(),
        });
    }

    fn recover(&mut self) {
        self.errors = 0;
        if let Some(shortage) = &mut self.shortage {
            shortage.is_gone();
        }
    }

    /// Reports that a limit or a shortage is over.
    fn tell_calm(&mut self, cx: &mut Context<'_>) {
        let mut is_over = |trouble: &mut Trouble| trouble.poll_over(cx).is_ready();
        if let Some(full) = self.full.take_if(&mut is_over) {
            self.record.limit_cleared(&full);
        }
        if let Some(shortage) = self.shortage.take_if(&mut is_over) {
            self.record.accept_resumed(&shortage);
        }
    }

    /// Makes a connection of what was accepted, if it could be, and need not say first for whom it comes.
    fn connect(&mut self, accepted: Accepted) -> Option<Connection> {
        let Accepted { peer_addr, stream } = accepted;
        let stream = stream.inspect_err(|error| self.record.rejected(&peer_addr, Some(error)));
        let connection = Connection::new(stream.ok()?, peer_addr, self.terms.clone());
        #[cfg(feature = "proxy-protocol")]
        if let Some(headers) = &mut self.headers {
            headers.wait_for(connection);
            return None;
        }
        Some(connection)
    }

    /// The next connection that has said for whom it comes. Ready with `None` if none has to.
    fn poll_introduced(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Connection>> {
        #[cfg(feature = "proxy-protocol")]
        if let Some(headers) = &mut self.headers {
            return headers.poll_next(_cx, &mut self.record);
        }
        Poll::Ready(None)
    }

    /// `None` if there are no sockets to poll, or no file descriptors for it.
    fn look(&mut self) -> Option<Rc<Look>> {
        if self.look.is_none() && self.listeners.has_sockets() {
            self.look = Look::new().ok().map(Rc::new);
        }
        self.look.clone()
    }

    fn reject(&mut self, accepted: &Accepted) {
        self.record
            .rejected(&accepted.peer_addr, accepted.stream.as_ref().err());
        if let Some(full) = &mut self.full {
            full.count += 1;
        }
    }

    /// Turns an accepted socket into a connection. `None` if the reactor could not watch the socket, or if it must send
    /// a PROXY header first.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Option<Connection>> {
        match self.poll_queued(cx) {
            Poll::Ready(Some(connection)) => Poll::Ready(Some(connection)),
            queued => match self.poll_introduced(cx) {
                Poll::Ready(None) => queued,
                introduced => introduced,
            },
        }
    }

    /// The next that waited in the kernel's queue until the shutdown, when there is room.
    fn poll_queued(&mut self, cx: &mut Context<'_>) -> Poll<Option<Connection>> {
        while !self.late.is_empty() {
            if !self.has_room() && self.when_full == WhenFull::Wait {
                self.terms.wake_at_next_end(cx.waker());
                return Poll::Pending;
            }
            let Some(accepted) = self.late.pop_front() else {
                break;
            };
            if !self.has_room() {
                self.reject(&accepted);
            } else if let Some(connection) = self.connect(accepted) {
                return Poll::Ready(Some(connection));
            }
        }
        Poll::Ready(None)
    }

    /// The connection over the limit, if a place is free now. Ready with `None` if there is no such connection, or it
    /// is rejected.
    fn poll_candidate(&mut self, cx: &mut Context<'_>) -> Poll<Option<Connection>> {
        let Some(candidate) = &mut self.candidate else {
            return Poll::Ready(None);
        };
        if self.terms.open() >= self.max_connections {
            ready!(candidate.poll_others(cx));
        }
        let accepted = self.candidate.take().map(|candidate| candidate.accepted);
        Poll::Ready(match accepted {
            Some(accepted) if self.has_room() => self.connect(accepted),
            Some(accepted) => {
                self.reject(&accepted);
                None
            }
            None => None,
        })
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Connection>>> {
        let this = &mut *self;
        if this.poll_ended(cx).is_ready() {
            return this.poll_late(cx).map(|connection| connection.map(Ok));
        }
        let next = this.poll_accept(cx);
        if next.is_pending() {
            this.tell_calm(cx);
        }
        next.map(Some)
    }
}

impl Incoming {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Connection>> {
        loop {
            if let Some(connection) = ready!(self.poll_candidate(cx)) {
                return Poll::Ready(Ok(connection));
            }
            if let Poll::Ready(Some(connection)) = self.poll_introduced(cx) {
                return Poll::Ready(Ok(connection));
            }
            ready!(self.poll_room(cx));
            ready!(self.poll_retry(cx));
            // The loop's other tasks must run even if errors come back at once, or a flood of connections arrives.
            if self.burst == ACCEPT_BURST {
                self.burst = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.burst += 1;
            let Poll::Ready(accepted) = self.listeners.poll_accept(cx) else {
                self.burst = 0;
                return Poll::Pending;
            };
            match accepted {
                Ok(accepted) => {
                    self.recover();
                    if !self.has_room() {
                        self.candidate = Some(Candidate::new(accepted, self.look()));
                    } else if let Some(connection) = self.connect(accepted) {
                        return Poll::Ready(Ok(connection));
                    }
                }
                Err(error) => match AcceptError::of(&error) {
                    AcceptError::Connection if self.errors < ERRORS_MAX => self.errors += 1,
                    AcceptError::Connection => self.fall_short(&error),
                    AcceptError::Resources => {
                        self.lingering.let_oldest_go();
                        self.fall_short(&error);
                    }
                    AcceptError::Listener => {
                        self.end();
                        let error = io_error::explain("cannot accept connections", error);
                        return Poll::Ready(Err(error));
                    }
                },
            }
        }
    }
}

/// The next connection that came before the shutdown, when there is a place for it.
impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("open", &self.terms.open())
            .finish_non_exhaustive()
    }
}
