//! An epoll set.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

const EVENTS: usize = 512;

pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
    patience: Duration,
    heard: Instant,
}

/// A socket that is ready: the index that it was added with, and for what.
pub struct Ready {
    pub index: usize,
    pub readable: bool,
    pub writable: bool,
}

impl Poller {
    /// A set whose servers may be silent for so long while they are waited for.
    pub fn new(patience: Duration) -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            patience,
            heard: Instant::now(),
        })
    }

    /// Begins to wait after a pause, whose silence does not count.
    pub fn resume(&mut self) {
        self.heard = Instant::now();
    }

    pub fn add(&self, socket: &OwnedFd, index: usize, flags: EventFlags) -> Result<()> {
        let key = EventData::new_u64(index as u64);
        Ok(epoll::add(&self.epoll, socket, key, flags)?)
    }

    pub fn modify(&self, socket: &OwnedFd, index: usize, flags: EventFlags) -> Result<()> {
        let key = EventData::new_u64(index as u64);
        Ok(epoll::modify(&self.epoll, socket, key, flags)?)
    }

    /// Waits for at most `timeout`, and returns the time.
    /// It is an error when nothing has been ready for long.
    pub fn wait(&mut self, timeout: Duration) -> Result<Instant> {
        let timeout = Timespec::try_from(timeout)?;
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            Some(&timeout),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let now = Instant::now();
        if !self.events.is_empty() {
            self.heard = now;
        }
        ensure!(now - self.heard < self.patience, "the server fell silent");
        Ok(now)
    }

    /// What the last wait has found ready.
    pub fn ready(&self) -> impl Iterator<Item = Ready> {
        self.events.iter().map(|event| {
            let flags = event.flags;
            let lost = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            Ready {
                index: event.data.u64() as usize,
                readable: lost || flags.contains(EventFlags::IN),
                writable: lost || flags.contains(EventFlags::OUT),
            }
        })
    }
}
