//! What [`Server::serve`](crate::Server::serve) does, step by step: a connection has come, another has ended.

use std::future::poll_fn;
use std::io;
use std::panic;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_lite::Stream;

use crate::connection::Connection;

use super::connections::{Connections, EndedWithPanic, Handler, OnPanic};
use super::incoming::Incoming;

/// What [`Server::serve`] has to see to.
pub(super) enum Step {
    Connected(Connection),
    Ended(EndedWithPanic),
    Broken(io::Error),
}

/// Waits for the next thing to see to. None when the server shuts down. Connections that have ended come first, since
/// they make room; there can only be so many of them before their tasks run again.
pub(super) async fn next_step<H: Handler>(
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
pub(super) async fn next_of_drain<H: Handler>(
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
pub(super) fn see_to<H: Handler>(
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
pub(super) fn settle(incoming: &mut Incoming, (ended, panic): EndedWithPanic, on_panic: OnPanic) {
    incoming.record.closed(&ended);
    if let (OnPanic::Propagate, Some(payload)) = (on_panic, panic) {
        panic::resume_unwind(payload);
    }
}
