//! How long tasks run between two looks at the sockets.

use std::time::Duration;

/// How long tasks run before the loop looks at the sockets again. Longer costs latency beside busy connections,
/// shorter costs system calls: a look is five of them in smol's reactor. So while looks find nothing and more is ready,
/// a turn doubles, up to the longest; but not beside connections that have had their burst.
pub(super) const TURN: Duration = Duration::from_micros(100);
const LONGEST_TURN: Duration = Duration::from_micros(400);

/// The turn: how long it lasts, and how many tasks it has left ready.
#[derive(Default)]
pub(super) struct Turn {
    length: Duration,
    left: usize,
}

impl Turn {
    /// Begins the next turn with so many tasks that are ready. Returns how long it lasts. `is_flooded`: a connection
    /// has had its burst, and the others are to be protected from it.
    pub(super) fn begin(&mut self, ready: usize, is_flooded: bool) -> Duration {
        let found = ready > self.left;
        self.length = match found || self.left == 0 || is_flooded {
            true => TURN,
            false => (2 * self.length).min(LONGEST_TURN),
        };
        self.length
    }

    /// Ends it with so many that are still ready. Returns whether there are any.
    pub(super) fn end(&mut self, left: usize) -> bool {
        self.left = left;
        left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of the next turn, with so many tasks that were left over and so many that are ready.
    fn next(turn: &mut Turn, left: usize, ready: usize, is_flooded: bool) -> Duration {
        assert_eq!(turn.end(left), left > 0);
        turn.begin(ready, is_flooded)
    }

    #[test]
    fn a_turn_gets_longer_only_while_looks_find_nothing_and_nobody_floods() {
        let mut turn = Turn::default();
        assert_eq!(turn.begin(2, false), TURN);
        for length in [2 * TURN, LONGEST_TURN, LONGEST_TURN] {
            assert_eq!(next(&mut turn, 2, 2, false), length);
        }
        assert_eq!(next(&mut turn, 2, 3, false), TURN, "a look found something");
        assert_eq!(next(&mut turn, 3, 3, false), 2 * TURN);
        assert_eq!(next(&mut turn, 3, 3, true), TURN, "a connection floods");
        assert_eq!(next(&mut turn, 3, 3, false), 2 * TURN);
        assert_eq!(next(&mut turn, 0, 0, false), TURN, "nothing was left");
    }
}
