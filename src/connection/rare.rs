//! What few connections need, and so is no part of every one.

use std::cell::Cell;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use super::direction::Waiters;
use super::terms::Terms;

/// What few connections need: nothing but a pointer, in all the others.
#[derive(Default)]
pub(super) struct Rare {
    parts: Cell<Option<Box<RareParts>>>,
}

#[derive(Default)]
pub(super) struct RareParts {
    /// The server, which waits for the handler's side to let go.
    pub(super) owner: Option<Waker>,
    pub(super) readers: Option<Arc<Waiters>>,
    pub(super) writers: Option<Arc<Waiters>>,
    /// In place of the server's: a timeout, or that there is none.
    pub(super) idle_timeout: Option<Option<Duration>>,
    pub(super) stall_timeout: Option<Option<Duration>>,
}

impl Rare {
    /// Makes the parts, if there are none.
    pub(super) fn with<T>(&self, body: impl FnOnce(&mut RareParts) -> T) -> T {
        let mut parts = self.parts.take().unwrap_or_default();
        let result = body(&mut parts);
        self.parts.set(Some(parts));
        result
    }

    /// Looks at the parts, if there are any.
    pub(super) fn peek<T>(&self, look: impl FnOnce(&mut RareParts) -> T) -> Option<T> {
        let mut parts = self.parts.take();
        let result = parts.as_deref_mut().map(look);
        self.parts.set(parts);
        result
    }

    /// The connection's own, or its server's.
    pub(super) fn idle_timeout(&self, terms: &Terms) -> Option<Duration> {
        let own = self.peek(|rare| rare.idle_timeout).flatten();
        own.unwrap_or(terms.idle_timeout)
    }

    /// The connection's own, or its server's.
    pub(super) fn stall_timeout(&self, terms: &Terms) -> Option<Duration> {
        let own = self.peek(|rare| rare.stall_timeout).flatten();
        own.unwrap_or(terms.stall_timeout)
    }
}
