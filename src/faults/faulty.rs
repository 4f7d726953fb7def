//! A stream with the faults that were drawn for it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite, ready};

use crate::connection::Connection;
use crate::time::{self, Sleep};

use super::fault::Kind;
use super::plan::{Dice, Drawn};

/// A reply with a rate may send the bytes of this time at once.
const TICK: Duration = Duration::from_millis(10);

/// The most bytes that are corrupted at once.
const CORRUPTED_MAX: usize = 16 * 1024;

/// A stream with faults: any `AsyncRead + AsyncWrite`, such as a [`Connection`] over a socket or in memory.
///
/// Its faults change the data that is written to it. Its waits are timers of the running loop, so a test clock skips
/// them. The faults need no separate task: they act when the stream is polled.
///
/// The faults of the n-th reply or n-th byte depend only on n. The chunks in which the peer's input arrives decide how
/// many replies an echo makes. So they also decide which reply has which delay, and where slices begin.
///
/// - Dropping a waiting read or write loses no byte. The wait continues with the next write.
/// - Dropping the stream drops the wrapped stream at once.
/// - Errors are those of the stream, and `ConnectionReset` after a reset.
///
/// # Panics
///
/// Reads and writes panic outside a running event loop if they have to wait.
pub struct Faulty<S> {
    stream: S,
    reset: fn(&mut S, &mut Context<'_>) -> Poll<()>,
    delay: Option<(RangeInclusive<Duration>, Dice)>,
    /// In bytes a second.
    rate: Option<u64>,
    slice: Option<Slice>,
    /// This many bytes in a thousand.
    corrupt: Option<(u64, Dice)>,
    /// Number of bytes of replies before the end, and the kind of the end.
    end: Option<(u64, End)>,
    close_delay: Option<Duration>,

    /// Number of bytes of replies that were sent.
    sent: u64,
    /// Number of replies and of pieces that have begun.
    replies: u64,
    pieces: u64,
    /// Number of bytes of a reply that the last write left over.
    left: usize,
    /// Number of bytes that may be sent before the next pause.
    piece: u64,
    /// The end of the last pause.
    due: Option<Instant>,
    pause: Option<Sleep>,
    /// The write half is closed, or the connection is reset.
    is_over: bool,
}

struct Slice {
    bytes: RangeInclusive<u64>,
    pause: RangeInclusive<Duration>,
    dice: Dice,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Close,
    Reset,
    Silence,
    Stall,
}

impl Faulty<Connection> {
    /// A connection with the faults that were drawn for it. The server's line for the connection names them, and its
    /// report counts the connection.
    ///
    /// A reset waits until the peer's kernel has taken the written data, but at most 90 s. Unix sockets have no reset:
    /// instead, both halves are closed.
    pub fn connection(connection: Connection, drawn: Drawn) -> Faulty<Connection> {
        if !drawn.is_empty() {
            connection.note_faults(drawn.to_string());
        }
        Faulty::new(connection, drawn).on_reset(|connection, cx| connection.poll_reset(cx))
    }
}

impl<S> Faulty<S> {
    /// A stream with the faults that were drawn for it. A reset only makes its reads and writes fail, unless
    /// [`on_reset`](Faulty::on_reset) sets an action.
    pub fn new(stream: S, drawn: Drawn) -> Faulty<S> {
        let mut faulty = Faulty {
            stream,
            reset: |_, _| Poll::Ready(()),
            delay: None,
            rate: None,
            slice: None,
            corrupt: None,
            end: None,
            close_delay: None,
            sent: 0,
            replies: 0,
            pieces: 0,
            left: 0,
            piece: 0,
            due: None,
            pause: None,
            is_over: false,
        };
        for (kind, dice) in drawn.faults {
            match kind {
                Kind::Delay(times) => faulty.delay = Some((times, dice)),
                Kind::Rate(rate) => faulty.rate = Some(*rate.start().max(&1)),
                Kind::Slice { bytes, pause } => faulty.slice = Some(Slice { bytes, pause, dice }),
                Kind::CloseAfter(bytes) => faulty.end_after(*bytes.start(), End::Close),
                Kind::ResetAfter(bytes) => faulty.end_after(*bytes.start(), End::Reset),
                Kind::SilentAfter(bytes) => faulty.end_after(*bytes.start(), End::Silence),
                Kind::StallAfter(bytes) => faulty.end_after(*bytes.start(), End::Stall),
                Kind::CloseDelay(time) => faulty.close_delay = Some(*time.start()),
                Kind::Refuse => faulty.end_after(0, End::Reset),
                Kind::Corrupt(share) => faulty.corrupt = Some((*share.start(), dice)),
            }
        }
        faulty
    }

