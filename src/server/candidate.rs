//! A connection over the limit, for which a place may become free.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::FutureExt;
use smol::Task;

use crate::event_loop::spawn_named;
use crate::executor;
use crate::time::sleep;

use super::accept::Accepted;
use super::look::Look;

/// A connection over the limit. Before it is rejected, all who are ready run once: one of them may be about to end, by
/// a peer that has closed its old connection before it made this one.
pub(super) struct Candidate {
    pub(super) accepted: Accepted,
    others: Task<()>,
}

impl Candidate {
    /// `look` is for the look at the sockets, if there are any.
    pub(super) fn new(accepted: Accepted, look: Option<Rc<Look>>) -> Candidate {
        Candidate {
            accepted,
            others: spawn_named("accept", let_others_end(look)),
        }
    }

    /// Ready when all others have run.
    pub(super) fn poll_others(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.others.poll(cx)
    }
}

/// Lets those run who may be about to end, after a look at the sockets: one poll to yield before the read, and one to
/// read the end.
async fn let_others_end(look: Option<Rc<Look>>) {
    if let Some(look) = look {
        look.taken().await.ok();
    }
    for _ in 0..2 {
        sleep(Duration::from_nanos(1)).await;
        executor::last_turn().await;
    }
}
