//! The accept loop: what to do about errors, when there is no room, and when it is over.

use std::fmt;
use std::future::Future;
use std::io;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_lite::{FutureExt, Stream};
use rustix::io::Errno;
use smol::Task;

use crate::connection::{Connection, Terms};
use crate::event_loop::spawn_named;
use crate::io_error;
use crate::time::{self, Sleep, sleep};

use super::accept::{Accepted, Listeners};
use super::event::{Event, Record, WhenFull};

/// How many connections are accepted, or errors met, before the others on the loop have their turn.
const ACCEPT_BURST: u32 = 16;

/// How long a server that ran out of descriptors or memory waits for one of its connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// After how many errors in a row, each of them of a single connection as it seems, the server pauses all the same: so
/// many connections do not fail at once, but a filter of system calls fails for ever.
const ERRORS_MAX: u32 = 100;

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
    pub(super) record: Record,
}

/// What a server was told of its connections, for the accept loop.
pub(super) struct Limits {
    pub(super) max_connections: usize,
    pub(super) when_full: WhenFull,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) stall_timeout: Option<Duration>,
    pub(super) shutdown: Option<Pin<Box<dyn Future<Output = ()>>>>,
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
    pub(super) fn new(listeners: Listeners, limits: Limits, record: Record) -> Incoming {
        Incoming {
            listeners,
            terms: Rc::new(Terms::new(limits.idle_timeout, limits.stall_timeout)),
            max_connections: limits.max_connections,
            when_full: limits.when_full,
            full: false,
            shortage: None,
            shutdown: limits
                .shutdown
                .map(|shutdown| spawn_named("shutdown", shutdown)),
            ended: false,
            quiet_ends: None,
            burst: 0,
            errors: 0,
            record,
        }
    }

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
