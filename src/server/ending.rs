//! From the shutdown that was asked for to the drain.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use smol::Task;

use crate::event_loop::spawn_named;
use crate::health::Ailment;
use crate::time::{Sleep, sleep};

/// When a server takes nothing new any more: when it is told to shut down, or some time after that.
pub(super) struct Ending {
    /// Finishes when the server is to shut down. A task of its own, so that it is not polled at every accept.
    shutdown: Option<Task<()>>,
    /// For how long the server still accepts then.
    lame_duck: Duration,
    drain_at: Option<Sleep>,
    /// It takes nothing new any more.
    ended: bool,
}

/// Where a server is on its way to the drain.
pub(super) enum Stage {
    /// It was just told to shut down, and still accepts for so long.
    LameDuck(Duration),
    Drains,
}

impl Ending {
    pub(super) fn new(
        shutdown: Option<Pin<Box<dyn Future<Output = ()>>>>,
        lame_duck: Duration,
    ) -> Ending {
        Ending {
            shutdown: shutdown.map(|shutdown| spawn_named("shutdown", shutdown)),
            lame_duck,
            drain_at: None,
            ended: false,
        }
    }

    /// Ready with each stage once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Stage> {
        if let Some(shutdown) = &mut self.shutdown {
            ready!(Pin::new(shutdown).poll(cx));
            self.shutdown = None;
            if self.lame_duck.is_zero() {
                return Poll::Ready(Stage::Drains);
            }
            self.drain_at = Some(sleep(self.lame_duck));
            return Poll::Ready(Stage::LameDuck(self.lame_duck));
        }
        let Some(drain_at) = &mut self.drain_at else {
            return Poll::Pending;
        };
        ready!(Pin::new(drain_at).poll(cx));
        self.drain_at = None;
        Poll::Ready(Stage::Drains)
    }

    /// The server takes nothing new any more, for this or another reason.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// What balancers should know of it.
    pub(super) fn ailment(&self) -> Option<Ailment> {
        match self.drain_at {
            _ if self.ended => Some(Ailment::Draining),
            Some(_) => Some(Ailment::LameDuck),
            None => None,
        }
    }
}
