//! State that only few connections need, so it is not a part of every connection.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use super::activity::Timers;
use super::direction::Waiters;
use super::terms::Timeouts;

/// State that only few connections need.
#[derive(Default)]
pub(super) struct Rare {
    pub(super) timers: Timers,
    /// The server's task, which waits until the handler's side drops the connection.
    pub(super) owner: Option<Waker>,
    pub(super) readers: Option<Arc<Waiters>>,
    pub(super) writers: Option<Arc<Waiters>>,
    /// Its own timeouts, in place of its server's. Boxed: most connections that need the other fields have none.
    pub(super) timeouts: Option<Box<Timeouts>>,
    /// The faults of the connection.
    pub(super) faults: Option<Rc<String>>,
}

/// Creates the rare state when it is first needed.
#[derive(Default)]
pub(super) struct Rarely(Cell<Option<Box<Rare>>>);

impl Rarely {
    /// Creates the state if it does not exist. `body` must not call this again.
    pub(super) fn with<T>(&self, body: impl FnOnce(&mut Rare) -> T) -> T {
        let mut rare = self.0.take().unwrap_or_default();
        let result = body(&mut rare);
        self.0.set(Some(rare));
        result
    }

    /// Does nothing if the state does not exist yet. `body` must not call this again.
    pub(super) fn if_there<T>(&self, body: impl FnOnce(&mut Rare) -> T) -> Option<T> {
        let mut rare = self.0.take()?;
        let result = body(&mut rare);
        self.0.set(Some(rare));
        Some(result)
    }

    /// The shared waker of the tasks that wait for a direction, from the second task on.
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
