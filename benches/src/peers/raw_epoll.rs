//! The floor: a level-triggered epoll loop with one buffer for all connections, which holds the
//! prefix already. Each ready socket costs one receive and one send.

use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send, sockopt};

use super::{CHUNK, PREFIX, announce};

/// How many ready sockets one `epoll_wait` reports at most.
const EVENTS: usize = 1024;

/// A connection, with what the socket did not take of the last reply.
struct Connection {
    socket: OwnedFd,
    unsent: Vec<u8>,
}

pub fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    announce(listener.local_addr()?);

    let poller = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&poller, &listener, key(&listener), EventFlags::IN)?;

    // A connection's place is its descriptor's number.
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut buffer = vec![0; PREFIX.len() + CHUNK];
    buffer[..PREFIX.len()].copy_from_slice(PREFIX);
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&poller, spare_capacity(&mut events), None) {
            Err(Errno::INTR) => continue,
            outcome => outcome?,
        };
        for event in &events {
            let place = event.data.u64() as usize;
            if place == listener.as_raw_fd() as usize {
                accept_all(&listener, &poller, &mut connections)?;
            } else if let Some(connection) = &mut connections[place]
                && serve_ready(connection, &poller, &mut buffer).is_err()
            {
                // At the peer's end, or lost: closing the socket takes it out of the epoll set.
                connections[place] = None;
            }
        }
    }
}

fn accept_all(
    listener: &TcpListener,
    poller: &OwnedFd,
    connections: &mut Vec<Option<Connection>>,
) -> rustix::io::Result<()> {
    loop {
        let socket = match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(Errno::WOULDBLOCK) => return Ok(()),
            Err(Errno::CONNABORTED | Errno::INTR) => continue,
            Err(error) => return Err(error),
        };
        sockopt::set_tcp_nodelay(&socket, true)?;
        epoll::add(poller, &socket, key(&socket), EventFlags::IN)?;
        let place = socket.as_raw_fd() as usize;
        if place >= connections.len() {
            connections.resize_with(place + 1, || None);
        }
        connections[place] = Some(Connection {
            socket,
            unsent: Vec::new(),
        });
    }
}

/// Answers what the connection has sent, or sends on where a reply had to wait.
/// An error means that the connection is over.
fn serve_ready(
    connection: &mut Connection,
    poller: &OwnedFd,
    buffer: &mut [u8],
) -> Result<(), Errno> {
    if !connection.unsent.is_empty() {
        let count = send_some(&connection.socket, &connection.unsent)?;
        connection.unsent.drain(..count);
        if connection.unsent.is_empty() {
            watch(poller, &connection.socket, EventFlags::IN)?;
        }
        return Ok(());
    }

    let count = match recv(
        &connection.socket,
        &mut buffer[PREFIX.len()..],
        RecvFlags::empty(),
    ) {
        Ok((0, _)) => return Err(Errno::PIPE),
        Ok((count, _)) => count,
        Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(()),
        Err(error) => return Err(error),
    };
    let reply = &buffer[..PREFIX.len() + count];
    let sent = send_some(&connection.socket, reply)?;
    if sent < reply.len() {
        connection.unsent.extend_from_slice(&reply[sent..]);
        watch(poller, &connection.socket, EventFlags::OUT)?;
    }
    Ok(())
}

fn send_some(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    match send(socket, bytes, SendFlags::NOSIGNAL) {
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(0),
        outcome => outcome,
    }
}

fn watch(poller: &OwnedFd, socket: &OwnedFd, flags: EventFlags) -> Result<(), Errno> {
    epoll::modify(poller, socket, key(socket), flags)
}

fn key(socket: &impl AsRawFd) -> EventData {
    EventData::new_u64(socket.as_raw_fd() as u64)
}
