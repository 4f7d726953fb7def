//! Round trips: every connection has one message outstanding.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::echo_check::EchoCheck;
use super::poller::Poller;
use super::socket::connect_and_echo;
use super::{PATIENCE, Pattern, SMALL};

/// Edge-triggered, which saves the kernel a second look at each socket. All that is there fits
/// into the buffer, so that one receive takes it.
const REPLIES: EventFlags = EventFlags::IN.union(EventFlags::ET);

/// Larger than any reply.
const BUFFER: usize = 64 * 1024;

pub struct RoundTrips<'a> {
    pattern: &'a Pattern,
    bytes: usize,
    links: Vec<Link>,
    poller: Poller,
    /// How long it sleeps at most until a reply comes.
    sleep: Duration,
    buffer: Vec<u8>,
    /// The connections whose next message is to be sent.
    answered: Vec<usize>,
}

/// One connection.
struct Link {
    socket: OwnedFd,
    check: EchoCheck,
    /// Up to where in the pattern bytes have been sent.
    sent: u64,
    /// Where in the pattern the outstanding message ends.
    end: u64,
    /// Whether the socket did not take all of the message yet.
    blocked: bool,
    started: Instant,
}

/// How long each round trip took, in nanoseconds.
pub type Latencies = Vec<u32>;

impl<'a> RoundTrips<'a> {
    /// Opens the connections, each with one round trip behind it.
    pub fn open(
        server: SocketAddrV4,
        connections: usize,
        bytes: usize,
        pattern: &'a Pattern,
    ) -> Result<Self> {
        let poller = Poller::new(PATIENCE)?;
        let mut links = Vec::with_capacity(connections);
        for index in 0..connections {
            let socket = connect_and_echo(server, pattern)?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            poller.add(&socket, index, REPLIES)?;
            // Each connection sends from a place of its own, so that a reply that was meant
            // for another connection is a wrong one.
            let position = (index * 7919) as u64;
            links.push(Link {
                socket,
                check: EchoCheck::from(position),
                sent: position,
                end: position,
                blocked: false,
                started: Instant::now(),
            });
        }
        Ok(Self {
            pattern,
            bytes,
            links,
            poller,
            // Nothing, so that no server pays for waking the load generator.
            sleep: Duration::ZERO,
            buffer: vec![0; BUFFER],
            answered: (0..connections).collect(),
        })
    }

    /// Sleeps until a reply comes, which leaves the CPU to a server that shares it.
    pub fn sleeping(self) -> Self {
        let sleep = PATIENCE;
        Self { sleep, ..self }
    }

    /// Keeps the round trips going for a while.
    pub fn run_for(&mut self, duration: Duration) -> Result<Latencies> {
        let mut latencies = Vec::with_capacity(64 * 1024);
        let end = Instant::now() + duration;
        self.poller.resume();
        loop {
            // All at once: a server that has nothing to do is woken by the first message, which
            // is dear, and finds the others too. If each message woke it anew, a fast server
            // would make the load generator slow.
            for index in self.answered.drain(..) {
                let link = &mut self.links[index];
                link.start_message(self.bytes);
                link.send_more(index, self.pattern, &self.poller)?;
            }
            if self.receive_ready(self.sleep, &mut latencies)? >= end {
                return Ok(latencies);
            }
        }
    }

    /// Waits until no message is outstanding, so that the server has nothing to do, and returns
    /// how many still were.
    pub fn pause(&mut self) -> Result<usize> {
        let mut latencies = Vec::new();
        while self.answered.len() < self.links.len() {
            self.receive_ready(PATIENCE, &mut latencies)?;
        }
        Ok(latencies.len())
    }

    /// Receives the replies that are there after at most `timeout`, and returns the time.
    fn receive_ready(&mut self, timeout: Duration, latencies: &mut Latencies) -> Result<Instant> {
        let now = self.poller.wait(timeout)?;
        for ready in self.poller.ready() {
            let link = &mut self.links[ready.index];
            if ready.writable {
                link.send_more(ready.index, self.pattern, &self.poller)?;
            }
            if ready.readable && link.receive(self.pattern, self.bytes, &mut self.buffer)? {
                latencies.push(link.started.elapsed().as_nanos() as u32);
                self.answered.push(ready.index);
            }
        }
        Ok(now)
    }
}

impl Link {
    fn start_message(&mut self, bytes: usize) {
        self.end += bytes as u64;
        self.started = Instant::now();
    }

    fn send_more(&mut self, index: usize, pattern: &Pattern, poller: &Poller) -> Result<()> {
        while self.sent < self.end {
            let rest = pattern.at(self.sent, (self.end - self.sent) as usize);
            match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(count) => self.sent += count as u64,
                Err(Errno::WOULDBLOCK) if self.blocked => return Ok(()),
                Err(Errno::WOULDBLOCK) => {
                    self.blocked = true;
                    return poller.modify(&self.socket, index, REPLIES | EventFlags::OUT);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if self.blocked {
            self.blocked = false;
            poller.modify(&self.socket, index, REPLIES)?;
        }
        Ok(())
    }

    /// Receives what is there, and says whether the whole message has come back.
    fn receive(&mut self, pattern: &Pattern, bytes: usize, buffer: &mut [u8]) -> Result<bool> {
        match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => bail!("the server closed a connection"),
            Ok((count, _)) => self.check.feed(pattern, &buffer[..count])?,
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        ensure!(
            self.check.position() <= self.sent,
            "wrong reply: more than was sent"
        );
        if self.check.position() < self.end {
            return Ok(false);
        }
        let last_chunk = self.check.end_message()?;
        ensure!(
            bytes > SMALL || last_chunk == bytes,
            "wrong reply: not the message in one piece"
        );
        Ok(true)
    }
}
