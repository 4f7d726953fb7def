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

/// When bytes last went in or out.
pub(super) struct Activity {
    /// In nanoseconds on the clock of the terms, as far as it was noted.
    last: Cell<u64>,
    /// Bytes went in or out since then. The clock is read when a read is about to wait, and not for each message.
    is_newer: Cell<bool>,
    /// Few connections wait with a timeout, so this is no part of every one.
    timers: Cell<Option<Box<Timers>>>,
}

#[derive(Default)]
struct Timers {
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
        Activity {
            last: Cell::new(now),
            is_newer: Cell::new(false),
            timers: Cell::new(None),
        }
    }

    /// Bytes went in or out.
    pub(super) fn happened(&self) {
        self.is_newer.set(true);
    }

    /// Reads the clock, if something happened since it was read. What is noted so is never earlier than what happened.
    pub(super) fn note(&self, terms: &Terms) {
        if self.is_newer.take() {
            self.last.set(terms.nanos_now());
        }
    }

    /// Ready when nothing went in or out for `limit`. `is_blocked` tells whether a write waits for the peer: who waits for
    /// its peer to read is in the middle of a transfer, and how long is the stall timeout's to say.
    ///
    /// The timer is not set anew for every message: when it fires, it looks at the last activity and waits for the rest.
    pub(super) fn poll_silence(
        &self,
        terms: &Terms,
        limit: Duration,
        is_blocked: impl Fn() -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.with_timers(|timers| {
            while let Some(deadline) = self.deadline(terms, limit) {
                let sleep = timers
                    .silence
                    .get_or_insert_with(|| time::sleep_until(deadline));
                if sleep.deadline() > deadline {
                    sleep.reset(deadline);
                }
                ready!(Pin::new(sleep).poll(cx));
                timers.silence = None;
                if self.is_silent(terms, limit, &is_blocked) {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
    }

    /// The same, for whoever watches over a connection that nobody reads and nobody writes: it is silent, and was so a
    /// moment before.
    pub(super) fn poll_abandoned(
        &self,
        terms: &Terms,
        limit: Duration,
        is_blocked: impl Fn() -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.with_timers(|timers| {
            while let Some(deadline) = self.deadline(terms, limit) {
                let watch = timers
                    .watch
                    .get_or_insert_with(|| time::sleep_until(deadline));
                ready!(Pin::new(watch).poll(cx));
                timers.watch = None;
                if self.is_silent(terms, limit, &is_blocked) {
                    let last = Some(self.last.get());
                    if timers.found_idle == last {
                        return Poll::Ready(());
                    }
                    timers.found_idle = last;
                    let (least, most) = LAST_CHANCE;
                    timers.watch = Some(time::sleep((limit / 20).clamp(least, most)));
                }
            }
            Poll::Pending
        })
    }

    /// Until when there may be silence. None for ever.
    fn deadline(&self, terms: &Terms, limit: Duration) -> Option<Instant> {
        self.note(terms);
        terms.instant(self.last.get()).checked_add(limit)
    }

    fn is_silent(&self, terms: &Terms, limit: Duration, is_blocked: impl Fn() -> bool) -> bool {
        if is_blocked() {
            self.happened();
        }
        self.note(terms);
        terms.since(self.last.get()) >= limit
    }

    /// Ready when a write has waited for the stall timeout.
    pub(super) fn poll_stall(&self, timeout: Option<Duration>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(timeout) = timeout else {
            return Poll::Pending;
        };
        self.with_timers(|timers| {
            let since = *timers.stalled_since.get_or_insert_with(time::now);
            let Some(deadline) = since.checked_add(timeout) else {
                return Poll::Pending;
            };
            let stall = timers
                .stall
                .get_or_insert_with(|| time::sleep_until(deadline));
            ready!(Pin::new(stall).poll(cx));
            timers.stall = None;
            timers.stalled_since = None;
            Poll::Ready(())
        })
    }

    /// The peer has taken something.
    pub(super) fn end_stall(&self) {
        let mut timers = self.timers.take();
        if let Some(timers) = &mut timers
            && timers.stalled_since.take().is_some()
        {
            timers.stall = None;
        }
        self.timers.set(timers);
    }

    /// Has those look anew who wait with a timer: the timeouts have changed.
    pub(super) fn look_again(&self) {
        if let Some(timers) = self.timers.take() {
            let timers = [timers.silence, timers.watch, timers.stall];
            timers.into_iter().flatten().for_each(Sleep::wake);
        }
    }

    fn with_timers<T>(&self, body: impl FnOnce(&mut Timers) -> T) -> T {
        let mut timers = self.timers.take().unwrap_or_default();
        let result = body(&mut timers);
        self.timers.set(Some(timers));
        result
    }
}
