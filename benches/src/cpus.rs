//! One CPU for the servers and another one for the load generator, or all for both.

use anyhow::{Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

#[derive(Clone, Copy)]
pub struct Cpus {
    server: usize,
    generator: usize,
    /// All that this process may use.
    all: CpuSet,
}

impl Cpus {
    /// The first and the last CPU that this process may use: those two are rarely two threads
    /// of the same core.
    pub fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
        let first = usable.next();
        ensure!(first.is_some(), "this process may use no CPU");
        let server = first.unwrap_or_default();
        Ok(Self {
            server,
            generator: usable.next_back().unwrap_or(server),
            all: allowed,
        })
    }

    /// Whether server and load generator have to share one CPU.
    pub fn are_the_same(self) -> bool {
        self.server == self.generator
    }

    /// Keeps this thread, and what it starts from now on, on the load generator's CPU.
    pub fn use_generator(self) -> Result<()> {
        pin(self.generator)
    }

    /// Lets this thread, and what it starts from now on, use all CPUs.
    pub fn use_all(self) -> Result<()> {
        Ok(sched_setaffinity(None, &self.all)?)
    }

    /// Keeps this thread on the servers' CPU.
    pub fn use_server(self) -> Result<()> {
        pin(self.server)
    }

    /// Does something that starts a process, which then is on the server's CPU from its begin.
    pub fn on_server<T>(self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        self.use_server()?;
        let outcome = start();
        self.use_generator()?;
        outcome
    }
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
