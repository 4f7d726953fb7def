//! The connections' tasks: each runs a handler and then closes its connection.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use futures_lite::Stream;
use pin_project_lite::pin_project;

use crate::connection::{Connection, Link, State};
use crate::event_loop;
use crate::task_group::TaskGroup;
use crate::task_table::{ConnectionLabel, Label};

use super::event::{CloseReason, Ended};
use super::farewell::{Lingering, deliver, give_time, linger};

/// The reaction of a server to a panic of a handler.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnPanic {
    /// Counts the panic. Only the connection of this handler ends.
    #[default]
    Isolate,
    /// Cancels all other connections, and [`Server::serve`](crate::Server::serve) continues the panic.
    Propagate,
}

/// A name for the trait bound of [`Server::serve`](crate::Server::serve).
pub(super) trait Handler: AsyncFn(Connection) -> io::Result<()> + 'static {}
impl<H: AsyncFn(Connection) -> io::Result<()> + 'static> Handler for H {}

/// The connections' tasks, and the outcomes of ended tasks.
pub(super) struct Connections<H> {
    shared: Rc<Shared<H>>,
    /// The place in the source where the server was started.
    place: &'static Location<'static>,
    tasks: TaskGroup<()>,
}

/// The state that the connections' tasks share with the server. It is one struct, so that each task holds only one
/// reference.
struct Shared<H> {
    handler: H,
    /// The connections that have ended and are not recorded yet.
    ended: RefCell<VecDeque<EndedWithPanic>>,
    /// The server's task, which records the ended connections.
    recorder: Cell<Option<Waker>>,
    lingering: Rc<Lingering>,
}

/// A connection that has ended, with the panic of its handler, if there was one.
pub(super) type EndedWithPanic = (Ended, Option<Box<dyn Any + Send>>);

impl<H: Handler> Connections<H> {
    pub(super) fn new(
        handler: H,
        place: &'static Location<'static>,
        lingering: Rc<Lingering>,
    ) -> Connections<H> {
        let shared = Shared {
            handler,
            ended: RefCell::default(),
            recorder: Cell::new(None),
            lingering,
        };
        Connections {
            shared: Rc::new(shared),
            place,
            tasks: TaskGroup::new(),
        }
    }

    /// Starts a connection's task, which runs the handler and then closes the connection.
    pub(super) fn start(&mut self, connection: Connection) {
        let link = connection.link();
        let label = self.label(&link);
        let served = Served {
            shared: self.shared.clone(),
            link,
        };
        // Every value that lives across an await makes every idle connection larger.
        self.tasks.start(label, async move {
            let outcome = Attended {
                handler: served.call_handler(),
                served: &served,
            }
            .await;
            let leaving = take_leave_after(outcome, served);
            if let Some(leaving) = leaving {
                leaving.await;
            }
        });
    }

    /// The description of a connection's task for the task table, if the table is on.
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

    /// The next connection that has ended. Ready with `None` if no connection is open.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Option<EndedWithPanic>> {
        loop {
            if let Some(ended) = self.shared.ended.borrow_mut().pop_front() {
                return Poll::Ready(Some(ended));
            }
            let mut recorder = self.shared.recorder.take();
            recorder
                .get_or_insert_with(|| cx.waker().clone())
                .clone_from(cx.waker());
            self.shared.recorder.set(recorder);
            if ready!(Pin::new(&mut self.tasks).poll_next(cx)).is_none() {
                return Poll::Ready(None);
            }
        }
    }

    /// Cancels all open connections. Returns all ended connections, including the cancelled ones.
    pub(super) async fn cancel(&mut self) -> VecDeque<EndedWithPanic> {
        self.tasks.cancel().await;
        self.shared.ended.take()
    }
}

/// A connection and its server. It lives as long as the connection's task. It reports how the connection ended, at the
/// latest when it is dropped; so a cancelled task is counted, too.
struct Served<H> {
    shared: Rc<Shared<H>>,
    link: Rc<Link>,
}

/// How a handler ended.
enum Outcome {
    Cancelled,
    /// The handler was dropped, because it waited for something else while its connection was idle.
    Abandoned,
    Returned(io::Result<()>),
    Panicked(Box<dyn Any + Send>),
}

impl<H> Shared<H> {
    fn record(&self, ended: EndedWithPanic) {
        self.ended.borrow_mut().push_back(ended);
        if let Some(recorder) = self.recorder.take() {
            recorder.wake();
        }
    }
}

impl<H: Handler> Served<H> {
    /// Calls the handler. Returns `None` if the handler panics before it returns its future; this panic is reported.
    fn call_handler(&self) -> Option<impl Future<Output = io::Result<()>>> {
        let connection = Connection::held(self.link.clone());
        let call = AssertUnwindSafe(|| (self.shared.handler)(connection));
        match panic::catch_unwind(call) {
            Ok(handler) => Some(handler),
            Err(payload) => {
                self.tell(Outcome::Panicked(payload));
                None
            }
        }
    }
}

