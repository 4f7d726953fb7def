//! The connections' tasks: a handler for each, and how a connection ends.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, Stream};
use pin_project_lite::pin_project;

use crate::connection::{Connection, Link, State};
use crate::event_loop;
use crate::task_group::TaskGroup;
use crate::task_table::{ConnectionLabel, Label};
use crate::time::timeout;

use super::event::{CloseReason, Ended};

/// How long a closed connection is read to its end, so that unread input does not make the system throw away what is
/// still on its way to the peer. A peer that closes too ends it at once.
const LINGER: Duration = Duration::from_secs(1);

/// What a server does about a handler's panic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnPanic {
    /// Counts it. It ends its own connection only.
    #[default]
    Isolate,
    /// Cancels the other connections and goes on with the panic, out of [`Server::serve`].
    Propagate,
}

/// The bound of [`Server::serve`], under a name.
pub(super) trait Handler: AsyncFn(Connection) -> io::Result<()> + 'static {}
impl<H: AsyncFn(Connection) -> io::Result<()> + 'static> Handler for H {}

/// The connections' tasks, and how those that have ended did so.
pub(super) struct Connections<H> {
    shared: Rc<Shared<H>>,
    /// Where the server was started.
    place: &'static Location<'static>,
    tasks: TaskGroup<()>,
}

/// What the connections' tasks share with the server. One reference for all of it, since each of them holds one.
struct Shared<H> {
    handler: H,
    /// The connections that have ended and are not recorded yet.
    ended: RefCell<VecDeque<EndedWithPanic>>,
}

impl<H: Handler> Connections<H> {
    pub(super) fn new(handler: H, place: &'static Location<'static>) -> Connections<H> {
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

    pub(super) fn open(&self) -> usize {
        self.tasks.running()
    }

    /// Starts a connection's task: the handler, and an orderly close after it.
    pub(super) fn start(&mut self, connection: Connection) {
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
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Option<EndedWithPanic>> {
        loop {
            if let Some(ended) = self.shared.ended.borrow_mut().pop_front() {
                return Poll::Ready(Some(ended));
            }
            if ready!(Pin::new(&mut self.tasks).poll_next(cx)).is_none() {
                return Poll::Ready(None);
            }
        }
    }

    pub(super) async fn next_ended(&mut self) -> Option<EndedWithPanic> {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    /// Cancels all that are open. Returns all that have ended, these too.
    pub(super) async fn cancel(&mut self) -> VecDeque<EndedWithPanic> {
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

/// A connection that has ended, and the panic that its handler ended with.
pub(super) type EndedWithPanic = (Ended, Option<Box<dyn Any + Send>>);

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
        };
        self.shared.ended.borrow_mut().push_back((ended, panic));
    }
}
