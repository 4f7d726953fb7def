//! What few connections need, and so is no part of every one.

use std::cell::Cell;
use std::sync::Arc;
use std::task::Waker;

use super::activity::Timers;
use super::direction::Waiters;

/// What few connections need.
#[derive(Default)]
pub(super) struct Rare {
    pub(super) timers: Timers,
    /// The server, which waits for the handler's side to let go.
    pub(super) owner: Option<Waker>,
    pub(super) readers: Option<Arc<Waiters>>,
    pub(super) writers: Option<Arc<Waiters>>,
}

/// The same, made when it is needed first.
#[derive(Default)]
pub(super) struct Rarely(Cell<Option<Box<Rare>>>);

impl Rarely {
    /// Makes it if need be. `body` must not ask for it again.
    pub(super) fn with<T>(&self, body: impl FnOnce(&mut Rare) -> T) -> T {
        let mut rare = self.0.take().unwrap_or_default();
        let result = body(&mut rare);
        self.0.set(Some(rare));
        result
    }

    /// Does nothing if it is not made yet. `body` must not ask for it again.
    pub(super) fn if_there<T>(&self, body: impl FnOnce(&mut Rare) -> T) -> Option<T> {
        let mut rare = self.0.take()?;
        let result = body(&mut rare);
        self.0.set(Some(rare));
        Some(result)
    }

    /// The waker that the tasks share which wait for a direction, from the second of them on.
    pub(super) fn shared_waker(
        &self,
        is_second: bool,
        slot: impl FnOnce(&mut Rare) -> &mut Option<Arc<Waiters>>,
    ) -> Option<Arc<Waiters>> {
        if is_second {
            Some(self.with(|rare| slot(rare).get_or_insert_default().clone()))
        } else {
            self.if_there(|rare| slot(rare).clone()).flatten()
        }
    }
}
