//! When bytes last went through a connection, and the timeouts that count from there.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::ready;

use crate::time::{self, Sleep};

use super::terms::Terms;

/// A connection whose handler waits for something else may be idle a little longer: a twentieth of the timeout, within
/// these bounds. Meanwhile the loop looks at the sockets, and what the handler waits for may be there.
const LAST_CHANCE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// What stands for a time that was not noted yet.
const NEWER: u64 = u64::MAX;

/// When bytes last went in or out: in nanoseconds on the clock of the terms, or [`NEWER`]. The clock is read when a read
/// is about to wait, and not for each message.
pub(super) struct Activity(Cell<u64>);

/// The timers of a connection. Few wait with a timeout, so this is no part of every one.
#[derive(Default)]
pub(super) struct Timers {
    /// Fires when nothing went in or out for long, for a read that waits.
    silence: Option<Sleep>,
    /// The same, for the server.
    watch: Option<Sleep>,
    /// The activity after which the server found the connection idle once.
    found_idle: Option<u64>,
    stall: Option<Sleep>,
    /// Since when a write has waited for the peer to read.
    stalled_since: Option<Instant>,
}

impl Activity {
    pub(super) fn new(now: u64) -> Activity {
        Activity(Cell::new(now))
    }

    /// Bytes went in or out.
    pub(super) fn happened(&self) {
        self.0.set(NEWER);
    }

    /// When that was. Reads the clock, if something happened since it was read: what is noted so is never earlier than
    /// what happened.
    pub(super) fn note(&self, terms: &Terms) -> u64 {
        if self.0.get() == NEWER {
            self.0.set(terms.nanos_now());
        }
        self.0.get()
    }

    /// Until when there may be silence. None for ever.
    fn deadline(&self, terms: &Terms, limit: Duration) -> Option<Instant> {
        terms.instant(self.note(terms)).checked_add(limit)
    }
}

/// Silence: nothing goes in or out, and no write waits for the peer. Who waits for its peer to read is in the middle of a
/// transfer, and how long is the stall timeout's to say.
pub(super) struct Silence<'l, B> {
    pub(super) activity: &'l Activity,
    pub(super) terms: &'l Terms,
    /// How long it may last.
    pub(super) limit: Duration,
    /// Whether a write waits for the peer.
    pub(super) is_blocked: B,
}

impl<B: Fn() -> bool> Silence<'_, B> {
    fn deadline(&self) -> Option<Instant> {
        self.activity.deadline(self.terms, self.limit)
    }

    fn is_over(&self) -> bool {
        if (self.is_blocked)() {
            self.activity.happened();
        }
        self.terms.since(self.activity.note(self.terms)) >= self.limit
    }

    /// Ready when it has lasted too long. The timer is not set anew for every message: when it fires, it looks at the
    /// last activity and waits for the rest.
    fn poll(&self, timer: &mut Option<Sleep>, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(deadline) = self.deadline() {
            let sleep = timer.get_or_insert_with(|| time::sleep_until(deadline));
            ready!(Pin::new(sleep).poll(cx));
            *timer = None;
            if self.is_over() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl Timers {
    /// Ready when there was silence for too long, for a read that waits.
    pub(super) fn poll_silence(
        &mut self,
        silence: &Silence<'_, impl Fn() -> bool>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        // The drain makes the limit shorter.
        if let Some(sleep) = &mut self.silence
            && let Some(deadline) = silence.deadline()
            && sleep.deadline() > deadline
        {
            sleep.reset(deadline);
        }
        silence.poll(&mut self.silence, cx)
    }

    /// The same, for whoever watches over a connection that nobody reads and nobody writes: there is silence, and was a
    /// moment before.
    pub(super) fn poll_abandoned(
        &mut self,
        silence: &Silence<'_, impl Fn() -> bool>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            ready!(silence.poll(&mut self.watch, cx));
            let last = Some(silence.activity.note(silence.terms));
            if self.found_idle == last {
                return Poll::Ready(());
            }
            self.found_idle = last;
            let (least, most) = LAST_CHANCE;
            self.watch = Some(time::sleep((silence.limit / 20).clamp(least, most)));
        }
    }

    /// Ready when a write has waited for the stall timeout.
    pub(super) fn poll_stall(&mut self, timeout: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.stalled_since.get_or_insert_with(time::now);
        let Some(deadline) = since.checked_add(timeout) else {
            return Poll::Pending;
        };
        let stall = self
            .stall
            .get_or_insert_with(|| time::sleep_until(deadline));
        ready!(Pin::new(stall).poll(cx));
        self.end_stall();
        Poll::Ready(())
    }

    /// Has those look anew who wait: the timeouts have changed.
    pub(super) fn wake(self) {
        let timers = [self.silence, self.watch, self.stall];
        timers.into_iter().flatten().for_each(Sleep::wake);
    }

    /// The peer has taken something.
    pub(super) fn end_stall(&mut self) {
        if self.stalled_since.take().is_some() {
            self.stall = None;
        }
    }
}
