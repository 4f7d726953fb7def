//! A burst of connects to a stopped server that is continued a moment later.
//!
//! The kernel completes connects for a stopped server as long as the listener's queue has room.
//! Where it has none, the client's SYN is dropped, and sent again after one second.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, connect};

use super::Pattern;
use super::poller::Poller;
use super::socket::{new_socket, receive_small, send_small};
use crate::process::Process;

/// How many connects the burst has.
pub const CONNECTS: usize = 1000;

/// How long after the burst's begin the server is continued.
const STOPPED: Duration = Duration::from_millis(100);

/// Shorter than a retransmitted SYN takes, longer than anything else here does.
const WAITED: Duration = Duration::from_millis(900);

/// A SYN that is dropped again and again is sent again after 1, 2, 4 and 8 seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of a burst.
pub struct Burst {
    /// How many connections waited for a retransmitted SYN.
    pub waited: usize,
    /// How long the slowest one took from its connect to its first echo.
    pub slowest: Duration,
}

/// Stops the server, connects, continues the server, and sends a small message on each
/// connection as soon as it is there.
pub fn burst(server: &Process, pattern: &Pattern) -> Result<Burst> {
    let mut poller = Poller::new(PATIENCE)?;
    server.stop()?;
    let begin = Instant::now();
    let mut connecting = Vec::with_capacity(CONNECTS);
    for index in 0..CONNECTS {
        let socket = new_socket(SocketFlags::NONBLOCK)?;
        let started = Instant::now();
        match connect(&socket, &server.address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error).context("cannot connect"),
        }
        poller.add(&socket, index, EventFlags::OUT)?;
        connecting.push(Some(Connecting {
            socket,
            started,
            sent: false,
        }));
    }
    std::thread::sleep(STOPPED.saturating_sub(begin.elapsed()));
    server.resume()?;

    let mut durations = Vec::with_capacity(CONNECTS);
    while durations.len() < CONNECTS {
        poller.wait(Duration::from_secs(1))?;
        for ready in poller.ready() {
            let Some(connection) = &mut connecting[ready.index] else {
                continue;
            };
            if !connection.sent {
                send_small(&connection.socket, pattern, 0)?;
                connection.sent = true;
                poller.modify(&connection.socket, ready.index, EventFlags::IN)?;
            } else if ready.readable {
                receive_small(&connection.socket, pattern, 0)?;
                durations.push(connection.started.elapsed());
                connecting[ready.index] = None;
            }
        }
    }
    let slowest = durations.iter().max().copied().unwrap_or_default();
    ensure!(slowest >= STOPPED / 2, "the server was not stopped");
    Ok(Burst {
        waited: durations.iter().filter(|&&took| took > WAITED).count(),
        slowest,
    })
}

struct Connecting {
    socket: OwnedFd,
    started: Instant,
    sent: bool,
}