    /// Sets the action that resets the stream. It is polled until it is ready, once.
    #[must_use]
    pub fn on_reset(mut self, reset: fn(&mut S, &mut Context<'_>) -> Poll<()>) -> Faulty<S> {
        self.reset = reset;
        self
    }

    /// The wrapped stream, without its faults.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// If there are several ends, the first one counts.
    fn end_after(&mut self, bytes: u64, end: End) {
        if self.end.is_none_or(|(before, _)| bytes < before) {
            self.end = Some((bytes, end));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Faulty<S> {
    /// Waits for the time of `close-delay`, once, and closes nothing. For a handler that leaves the close to its
    /// server, which then knows better how to end the connection.
    pub async fn delay_close(&mut self) {
        poll_fn(|cx| self.poll_close_delay(cx)).await;
    }

    /// Ready with the end of the stream, if it is reached. Performs the end first.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<End>>> {
        let due = self.end.filter(|(bytes, _)| self.sent >= *bytes);
        match due.map(|(_, end)| end) {
            Some(End::Close) => ready!(self.poll_close_late(cx))?,
            Some(End::Reset) => {
                if !self.is_over {
                    ready!((self.reset)(&mut self.stream, cx));
                    self.is_over = true;
                }
                let error = io::Error::new(io::ErrorKind::ConnectionReset, "reset on purpose");
                return Poll::Ready(Err(error));
            }
            Some(End::Stall) => return Poll::Pending,
            Some(End::Silence) | None => {}
        }
        Poll::Ready(Ok(due.map(|(_, end)| end)))
    }

    fn poll_close_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_over {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_close_delay(cx));
        ready!(Pin::new(&mut self.stream).poll_close(cx))?;
        self.is_over = true;
        Poll::Ready(Ok(()))
    }

    fn poll_close_delay(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(delay) = self.close_delay.take() {
            self.pause = Some(time::sleep(delay));
        }
        self.poll_pause(cx)
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(Pin::new(pause).poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    /// Decides how much of a reply goes out next, and sets the pause before it. `length` bytes of the reply are left.
    fn begin_piece(&mut self, length: usize) {
        let mut pause = Duration::ZERO;
        self.piece = length as u64;
        if let Some((bytes, _)) = self.end {
            self.piece = self.piece.min(bytes - self.sent);
        }
        let begins_reply = self.left == 0;
        if begins_reply {
            if let Some((times, dice)) = &self.delay {
                pause += dice.time(self.replies, times);
            }
            self.replies += 1;
        }
        if let Some(Slice {
            bytes,
            pause: between,
            dice,
        }) = &self.slice
        {
            self.piece = self.piece.min(dice.bytes(2 * self.pieces, bytes).max(1));
            if !begins_reply {
                pause += dice.time(2 * self.pieces + 1, between);
            }
            self.pieces += 1;
        } else if let Some(rate) = self.rate {
            self.piece = self.piece.min((rate / 100).max(1)); // What a tick brings.
        }
        if let Some(rate) = self.rate {
            let nanos = u128::from(self.piece) * 1_000_000_000 / u128::from(rate);
            pause += Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        }
        if !pause.is_zero() {
            // If a timer fired late, the next pause is shorter, so that the rate is kept.
            let last = self.due.filter(|_| !begins_reply);
            let late = last.map_or(Duration::ZERO, |due| time::now().duration_since(due));
            let late = Some(late).filter(|late| *late <= TICK).unwrap_or_default();
            let pause = time::sleep(pause.saturating_sub(late));
            self.due = Some(pause.deadline());
            self.pause = Some(pause);
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let Some((share, dice)) = self.corrupt else {
            return stream.poll_write(cx, bytes);
        };
        let mut bytes = bytes[..bytes.len().min(CORRUPTED_MAX)].to_vec();
        for (byte, place) in bytes.iter_mut().zip(self.sent..) {
            let mut random = dice.at(place);
            if random.u64(..1000) < share {
                *byte ^= 1 << random.u8(..8);
            }
        }
        stream.poll_write(cx, &bytes)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Faulty<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match ready!(self.poll_end(cx))? {
            Some(End::Close) => Poll::Ready(Ok(0)),
            _ => Pin::new(&mut self.stream).poll_read(cx, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Faulty<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if ready!(self.poll_end(cx))?.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        if self.piece == 0 {
            self.begin_piece(bytes.len());
        }
        ready!(self.poll_pause(cx));
        let most = usize::try_from(self.piece).unwrap_or(usize::MAX);
        let sent = ready!(self.poll_send(cx, &bytes[..bytes.len().min(most)]))?;
        self.sent += sent as u64;
        self.left = bytes.len() - sent;
        self.piece = if self.left > 0 {
            self.piece - sent as u64
        } else {
            0
        };
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_end(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_end(cx))?;
        self.poll_close_late(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("stream", &self.stream)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}
