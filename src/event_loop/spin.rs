//! Busy polling: whether to poll the sockets for a while before going to sleep.

use std::time::{Duration, Instant};

/// Busy polling: whether to poll the sockets for a while before going to sleep.
///
/// Sleeping and waking up costs more CPU time and latency than polling the sockets a few times. So if the last sleep
/// was short, the loop polls the sockets for a while before it sleeps again (a spin). If a spin finds nothing, the loop
/// skips the next chance to spin, then two, then four (exponential backoff). An idle loop does not spin. With one
/// connection and messages of 64 B, tinyloop makes 2.07 times as many round trips a second as tokio (`just bench`,
/// 2026-11-25).
#[derive(Default)]
pub(super) struct Spin {
    since: Option<Instant>,
    /// The last sleep was short, so a spin would probably have been enough.
    promising: bool,
    /// `penalty`: chances to skip after the next useless spin. `skip`: chances still to skip now.
    penalty: u32,
    skip: u32,
}

/// The duration of a spin: about twice the cost of a sleep and a wake-up. So a spin also catches the next message of a
/// peer that itself sleeps between messages.
const SPIN: Duration = Duration::from_micros(50);

/// A shorter sleep counts as short. It is the time of a spin and a wake-up.
const SHORT_SLEEP: Duration = Duration::from_micros(100);

/// The maximum number of chances to skip.
const MAX_PENALTY: u32 = 256;

impl Spin {
    /// Nothing is ready. Returns whether to poll the sockets once more instead of sleeping.
    pub(super) fn goes_on(&mut self, now: Instant) -> bool {
        match self.since {
            Some(since) if now - since < SPIN => true,
            Some(_) => {
                self.since = None;
                self.penalty = (2 * self.penalty).clamp(1, MAX_PENALTY);
                self.skip = self.penalty;
                false
            }
            None if !self.promising => false,
            None if self.skip > 0 => {
                self.skip -= 1;
                false
            }
            None => {
                self.since = Some(now);
                true
            }
        }
    }

    /// Something is ready.
    pub(super) fn succeeded(&mut self) {
        if self.since.take().is_some() {
            self.penalty = 0;
        }
    }

    pub(super) fn slept(&mut self, duration: Duration) {
        self.promising = duration < SHORT_SLEEP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `chances` a loop spins if it never finds anything, although its sleeps are short.
    fn spins_in_vain(spin: &mut Spin, chances: u32) -> u32 {
        let mut now = Instant::now();
        let mut spins = 0;
        for _ in 0..chances {
            spin.slept(Duration::ZERO);
            if spin.goes_on(now) {
                spins += 1;
                assert!(spin.goes_on(now + SPIN / 2), "a spin lasts");
                now += SPIN;
                assert!(!spin.goes_on(now), "a spin has an end");
            }
        }
        spins
    }

    #[test]
    fn a_loop_that_sleeps_long_does_not_spin() {
        let mut spin = Spin::default();
        assert!(!spin.goes_on(Instant::now()));
        spin.slept(SHORT_SLEEP);
        assert!(!spin.goes_on(Instant::now()));
    }

    #[test]
    fn spinning_in_vain_backs_off_and_success_ends_that() {
        let mut spin = Spin::default();
        let spins = spins_in_vain(&mut spin, 1000);
        assert_eq!(spins, 11, "the pauses double, up to {MAX_PENALTY}");
        while !spin.goes_on(Instant::now()) {}
        spin.succeeded();
        assert_eq!(spins_in_vain(&mut spin, 3), 2, "a single pause between");
    }
}
