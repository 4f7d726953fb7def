//! Connect, echo, close: each connection carries one small round trip.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::socket::{connect_from, receive_small, send_small};
use super::{Pattern, SourceAddresses};

pub struct Connects<'a> {
    server: SocketAddrV4,
    pattern: &'a Pattern,
    sources: &'a SourceAddresses,
    /// The connections that await a reply, the oldest first, with where in the pattern the
    /// message began.
    open: VecDeque<(OwnedFd, u64)>,
    /// How many are open at once.
    most: usize,
    count: u64,
}

impl<'a> Connects<'a> {
    pub fn new(
        server: SocketAddrV4,
        pattern: &'a Pattern,
        sources: &'a SourceAddresses,
        most: usize,
    ) -> Self {
        Self {
            server,
            pattern,
            sources,
            open: VecDeque::new(),
            most,
            count: 0,
        }
    }

    /// Keeps on for a while, and returns how many connections were served.
    ///
    /// Blocking calls on the oldest connection need no epoll set, which keeps the load generator
    /// cheap; a server answers connections about in the order in which they came.
    pub fn run_for(&mut self, duration: Duration) -> Result<u64> {
        let end = Instant::now() + duration;
        let before = self.count;
        while Instant::now() < end {
            while self.open.len() < self.most {
                let socket = connect_from(self.sources, self.server)?;
                let position = (self.count + self.open.len() as u64) * 7919;
                send_small(&socket, self.pattern, position)?;
                self.open.push_back((socket, position));
            }
            self.finish_oldest()?;
        }
        Ok(self.count - before)
    }

    /// Finishes all open connections, so that the server has nothing to do.
    pub fn pause(&mut self) -> Result<()> {
        while !self.open.is_empty() {
            self.finish_oldest()?;
        }
        Ok(())
    }

    fn finish_oldest(&mut self) -> Result<()> {
        if let Some((socket, position)) = self.open.pop_front() {
            receive_small(&socket, self.pattern, position)?;
            self.count += 1;
        }
        Ok(())
    }
}
