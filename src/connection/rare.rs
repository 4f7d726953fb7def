//! What few connections need, and so is no part of every one.

use std::cell::Cell;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::activity::Timers;
use super::direction::Waiters;
use super::terms::Terms;

/// What few connections need.
#[derive(Default)]
pub(super) struct Rare {
    pub(super) timers: Timers,
    /// The server, which waits for the handler's side to let go.
    pub(super) owner: Option<Waker>,
    pub(super) readers: Option<Arc<Waiters>>,
    pub(super) writers: Option<Arc<Waiters>>,
    /// In place of the server's. Boxed, since connections that wait have what else is here.
    own: Option<Box<OwnTimeouts>>,
    /// What befalls it on purpose.
    pub(super) faults: Option<Rc<String>>,
}

/// Timeouts of the connection's own: how long, or that there is none.
#[derive(Default)]
pub(super) struct OwnTimeouts {
    pub(super) idle: Option<Option<Duration>>,
    pub(super) stall: Option<Option<Duration>>,
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

    /// Sets timeouts of the connection's own. Those who wait with a timer look anew.
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
