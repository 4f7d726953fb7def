//! The connection itself, which its handler and its server share: reads, writes, timeouts and closing.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{io, mem};

use futures_lite::ready;

use crate::address::{Address, CompactAddress};
use crate::report::Traffic;

use super::activity::{Activity, Silence};
use super::direction::{Direction, Next};
use super::rare::Rarely;
use super::state::State;
use super::stream::Stream;
use super::terms::{Quiet, Terms, Timeouts, WaitingKey};

/// Number of bytes that a connection reads in a row before other tasks run. A higher value makes streaming faster, but
/// increases the tail latency of other connections.
const READ_BURST: u32 = 64 * 1024;

/// The limit for writes. It is higher, so that a handler that answers its input pauses in its reads, not in its writes.
const WRITE_BURST: u32 = 2 * READ_BURST;

pub(crate) struct Link {
    stream: Stream,
    id: u64,
    pub(super) peer_addr: CompactAddress,
    /// The time of opening, in nanoseconds on the clock of its terms.
    opened: u64,
    pub(super) activity: Activity,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    reading: Direction,
    writing: Direction,
    state: Cell<State>,
    /// The connection counts towards its server's limit.
    has_place: Cell<bool>,
    /// The handler's side has dropped the connection.
    pub(super) released: Cell<bool>,
    /// The write half is closed.
    half_closed: Cell<bool>,
    /// The end of the connection was reported.
    end_is_told: Cell<bool>,
    /// A copy does not read it now, because the other connection takes no data.
    pub(super) is_held_up: Cell<bool>,
    /// The quiet time after which a drain ends its input, and the key of its waker for the drain.
    pub(super) quiet: Cell<Option<Quiet>>,
    drain_key: Cell<Option<WaitingKey>>,
    pub(super) rare: Rarely,
    terms: Rc<Terms>,
}

/// The reason why a waiting read ends.
pub(super) enum Over {
    Idle,
    Quiet,
}

