//! Clients that send and never read.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use tinyloop::Server;

use crate::process::resident_bytes;
use crate::server::incoming::{run, stop};
use crate::support::{Program, Served, ask, connect, echo, the_machine};

/// How many clients do not read.
pub(crate) const CLIENTS: usize = 500;
/// The server's buffers for each.
pub(crate) const BUFFERS: usize = 32 * 1024;
/// The client's, small so that most of what it sends is the server's burden.
const OWN_BUFFERS: usize = 4 * 1024;
/// What one such client may cost.
pub(crate) const MOST_EACH: usize = 256 * 1024;

/// How many rounds without progress mean that a client is blocked for good.
const QUIET_ROUNDS: usize = 20;

/// Writes to all of `streams` until none takes more, and `other` is answered all the time.
/// Returns how many bytes they took.
fn write_until_blocked(streams: &[TcpStream], other: &TcpStream) -> usize {
    let chunk = vec![b'x'; 64 * 1024];
    let (mut total, mut quiet_rounds) = (0, 0);
    while quiet_rounds < QUIET_ROUNDS {
        let before = total;
        for mut stream in streams {
            total += unless_blocked(stream.write(&chunk)).unwrap();
        }
        quiet_rounds = if total > before { 0 } else { quiet_rounds + 1 };
        // Meanwhile the server has had its turn.
        assert_eq!(ask(other, "still here"), "Got: still here");
    }
    total
}

/// What a call has done, which is nothing when it would have had to wait.
pub(crate) fn unless_blocked(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

/// Clients that never wait to write.
pub(crate) fn connect_many(served: &Served) -> Vec<TcpStream> {
    let connect = |_| as_blocked_writer(served.connect());
    (0..CLIENTS).map(connect).collect()
}

/// With small buffers, and without waiting for room in them.
fn as_blocked_writer(stream: TcpStream) -> TcpStream {
    set_socket_send_buffer_size(&stream, OWN_BUFFERS).unwrap();
    set_socket_recv_buffer_size(&stream, OWN_BUFFERS).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

#[test]
fn the_server_stops_reading_from_a_client_that_does_not_read() {
    let program = Program::start(&["-l", "127.0.0.1:0"]);
    let stalled = program.connect();
    stalled.set_nonblocking(true).unwrap();
    let total = write_until_blocked(&[stalled], &program.connect());
    // All of it is in the kernel's buffers, but for a chunk.
    assert!(total < 100_000_000, "{total}");
    let resident = resident_bytes(program.pid());
    assert!(resident < 20_000_000, "{resident}");
    program.stop();
}

#[test]
fn with_small_buffers_a_client_that_does_not_read_can_send_little() {
    let _machine = the_machine();
    let served = Served::start(|server| server.socket_buffers(BUFFERS), echo);
    let streams = connect_many(&served);
    let total = write_until_blocked(&streams, &served.connect());
    assert!(total > CLIENTS * BUFFERS, "they are blocked: {total}");
    assert!(total <= CLIENTS * MOST_EACH, "{} each", total / CLIENTS);
}

#[test]
fn a_client_that_is_older_than_the_server_has_small_buffers_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let early = as_blocked_writer(connect(addr));
    let running = run([listener.into()], async |server: Server| {
        server.socket_buffers(BUFFERS).serve(echo).await
    });
    let total = write_until_blocked(&[early], &connect(addr));
    assert!(total <= MOST_EACH, "{total}");
    stop(running);
}
