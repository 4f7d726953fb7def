//! Closes a connection after its handler, so that the peer gets all written data and knows whether the data is
//! complete.
//!
//! If a socket is closed with unread input, or input arrives after the close, the kernel resets the connection and
//! discards data that is still on its way. So the server reads for a while longer, and drops the input.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::FutureExt;

use crate::connection::{Link, State};
use crate::time::{self, timeout};

/// Maximum number of connections that are being closed at once. Above it, the kernel closes the oldest alone.
const LINGERING_MAX: usize = 1024;

/// How long a peer may take no data and send no data, if the server has no stall timeout.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same limit during a drain, if the peer has nearly all data.
const PATIENCE_WHILE_DRAINING: Duration = Duration::from_secs(1);

/// The most input, in bytes, that is read and dropped after a handler that returned `Ok`.
const INPUT_MAX: usize = 64 * 1024 * 1024;

/// The same after a handler that failed, and the time that its peer has to read the written data.
const INPUT_MAX_AFTER_ERROR: usize = 64 * 1024;
const PATIENCE_AFTER_ERROR: Duration = Duration::from_secs(1);

/// The connections that are being closed.
#[derive(Default)]
pub(super) struct Lingering {
    last_number: Cell<u64>,
    /// Oldest first, each with the waker for the moment when it has to go.
    stays: RefCell<BTreeMap<u64, Waker>>,
}

impl Lingering {
    /// Adds a connection. If there are too many, the oldest has to go.
    pub(super) fn enter(self: &Rc<Lingering>) -> Stay {
        if self.stays.borrow().len() >= LINGERING_MAX {
            self.let_oldest_go();
        }
        let number = self.last_number.get() + 1;
        self.last_number.set(number);
        self.stays
            .borrow_mut()
            .insert(number, Waker::noop().clone());
        Stay {
            lingering: self.clone(),
            number,
        }
    }

    /// Ends the oldest connection, to free its file descriptor.
    pub(super) fn let_oldest_go(&self) {
        let oldest = self.stays.borrow_mut().pop_first();
        if let Some((_, waker)) = oldest {
            waker.wake();
        }
    }
}

/// The entry of a connection that is being closed.
pub(super) struct Stay {
    lingering: Rc<Lingering>,
    number: u64,
}

impl Stay {
    /// Ready when the connection has to go.
    fn poll_over(&self, cx: &Context<'_>) -> Poll<()> {
        let mut stays = self.lingering.stays.borrow_mut();
        let Some(waker) = stays.get_mut(&self.number) else {
            return Poll::Ready(());
        };
        waker.clone_from(cx.waker());
        Poll::Pending
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.lingering.stays.borrow_mut().remove(&self.number);
    }
}

/// Waits until the peer has taken nearly all written data, and half-closes the connection. Returns whether the peer is
/// known to have this data: if the handler itself has half-closed the connection, the kernel does not tell.
///
/// # Errors
///
/// If the peer has reset the connection, has taken no data for the stall timeout, or has sent more than can be dropped.
pub(super) async fn deliver(link: &Link, stay: &Stay) -> io::Result<bool> {
    let is_told = !link.is_half_closed();
    link.prepare_end(patience(link));
    let mut input = Input::new(INPUT_MAX);
    poll_fn(|cx| {
        if stay.poll_over(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        match input.poll_drop(link, cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => link.poll_taken(cx),
        }
    })
    .await?;
    link.shutdown_write()?;
    Ok(is_told)
}

/// To call after [`deliver`]: reads until the peer has closed too, or has been silent for too long. Later input resets
/// the connection, but by then the peer has all written data. If the peer is known to have nearly all data now
/// (`has_all`), a drain waits only a short time.
pub(super) async fn linger(link: &Link, stay: &Stay, has_all: bool) {
    if link.state() == State::InputEnded {
        // The kernel delivers the rest, and no more input can come.
        return;
    }
    let mut input = Input::new(INPUT_MAX);
    let mut patience = patience(link);
    let mut quiet = time::sleep(patience);
    let mut closing = link.terms().clone().closing();
    poll_fn(|cx| {
        let is_long = has_all && patience > PATIENCE_WHILE_DRAINING;
        if is_long && closing.poll(cx).is_ready() {
            patience = PATIENCE_WHILE_DRAINING;
            quiet = time::sleep(patience);
        }
        let before = input.left;
        if input.poll_drop(link, cx).is_ready() || stay.poll_over(cx).is_ready() {
            return Poll::Ready(());
        }
        if input.left < before {
            quiet = time::sleep(patience);
        }
        Pin::new(&mut quiet).poll(cx)
    })
    .await;
}

/// After a handler that failed: gives its peer a moment to read the written data. After an idle timeout the peer may be
/// a slow reader, for which the kernel holds the end of a reply: the peer has time as long as it continues to read.
/// Then the connection is reset, so that the peer does not take a part for the whole.
pub(super) async fn give_time(link: &Link, stay: &Stay) {
    if link.state() == State::Broken || link.traffic().bytes_out == 0 {
        return;
    }
    let was_idle = link.state() == State::Idle && !link.is_half_closed();
    let (patience, limit) = match was_idle {
        true => (patience(link), Duration::MAX),
        false => (PATIENCE_AFTER_ERROR, PATIENCE_AFTER_ERROR),
    };
    link.prepare_end(patience);
    let mut input = Input::new(INPUT_MAX_AFTER_ERROR);
    let over = poll_fn(|cx| {
        if stay.poll_over(cx).is_ready() {
            return Poll::Ready(());
        }
        match input.poll_drop(link, cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            // The kernel does not tell what the peer has taken.
            _ if link.is_half_closed() => Poll::Pending,
            Poll::Pending if !was_idle => Poll::Pending,
            _ => link.poll_taken(cx).map(drop),
        }
    });
    timeout(limit, over).await.ok();
}

fn patience(link: &Link) -> Duration {
    link.timeouts().stall.unwrap_or(PATIENCE)
}

/// Input that is read and dropped.
struct Input {
    /// Number of bytes of input that may still come.
    left: usize,
}

impl Input {
    fn new(most: usize) -> Input {
        Input { left: most }
    }

    /// Reads and drops the available input. Ready when the peer has closed its half, or with an error.
    fn poll_drop(&mut self, link: &Link, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Poll::Ready(received) = link.poll_discard(cx)? {
            if received == 0 {
                return Poll::Ready(Ok(()));
            }
            if received > self.left {
                let error = "the peer sent too much after the end of the connection";
                return Poll::Ready(Err(io::Error::other(error)));
            }
            self.left -= received;
        }
        Poll::Pending
    }
}
