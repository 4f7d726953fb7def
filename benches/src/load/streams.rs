//! Streaming: the load generator writes as fast as it can on each connection, and reads the echo.

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
use super::{PATIENCE, Pattern};

/// How many bytes one send gives to a socket. Larger than a server's chunk, so that the load
/// generator makes fewer system calls than the server.
const WRITE: usize = 64 * 1024;
const READ: usize = 256 * 1024;

pub struct Streams<'a> {
    pattern: &'a Pattern,
    streams: Vec<Stream>,
    poller: Poller,
    buffer: Vec<u8>,
}

struct Stream {
    socket: OwnedFd,
    check: EchoCheck,
    sent: u64,
}

impl<'a> Streams<'a> {
    pub fn open(server: SocketAddrV4, connections: usize, pattern: &'a Pattern) -> Result<Self> {
        let poller = Poller::new(PATIENCE)?;
        let mut streams = Vec::with_capacity(connections);
        for index in 0..connections {
            let socket = connect_and_echo(server, pattern)?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            poller.add(&socket, index, EventFlags::IN | EventFlags::OUT)?;
            let position = (index * 7919) as u64;
            streams.push(Stream {
                socket,
                check: EchoCheck::from(position),
                sent: position,
            });
        }
        Ok(Self {
            pattern,
            streams,
            poller,
            buffer: vec![0; READ],
        })
    }

    /// Keeps the streams going for a while, and returns how many bytes came back.
    pub fn run_for(&mut self, duration: Duration) -> Result<u64> {
        let mut echoed = 0;
        let end = Instant::now() + duration;
        self.poller.resume();
        while self.poller.wait(Duration::ZERO)? < end {
            for ready in self.poller.ready() {
                let stream = &mut self.streams[ready.index];
                if ready.writable {
                    stream.send(self.pattern)?;
                }
                if ready.readable {
                    echoed += stream.receive(self.pattern, &mut self.buffer)?;
                }
            }
        }
        Ok(echoed)
    }

    /// Waits until all is back that was sent, so that the server has nothing to do.
    pub fn pause(&mut self) -> Result<()> {
        while self.streams.iter().any(Stream::awaits_replies) {
            // Without sleeping: the sockets are always ready to take more.
            self.poller.wait(Duration::ZERO)?;
            for ready in self.poller.ready() {
                if ready.readable {
                    self.streams[ready.index].receive(self.pattern, &mut self.buffer)?;
                }
            }
        }
        Ok(())
    }
}

impl Stream {
    fn awaits_replies(&self) -> bool {
        self.check.position() < self.sent
    }

    fn send(&mut self, pattern: &Pattern) -> Result<()> {
        match send(
            &self.socket,
            pattern.at(self.sent, WRITE),
            SendFlags::NOSIGNAL,
        ) {
            Ok(count) => self.sent += count as u64,
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn receive(&mut self, pattern: &Pattern, buffer: &mut [u8]) -> Result<u64> {
        let payload = match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => bail!("the server closed a connection"),
            Ok((count, _)) => self.check.feed(pattern, &buffer[..count])?,
            Err(Errno::WOULDBLOCK) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        ensure!(
            self.check.position() <= self.sent,
            "wrong reply: more than was sent"
        );
        Ok(payload as u64)
    }
}
