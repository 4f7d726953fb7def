//! The time of the last traffic on a connection, and the timeouts that count from it.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_lite::ready;

use crate::time::{self, Sleep};

use super::terms::Terms;

/// Extra time for an idle connection whose handler waits for something else: a twentieth of the timeout, within these
/// bounds. In this time the loop polls the sockets, so that an event that is already there can still wake the handler.
const LAST_CHANCE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// How often a waiting write is tried within the stall timeout. Linux reports room when a third of the send buffer is
/// free, and a slow reader may have freed less. The buffer itself may grow a moment after the write began to wait, so a
/// single try at the end would take this growth for a peer that reads, and the timeout would last twice its time.
const STALL_TRIES: u32 = 4;

/// Stands for traffic whose time is not recorded yet.
const NEWER: u64 = u64::MAX;

/// The time of the last traffic: nanoseconds on the clock of the terms, or [`NEWER`]. The clock is read only when a
/// read is about to wait, and not for each message.
pub(super) struct Activity(Cell<u64>);

/// The timers of a connection. Few connections wait with a timeout, so the timers are not a part of every connection.
#[derive(Default)]
pub(super) struct Timers {
    /// The idle timer of a waiting read.
    silence: Option<Sleep>,
    /// The idle timer of the server.
    watch: Option<Sleep>,
    /// The time of the last traffic when the server first found the connection idle.
    found_idle: Option<u64>,
    stall: Option<Sleep>,
    /// The time since when a write has waited for the peer to read.
    stalled_since: Option<Instant>,
}

impl Activity {
    pub(super) fn new(now: u64) -> Activity {
        Activity(Cell::new(now))
    }

    /// Records that bytes went in or out.
    pub(super) fn happened(&self) {
        self.0.set(NEWER);
    }

    /// The time of the last traffic. Reads the clock if there was traffic since the last call, so the recorded time is
    /// never earlier than the traffic.
    pub(super) fn note(&self, terms: &Terms) -> u64 {
        if self.0.get() == NEWER {
            self.0.set(terms.nanos_now());
        }
        self.0.get()
    }
}

/// Silence: no bytes go in or out, and no write waits for the peer. A connection whose write waits is in the middle of
/// a transfer, and only the stall timeout limits this wait.
pub(super) struct Silence<'l, B> {
    pub(super) activity: &'l Activity,
    pub(super) terms: &'l Terms,
    /// The permitted duration of the silence.
    pub(super) limit: Duration,
    /// Whether a write waits for the peer.
    pub(super) is_blocked: B,
}

impl<B: Fn() -> bool> Silence<'_, B> {
    /// The end of the permitted silence. `None` if it never ends.
    fn deadline(&self) -> Option<Instant> {
        let last_traffic = self.activity.note(self.terms);
        self.terms.instant(last_traffic).checked_add(self.limit)
    }

    pub(super) fn is_over(&self) -> bool {
        if (self.is_blocked)() {
            self.activity.happened();
        }
        self.terms.since(self.activity.note(self.terms)) >= self.limit
    }

    /// Ready when the silence was too long. The timer is not reset for every message: when it fires, it checks the time
    /// of the last traffic and waits for the remaining time.
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
    /// Ready when there was silence for too long. For a waiting read.
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

    /// Like [`Timers::poll_silence`], for the server, which watches connections that no task reads or writes. Ready
    /// when the connection was silent for too long, and still is after a short extra time.
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

    /// Ready when a waiting write has to try again. Returns whether it has then waited for the stall timeout.
    pub(super) fn poll_stall(&mut self, timeout: Duration, cx: &mut Context<'_>) -> Poll<bool> {
        let now = time::now();
        let since = *self.stalled_since.get_or_insert(now);
        let deadline = since.checked_add(timeout);
        let Some(deadline) = deadline.filter(|_| timeout <= time::NEVER) else {
            return Poll::Pending;
        };
        let stall = self.stall.get_or_insert_with(|| {
            // Time goes on between two tries, also on a clock for tests.
            let pause = (timeout / STALL_TRIES).max(Duration::from_nanos(1));
            time::sleep_until(time::later(now, pause).min(deadline))
        });
        ready!(Pin::new(stall).poll(cx));
        self.stall = None;
        let is_over = now >= deadline;
        if is_over {
            self.end_stall();
        }
        Poll::Ready(is_over)
    }

    /// Wakes the waiting tasks, so that they check the changed timeouts.
    pub(super) fn wake(self) {
        let timers = [self.silence, self.watch, self.stall];
        timers.into_iter().flatten().for_each(Sleep::wake);
    }

    /// The peer has taken some data.
    pub(super) fn end_stall(&mut self) {
        if self.stalled_since.take().is_some() {
            self.stall = None;
        }
    }
}
