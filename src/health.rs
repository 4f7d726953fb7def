//! Whether the servers of a loop take connections. Another thread can read it: the monitor's.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::report::{Report, lock};

/// The servers that run on a loop.
#[derive(Default)]
pub(crate) struct Servers {
    entered: Mutex<Vec<Entered>>,
}

struct Entered {
    /// The addresses that it listens on.
    addrs: String,
    report: Weak<Mutex<Report>>,
    health: Weak<Health>,
}

impl Servers {
    /// Enters a server, for as long as it runs. It notes in the result whether it takes connections.
    pub(crate) fn enter(&self, addrs: String, report: &Arc<Mutex<Report>>) -> Arc<Health> {
        let health = Arc::new(Health::default());
        let mut entered = lock(&self.entered);
        entered.retain(|server| server.report.strong_count() > 0);
        entered.push(Entered {
            addrs,
            report: Arc::downgrade(report),
            health: Arc::downgrade(&health),
        });
        health
    }

    /// The counters so far, with the addresses.
    pub(crate) fn reports(&self) -> Vec<(String, Report)> {
        let report = |server: &Entered| {
            let report = lock(&*server.report.upgrade()?).clone();
            Some((server.addrs.clone(), report))
        };
        lock(&self.entered).iter().filter_map(report).collect()
    }

    /// What ails the servers that run, with the addresses.
    pub(crate) fn ailments(&self) -> Vec<(String, Option<Ailment>)> {
        let ailment = |server: &Entered| {
            let ailment = server.health.upgrade()?.ailment();
            Some((server.addrs.clone(), ailment))
        };
        lock(&self.entered).iter().filter_map(ailment).collect()
    }
}

/// Whether a server takes connections. At first it does.
#[derive(Debug, Default)]
pub(crate) struct Health(AtomicU8);

/// What keeps a server from taking connections, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ailment {
    /// As many connections as may be are open, and more are rejected.
    Full = 1,
    /// It was told to shut down, and still accepts.
    LameDuck,
    Draining,
}

impl Health {
    pub(crate) fn set(&self, ailment: Option<Ailment>) {
        let code = ailment.map_or(0, |ailment| ailment as u8);
        self.0.store(code, Ordering::Relaxed);
    }

    pub(crate) fn ailment(&self) -> Option<Ailment> {
        let all = [Ailment::Full, Ailment::LameDuck, Ailment::Draining];
        let code = self.0.load(Ordering::Relaxed);
        all.into_iter().find(|&ailment| ailment as u8 == code)
    }
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ailment::Full => "full",
            Ailment::LameDuck => "about to drain (lame duck)",
            Ailment::Draining => "draining",
        })
    }
}