impl<H> Served<H> {
    /// Reports how the connection ended, once. Resets the connection if it was cut off.
    fn tell(&self, outcome: Outcome) {
        if !self.link.tell_end() {
            return;
        }
        let timed_out = matches!(self.link.state(), State::Idle | State::Stalled);
        // Its handler has failed, and its peer has time to read what was written: see `give_time`.
        let has_time =
            self.link.state() == State::Idle && matches!(outcome, Outcome::Returned(Err(_)));
        let (reason, panic) = match outcome {
            Outcome::Cancelled => (CloseReason::Aborted, None),
            Outcome::Abandoned => (CloseReason::TimedOut, None),
            Outcome::Panicked(payload) => (CloseReason::Panicked, Some(payload)),
            // A handler may return `Ok` after an idle timeout. But after a stall timeout the peer lacks a part of the
            // data.
            Outcome::Returned(Ok(())) if self.link.state() == State::Stalled => {
                (CloseReason::TimedOut, None)
            }
            Outcome::Returned(Ok(())) => (CloseReason::Completed, None),
            Outcome::Returned(Err(error))
                if timed_out && error.kind() == io::ErrorKind::TimedOut =>
            {
                (CloseReason::TimedOut, None)
            }
            Outcome::Returned(Err(error)) => (CloseReason::Failed(error), None),
        };
        if !has_time && !matches!(reason, CloseReason::Completed | CloseReason::Failed(_)) {
            self.link.reset();
        }
        // If the handler has passed the connection on, the new owner may still hold it.
        self.link.give_place();
        let ended = Ended {
            id: self.link.id(),
            peer_addr: self.link.peer_addr(),
            traffic: self.link.traffic(),
            reason,
            faults: self.link.faults(),
        };
        self.shared.record((ended, panic));
    }
}

impl<H> Drop for Served<H> {
    fn drop(&mut self) {
        self.tell(Outcome::Cancelled);
    }
}

pin_project! {
    /// Runs a handler and catches its panics, including panics in destructors of values that it holds. Drops the
    /// handler if its connection is idle and the handler waits for something else.
    struct Attended<'s, F, H> {
        // `None` if the handler returned no future, or its future has ended.
        #[pin]
        handler: Option<F>,
        served: &'s Served<H>,
    }

    impl<F, H> PinnedDrop for Attended<'_, F, H> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(panicked) = drop_handler(this.handler) {
                this.served.tell(panicked);
            }
        }
    }
}

/// Drops a handler. Returns the panic of its destructor, if there is one.
fn drop_handler<F>(mut handler: Pin<&mut Option<F>>) -> Option<Outcome> {
    let dropped = panic::catch_unwind(AssertUnwindSafe(|| handler.set(None)));
    dropped.err().map(Outcome::Panicked)
}

impl<F: Future<Output = io::Result<()>>, H> Future for Attended<'_, F, H> {
    /// How the handler ended. `None` if it returned no future.
    type Output = Option<Outcome>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        let mut this = self.project();
        let Some(handler) = this.handler.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let outcome = match panic::catch_unwind(AssertUnwindSafe(|| handler.poll(cx))) {
            Ok(Poll::Ready(result)) => Outcome::Returned(result),
            Ok(Poll::Pending) => {
                ready!(this.served.link.poll_abandoned(cx));
                Outcome::Abandoned
            }
            Err(payload) => Outcome::Panicked(payload),
        };
        Poll::Ready(drop_handler(this.handler).or(Some(outcome)))
    }
}

/// A connection after its handler.
struct Ending<H> {
    served: Served<H>,
    /// How the handler ended. `None` after it was reported.
    outcome: Cell<Option<Outcome>>,
}

/// The rest of the work for a connection after its handler. Boxed, because few connections need it.
fn take_leave_after<H>(
    outcome: Option<Outcome>,
    served: Served<H>,
) -> Option<Pin<Box<impl Future<Output = ()>>>> {
    let ending = Ending {
        served,
        outcome: Cell::new(Some(outcome?)),
    };
    (!ending.is_complete()).then(|| Box::pin(ending.take_leave()))
}

impl<H> Ending<H> {
    fn link(&self) -> &Link {
        &self.served.link
    }

    /// Whether no work is left: the handler was dropped or has panicked, or the peer has closed its half and the kernel
    /// delivers the rest.
    fn is_complete(&self) -> bool {
        let outcome = self.outcome.take();
        let is_complete = match &outcome {
            Some(Outcome::Returned(result)) if self.link().is_released() => {
                match self.link().state() {
                    State::Broken | State::Given => true,
                    State::InputEnded => result.is_ok(),
                    _ => false,
                }
            }
            Some(Outcome::Returned(_)) => false,
            _ => true,
        };
        self.outcome.set(outcome);
        is_complete
    }

    async fn take_leave(self) {
        let link = self.link();
        // If the handler has passed the connection on, the connection lives until its new owner drops it.
        let outcome = self.outcome.take();
        let is_abandoned = poll_fn(|cx| match link.poll_released(cx) {
            Poll::Ready(()) => Poll::Ready(false),
            Poll::Pending => link.poll_abandoned(cx).map(|()| true),
        });
        if is_abandoned.await {
            return self.outcome.set(Some(Outcome::Abandoned));
        }
        let has_failed = matches!(outcome, Some(Outcome::Returned(Err(_))));
        self.outcome.set(outcome);
        // The rest takes a short time, or needs only a file descriptor.
        link.give_place();
        let stay = self.served.shared.lingering.enter();
        if has_failed {
            self.tell();
            let _reset = Reset(link);
            give_time(link, &stay).await;
        } else if link.state() == State::Stalled {
            self.tell();
        } else {
            match deliver(link, &stay).await {
                Ok(has_all) => {
                    self.tell();
                    linger(link, &stay, has_all).await;
                }
                Err(error) => {
                    if link.state() != State::Stalled {
                        // It is unknown how much of the data the peer has.
                        self.outcome.set(Some(Outcome::Returned(Err(error))));
                    }
                    self.tell();
                    link.reset();
                }
            }
        }
    }

    fn tell(&self) {
        if let Some(outcome) = self.outcome.take() {
            self.served.tell(outcome);
        }
    }
}

impl<H> Drop for Ending<H> {
    fn drop(&mut self) {
        self.tell();
    }
}

/// Resets a connection when it is dropped, also at the end of the drain.
struct Reset<'l>(&'l Link);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        self.0.reset();
    }
}
