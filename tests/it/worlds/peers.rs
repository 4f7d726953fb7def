//! What peers do.

use std::future::{pending, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;

use futures_lite::{AsyncRead, AsyncWrite, FutureExt};
use tinyloop::testing::{Connector, Faults, Wire};
use tinyloop::{Address, Connection, sleep};

use super::plan::{Peer, Reads, Say};
use super::stage::{Stage, bytes, said};
use super::trace::{What, millis};

/// Where peers connect to.
#[derive(Clone)]
pub(super) enum Target {
    Memory(Connector),
    Socket(Address),
}

/// How a visit ends.
#[derive(Clone, Copy, PartialEq)]
enum Leaves {
    /// Has said all, and waits for the end.
    Never,
    Closes,
    Resets,
}

/// A peer's visits, one after the other.
pub(super) async fn visit(stage: Rc<Stage>, index: usize, server: Target) {
    let peer = stage.world.peers[index].clone();
    sleep(millis(peer.at)).await;
    for _ in 0..=peer.returns {
        let visit = stage.new_visit(index);
        let late = peer
            .late_events
            .map_or_else(Faults::none, Faults::late_events);
        let faults = peer.faults.map_or(late, Faults::from_seed);
        let connected = match &server {
            Target::Memory(connector) => connect(connector, &peer, visit, faults),
            Target::Socket(addr) => connect_socket(addr),
        };
        let (connection, port) = match connected {
            Ok(connected) => connected,
            Err(_) => return stage.tell(visit, What::IsRefused),
        };
        stage.enqueue(visit, port);
        stage.tell(visit, What::Connects);
        live(&stage, &peer, visit, connection).await;
    }
}

/// Connects in memory, from a port of its own, which it returns, too.
fn connect(
    connector: &Connector,
    peer: &Peer,
    visit: usize,
    faults: Faults,
) -> io::Result<(Connection, u16)> {
    let port = visit as u16 + 1;
    let from = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
    let plan = &peer.wire;
    let mut wire = if plan.unix { Wire::unix() } else { Wire::tcp() };
    if let Some((send, receive)) = plan.buffers {
        wire = wire.buffers(send, receive);
    }
    if let Some(segment) = plan.segment {
        wire = wire.segment(segment);
    }
    let wire = wire
        .latency(millis(plan.latency))
        .rate(plan.rate.unwrap_or(0));
    Ok((connector.connect_from(from, wire, faults)?, port))
}

/// Connects to a listener on loopback, at once. Returns the port that it connects from, too: a Unix socket has none.
fn connect_socket(to: &Address) -> io::Result<(Connection, u16)> {
    match to {
        Address::Unix(Some(path)) => {
            let stream = UnixStream::connect(path)?;
            let stream = async_net::unix::UnixStream::try_from(stream)?;
            Ok((Connection::from(stream), 0))
        }
        Address::Tcp(addr) => {
            let stream = TcpStream::connect(addr)?;
            let port = stream.local_addr()?.port();
            let stream = async_net::TcpStream::try_from(stream)?;
            Ok((Connection::from(stream), port))
        }
        _ => unreachable!("a listener has an address"),
    }
}

async fn live(stage: &Stage, peer: &Peer, visit: usize, connection: Connection) {
    let says = async {
        match say_all(stage, peer, visit, &connection).await {
            Leaves::Never => pending().await,
            leaves => leaves,
        }
    };
    let reads = async {
        read(stage, peer, visit, &connection).await;
        if peer.stays > 0 {
            sleep(millis(peer.stays)).await;
        }
        Leaves::Closes
    };
    match reads.or(says).await {
        Leaves::Resets => {
            stage.tell(visit, What::Resets);
            connection.reset();
        }
        _ => {
            stage.tell(visit, What::Closes);
            drop(connection);
        }
    }
}

async fn say_all(stage: &Stage, peer: &Peer, visit: usize, mut connection: &Connection) -> Leaves {
    let mut at = 0;
    for say in &peer.says {
        match *say {
            Say::Send(mut left) => {
                while left > 0 {
                    let chunk = bytes(said(visit), at, left);
                    let sent = poll_fn(|cx| Pin::new(&mut connection).poll_write(cx, chunk)).await;
                    match sent {
                        Ok(n) => {
                            stage.tell(visit, What::Sends(n));
                            at += n;
                            left -= n;
                        }
                        Err(error) => {
                            stage.tell(visit, What::CannotSend(error.kind()));
                            return Leaves::Never;
                        }
                    }
                }
            }
            Say::Wait(time) => sleep(millis(time)).await,
            Say::HalfClose => {
                stage.tell(visit, What::HalfCloses);
                poll_fn(|cx| Pin::new(&mut connection).poll_close(cx))
                    .await
                    .ok();
            }
            Say::Close => return Leaves::Closes,
            Say::Reset => return Leaves::Resets,
        }
    }
    Leaves::Never
}

/// Reads to the end.
async fn read(stage: &Stage, peer: &Peer, visit: usize, mut connection: &Connection) {
    let (piece, every) = match peer.reads {
        Reads::Never => pending().await,
        Reads::Eagerly => (10_000, 0),
        Reads::Slowly { piece, every } => (piece, every),
        Reads::After(time) => {
            sleep(millis(time)).await;
            (10_000, 0)
        }
    };
    let mut buffer = vec![0; piece];
    loop {
        let read = poll_fn(|cx| Pin::new(&mut connection).poll_read(cx, &mut buffer)).await;
        match read {
            Ok(0) => return stage.tell(visit, What::SeesEnd),
            Ok(n) => {
                stage.tell(visit, What::Gets(n));
                if !stage.is_written(visit, &buffer[..n]) {
                    stage.tell(visit, What::GetsWrongBytes);
                }
            }
            Err(error) => return stage.tell(visit, What::SeesError(error.kind())),
        }
        if every > 0 {
            sleep(millis(every)).await;
        }
    }
}
