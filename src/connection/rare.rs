//! State that only few connections need, so it is not a part of every connection.

use std::cell::Cell;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::activity::Timers;
use super::direction::Waiters;
use super::terms::Terms;

/// State that only few connections need.
#[derive(Default)]
pub(super) struct Rare {
    pub(super) timers: Timers,
    /// The server's task, which waits until the handler's side drops the connection.
    pub(super) owner: Option<Waker>,
    pub(super) readers: Option<Arc<Waiters>>,
    pub(super) writers: Option<Arc<Waiters>>,
    /// Timeouts that replace those of the server. Boxed, because connections that wait with a timeout need the other
    /// fields, but rarely this one.
    own: Option<Box<OwnTimeouts>>,
    /// The faults of the connection.
    pub(super) faults: Option<Rc<String>>,
}

/// The connection's own timeouts: for each, a duration, or that it is off.
#[derive(Default)]
pub(super) struct OwnTimeouts {
    pub(super) idle: Option<Option<Duration>>,
    pub(super) stall: Option<Option<Duration>>,
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

    /// Sets the connection's own timeouts. Tasks that wait with a timer check it again.
    pub(super) fn set_own(&self, set: impl FnOnce(&mut OwnTimeouts)) {
        let timers = self.with(|rare| {
            set(rare.own.get_or_insert_default());
            mem::take(&mut rare.timers)
        });
        timers.wake();
    }

    fn own<T>(&self, get: impl FnOnce(&OwnTimeouts) -> Option<T>) -> Option<T> {
        self.if_there(|rare| get(rare.own.as_deref()?)).flatten()
    }

    pub(super) fn idle_timeout(&self, terms: &Terms) -> Option<Duration> {
        self.own(|own| own.idle).unwrap_or(terms.idle_timeout)
    }

    pub(super) fn stall_timeout(&self, terms: &Terms) -> Option<Duration> {
        self.own(|own| own.stall).unwrap_or(terms.stall_timeout)
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
