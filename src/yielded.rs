//! Tasks that have had their share of a turn and go last.
//!
//! A task that wakes itself stands behind those that are ready now, but before those that an event makes ready a moment
//! later. Such an event would wait for all of many busy connections. So a connection whose burst is over is kept here
//! and woken when no other task is ready, or once in a turn, whichever comes first.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem;
use std::task::Waker;

thread_local! {
    static QUEUE: RefCell<Queue> = const { RefCell::new(Queue::new()) };
}

struct Queue {
    /// A loop runs on this thread, which wakes those in the queue.
    is_served: bool,
    /// How many were woken so far, over all loops of this thread: the place of the one that is next.
    woken: u32,
    waiting: VecDeque<Waker>,
}

/// Where somebody stands in the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place(pub(crate) u32);

impl Queue {
    const fn new() -> Queue {
        Queue {
            is_served: false,
            woken: 0,
            waiting: VecDeque::new(),
        }
    }

    fn pop(&mut self) -> Option<Waker> {
        let waker = self.waiting.pop_front()?;
        self.woken = self.woken.wrapping_add(1);
        Some(waker)
    }
}

/// From now on a loop on this thread wakes those that go last.
pub(crate) fn begin() {
    QUEUE.with_borrow_mut(|queue| queue.is_served = true);
}

/// Wakes all that are left, for the next run of their loop.
pub(crate) fn end() {
    QUEUE.with_borrow_mut(|queue| queue.is_served = false);
    while wake_next() {}
}

/// Puts `waker` last. `None` if no loop runs on this thread, and nobody would wake it.
pub(crate) fn go_last(waker: &Waker) -> Option<Place> {
    QUEUE.with_borrow_mut(|queue| {
        let place = queue.woken.wrapping_add(queue.waiting.len() as u32);
        queue.is_served.then(|| {
            queue.waiting.push_back(waker.clone());
            Place(place)
        })
    })
}

/// Whether the turn of `place` is still to come. Then it is `waker` that will be woken.
pub(crate) fn is_waiting(place: Place, waker: &Waker) -> bool {
    let before = QUEUE.with_borrow_mut(|queue| {
        let index = place.0.wrapping_sub(queue.woken) as usize;
        let kept = queue.waiting.get_mut(index)?;
        Some(mem::replace(kept, waker.clone()))
    });
    before.is_some()
}

/// Wakes the one that came first. Returns whether there was one.
pub(crate) fn wake_next() -> bool {
    let next = QUEUE.with_borrow_mut(Queue::pop);
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
        let wakers = tasks.each_ref().map(|task| Waker::from(task.clone()));
        assert_eq!(go_last(&wakers[0]), None, "no loop would wake it");

        begin();
        let places = [0, 1, 0].map(|task| go_last(&wakers[task]).unwrap());
        assert!(
            is_waiting(places[2], &wakers[2]),
            "another task waits there now"
        );
        assert!(wake_next());
        assert_eq!(wakes(), [1, 0, 0]);
        assert!(!is_waiting(places[0], &wakers[0]));
        assert!(is_waiting(places[1], &wakers[1]));
        end();
        assert_eq!(wakes(), [1, 1, 1]);
        assert!(!wake_next());
        assert!(places.iter().all(|&place| !is_waiting(place, &wakers[0])));
    }
}