impl Link {
    pub(super) fn new(stream: Stream, peer_addr: Address, terms: Rc<Terms>) -> Link {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let now = terms.nanos_now();
        terms.take_place();
        Link {
            stream,
            id: LAST_ID.fetch_add(1, Ordering::Relaxed) + 1,
            peer_addr: CompactAddress::from(peer_addr),
            opened: now,
            activity: Activity::new(now),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            reading: Direction::new(),
            writing: Direction::new(),
            state: Cell::new(State::Open),
            has_place: Cell::new(true),
            released: Cell::new(false),
            half_closed: Cell::new(false),
            end_is_told: Cell::new(false),
            is_held_up: Cell::new(false),
            quiet: Cell::new(None),
            drain_key: Cell::new(None),
            rare: Rarely::default(),
            terms,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn peer_addr(&self) -> Address {
        Address::from(&self.peer_addr)
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            duration: self.terms.since(self.opened),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state.get()
    }

    pub(crate) fn terms(&self) -> &Rc<Terms> {
        &self.terms
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.poll_receive(cx, buffer))?;
        self.bytes_in.set(self.bytes_in.get() + received as u64);
        Poll::Ready(Ok(received))
    }

    /// Reads and drops input, which is not counted.
    pub(crate) fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_receive(cx, &mut [0; 4096])
    }

    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        ready!(self.reading.poll_turn(cx));
        let mut over = None;
        loop {
            if self.reading.waits() {
                match self.poll_readable(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                    // One last check of the socket: a blocked loop gets no events from the reactor.
                    Poll::Pending => over = Some(ready!(self.poll_patience(cx))),
                }
                self.reading.set(Next::Try);
            }
            match self.stream.read(buffer) {
                Ok(0) if !buffer.is_empty() => {
                    self.state.set(State::InputEnded);
                    return Poll::Ready(Ok(0));
                }
                Ok(n) => {
                    self.activity.happened();
                    if self.state.get() == State::Idle {
                        self.state.set(State::Open);
                    }
                    if self.reading.spend(n, READ_BURST) {
                        self.yield_reading(Next::GoLast);
                    } else if n < buffer.len() {
                        // A short read has emptied the socket. Let other tasks run first: the peer's next message may
                        // arrive in this time, and then no wait is needed.
                        self.yield_reading(Next::Yield);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(over) = over {
                        return Poll::Ready(self.end_silence(over));
                    }
                    // After a burst, other tasks run once before this read waits: see above.
                    if self.reading.has_burst() {
                        self.yield_reading(Next::Yield);
                        ready!(self.reading.poll_turn(cx));
                    }
                    self.reading.set(Next::Wait);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
        }
    }

    /// Lets other tasks run before the next read. For an echo-like handler, this also comes before the next write.
    fn yield_reading(&self, next: Next) {
        self.reading.yield_next(next);
        self.writing.forget_burst();
    }

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.writing.poll_turn(cx));
        let mut last_try = false;
        loop {
            if self.writing.waits() {
                match self.poll_writable(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                    Poll::Pending => {
                        last_try = ready!(self.poll_stall(cx));
                    }
                }
                self.writing.set(Next::Try);
            }
            match self.stream.write(bytes) {
                Ok(n) => {
                    self.bytes_out.set(self.bytes_out.get() + n as u64);
                    self.activity.happened();
                    if self.reading.waits() || self.state.get() != State::Open {
                        // An idle timer counts from this write, and no read runs now that would note the time.
                        self.activity.note(&self.terms);
                    }
                    self.rare.if_there(|rare| rare.timers.end_stall());
                    if self.writing.spend(n, WRITE_BURST) {
                        self.writing.yield_next(Next::GoLast);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if last_try {
                        return Poll::Ready(Err(self.stalled()));
                    }
                    self.writing.set(Next::Wait);
                    self.writing.forget_burst();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(self.broken(error))),
            }
        }
    }

    pub(crate) fn is_half_closed(&self) -> bool {
        self.half_closed.get()
    }

    pub(crate) fn shutdown_write(&self) -> io::Result<()> {
        self.half_closed.set(true);
        match self.stream.shutdown_write() {
            // The peer has reset the connection in the meantime, so there is no half to close.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.reading.poll_event(
            cx,
            |is_second| self.rare.shared_waker(is_second, |rare| &mut rare.readers),
            |cx| self.stream.poll_readable(cx),
        )
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writing.poll_event(
            cx,
            |is_second| self.rare.shared_waker(is_second, |rare| &mut rare.writers),
            |cx| self.stream.poll_writable(cx),
        )
    }

    /// Its own timeouts, or those of its server.
    pub(crate) fn timeouts(&self) -> Timeouts {
        let own = self.rare.if_there(|rare| rare.timeouts.as_deref().copied());
        own.flatten().unwrap_or(self.terms.timeouts)
    }

    /// Changes the timeouts. Tasks that wait with a timer check it again.
    pub(super) fn set_timeouts(&self, set: impl FnOnce(&mut Timeouts)) {
        self.activity.happened();
        self.activity.note(&self.terms);
        let timers = self.rare.with(|rare| {
            set(rare
                .timeouts
                .get_or_insert_with(|| self.terms.timeouts.into()));
            mem::take(&mut rare.timers)
        });
        timers.wake();
    }

    pub(super) fn broken(&self, error: io::Error) -> io::Error {
        // The kernel's own timeout for a peer that does not read (TCP_USER_TIMEOUT).
        if error.kind() == io::ErrorKind::TimedOut && self.timeouts().stall.is_some() {
            return self.stalled();
        }
        self.state.set(State::Broken);
        error
    }

    fn stalled(&self) -> io::Error {
        self.state.set(State::Stalled);
        io::Error::new(io::ErrorKind::TimedOut, "the peer stopped reading")
    }

    /// Ends a read that has waited too long.
    pub(super) fn end_silence(&self, over: Over) -> io::Result<usize> {
        match over {
            Over::Quiet => {
                self.state.set(State::Drained);
                Ok(0)
            }
            Over::Idle => {
                self.state.set(State::Idle);
                // If the handler continues after this error, the whole time starts again.
                self.activity.happened();
                let error = "the connection was idle for too long";
                Err(io::Error::new(io::ErrorKind::TimedOut, error))
            }
        }
    }

    /// Ready when a read has waited too long: for the idle timeout, or during a drain.
    fn poll_patience(&self, cx: &mut Context<'_>) -> Poll<Over> {
        if self.released.get() {
            // Now the server reads, with its own time limit.
            return Poll::Pending;
        }
        let idle_timeout = self.timeouts().idle;
        if let Some(quiet) = self.quiet.get().map(Quiet::duration) {
            let mut key = self.drain_key.get();
            let closing = self.terms.poll_closing(&mut key, cx);
            self.drain_key.set(key);
            let is_shorter = idle_timeout.is_none_or(|idle| quiet <= idle);
            if closing.is_ready() && is_shorter {
                return self.poll_silence(quiet, cx).map(|()| Over::Quiet);
            }
        }
        match idle_timeout {
            Some(timeout) => self.poll_silence(timeout, cx).map(|()| Over::Idle),
            None => Poll::Pending,
        }
    }

    fn poll_silence(&self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let silence = self.silence(limit);
        self.rare
            .with(|rare| rare.timers.poll_silence(&silence, cx))
    }

    pub(super) fn silence(&self, limit: Duration) -> Silence<'_, impl Fn() -> bool> {
        Silence {
            activity: &self.activity,
            terms: &self.terms,
            limit,
            is_blocked: || self.is_blocked(),
        }
    }

