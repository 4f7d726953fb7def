//! Tasks that have had their share of a turn and go last.
//!
//! A task that wakes itself stands behind those that are ready now, but before those that an event makes ready a moment
//! later. Such an event would wait for all of many busy connections. So a connection whose burst is over is kept here
//! and woken when no other task is ready, or once in a turn, whichever comes first.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::Waker;

thread_local! {
    /// Those that go last, in the order in which they came, while a loop runs on this thread.
    static YIELDED: RefCell<Option<VecDeque<Waker>>> = const { RefCell::new(None) };
}

/// From now on a loop on this thread wakes those that go last.
pub(crate) fn begin() {
    YIELDED.set(Some(VecDeque::new()));
}

/// Wakes all that are left, for the next run of their loop.
pub(crate) fn end() {
    let left = YIELDED.take();
    left.into_iter().flatten().for_each(Waker::wake);
}

/// Wakes `waker` last; at once if no loop runs on this thread.
pub(crate) fn wake_last(waker: &Waker) {
    let kept = YIELDED.with_borrow_mut(|yielded| match yielded {
        Some(yielded) => {
            yielded.push_back(waker.clone());
            true
        }
        None => false,
    });
    if !kept {
        waker.wake_by_ref();
    }
}

/// Wakes the one that came first. Returns whether there was one.
pub(crate) fn wake_next() -> bool {
    let next = YIELDED.with_borrow_mut(|yielded| yielded.as_mut()?.pop_front());
    next.map(Waker::wake).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn those_that_go_last_are_woken_one_by_one_and_none_is_forgotten() {
        let tasks: [Arc<Wakes>; 3] = Default::default();
        let wakes = || tasks.each_ref().map(|task| task.0.load(Ordering::Relaxed));
        let go_last = || {
            tasks
                .iter()
                .for_each(|task| wake_last(&task.clone().into()))
        };
        go_last();
        assert_eq!(wakes(), [1, 1, 1], "no loop would wake them");

        begin();
        go_last();
        assert_eq!(wakes(), [1, 1, 1]);
        assert!(wake_next());
        assert_eq!(wakes(), [2, 1, 1]);
        end();
        assert_eq!(wakes(), [2, 2, 2]);
        assert!(!wake_next());
    }
}