    /// Whether a write waits for the peer, or waited until now: the waiting task has not run since. Or whether a copy
    /// waits for the other connection.
    fn is_blocked(&self) -> bool {
        let waits = self.writing.waits();
        if waits && self.stream.is_writable() {
            self.writing.set(Next::Try);
        }
        waits || self.is_held_up.get()
    }

    /// Ready when the connection is idle and no task reads or writes it: its handler waits for something else and does
    /// not notice the timeout. The server then drops the handler.
    pub(crate) fn poll_abandoned(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.timeouts().idle {
            // The activity of a stream that was given away is not visible here.
            Some(limit) if self.state.get() != State::Given => {
                let silence = self.silence(limit);
                self.rare
                    .with(|rare| rare.timers.poll_abandoned(&silence, cx))
            }
            _ => Poll::Pending,
        }
    }

    /// Ready when a waiting write has to try again. Returns whether this is its last try before it counts as stalled.
    fn poll_stall(&self, cx: &mut Context<'_>) -> Poll<bool> {
        match self.timeouts().stall {
            Some(timeout) => self.rare.with(|rare| rare.timers.poll_stall(timeout, cx)),
            None => Poll::Pending,
        }
    }

    /// Records that the connection's end is reported. Returns whether this is the first time.
    pub(crate) fn tell_end(&self) -> bool {
        !self.end_is_told.replace(true)
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.get()
    }

    /// Stops counting the connection towards its server's limit.
    pub(crate) fn give_place(&self) {
        if self.has_place.take() {
            self.terms.give_place();
        }
    }

    /// The handler's side drops the connection.
    pub(super) fn release(&self) {
        self.released.set(true);
        let owner = self.rare.if_there(|rare| rare.owner.take());
        if let Some(Some(owner)) = owner {
            owner.wake();
        }
    }

    /// Ready when the handler's side has dropped the connection.
    pub(crate) fn poll_released(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.released.get() {
            return Poll::Ready(());
        }
        self.rare.with(|rare| rare.owner = Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Gives the stream to other code, which closes it.
    pub(super) fn give_away(&self) {
        self.state.set(State::Given);
    }

    /// Ready when the peer has taken nearly all written data: the rest fits into its window.
    pub(crate) fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let taken = self.stream.poll_taken(cx);
        taken.map_err(|error| self.broken(error))
    }

    /// Limits how long the kernel tries to deliver written data, and prepares [`Link::poll_taken`].
    pub(crate) fn prepare_end(&self, patience: Duration) {
        self.stream.prepare_end(patience).ok(); // What fails is broken, and the next call tells.
    }

    /// Resets the connection. The peer's reads fail after the data that has arrived; ours fail at once.
    pub(crate) fn reset(&self) {
        self.is_held_up.set(false);
        match self.state.get() {
            State::Given => return,
            // The first reason for the end is kept.
            State::Idle | State::Stalled => {}
            _ => self.state.set(State::Broken),
        }
        self.stream.reset();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(key) = self.drain_key.get() {
            self.terms.forget(key);
        }
        self.give_place();
        self.terms.disconnected();
    }
}
