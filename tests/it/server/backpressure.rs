//! Clients that send and never read.

use std::fs;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use tinyloop::Server;

use crate::server::incoming::{run, stop};
use crate::support::{Program, Served, ask, connect, echo, the_machine};

const CLIENTS: usize = 500;
/// The server's buffers for each.
const BUFFERS: usize = 32 * 1024;
/// The client's, small so that most of what it sends is the server's burden.
const OWN_BUFFERS: usize = 4 * 1024;
/// What one such client may cost.
const MOST_EACH: usize = 256 * 1024;

/// How many rounds without progress mean that a client is blocked for good.
const QUIET_ROUNDS: usize = 20;

/// Writes to all of `streams` until none takes more, and `other` is answered all the time.
/// Returns how many bytes they took.
fn write_until_blocked(streams: &[TcpStream], other: &TcpStream) -> usize {
    for stream in streams {
        stream.set_nonblocking(true).unwrap();
    }
    let chunk = vec![b'x'; 64 * 1024];
    let (mut total, mut quiet_rounds) = (0, 0);
    while quiet_rounds < QUIET_ROUNDS {
        let before = total;
        for mut stream in streams {
            total += match stream.write(&chunk) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => panic!("{error}"),
            };
        }
        quiet_rounds = if total > before { 0 } else { quiet_rounds + 1 };
        // Meanwhile the server has had its turn.
        assert_eq!(ask(other, "still here"), "Got: still here");
    }
    total
}

fn connect_many(served: &Served) -> Vec<TcpStream> {
    let connect = |_| with_small_buffers(served.connect());
    (0..CLIENTS).map(connect).collect()
}

fn with_small_buffers(stream: TcpStream) -> TcpStream {
    set_socket_send_buffer_size(&stream, OWN_BUFFERS).unwrap();
    set_socket_recv_buffer_size(&stream, OWN_BUFFERS).unwrap();
    stream
}

#[test]
fn the_server_stops_reading_from_a_client_that_does_not_read() {
    let program = Program::start(&["-l", "127.0.0.1:0"]);
    let stalled = program.connect();
    let total = write_until_blocked(&[stalled], &program.connect());
    // All of it is in the kernel's buffers, but for a chunk.
    assert!(total < 100_000_000, "{total}");
    let resident = resident_bytes(&program.pid().to_string());
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
    let early = with_small_buffers(connect(addr));
    let running = run([listener.into()], async |server: Server| {
        server.socket_buffers(BUFFERS).serve(echo).await
    });
    let total = write_until_blocked(&[early], &connect(addr));
    assert!(total <= MOST_EACH, "{total}");
    stop(running);
}

#[test]
#[ignore = "needs ss"]
fn five_hundred_clients_that_do_not_read_cost_at_most_256_kib_each_with_the_kernels_share() {
    let _machine = the_machine();
    let before = resident_bytes("self");
    let served = Served::start(|server| server.socket_buffers(BUFFERS), echo);
    let streams = connect_many(&served);
    write_until_blocked(&streams, &served.connect());
    let resident = resident_bytes("self").saturating_sub(before);
    let kernel = kernel_bytes(served.addr.port());
    let each = (resident + kernel) / CLIENTS;
    assert!(kernel > CLIENTS * BUFFERS, "they are blocked: {kernel}");
    assert!(each <= MOST_EACH, "{each}: {resident} and {kernel}");
}

/// The memory that a process has.
fn resident_bytes(pid: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let (_, resident) = status.split_once("VmRSS:").unwrap();
    let kilobytes: usize = resident.split_whitespace().next().unwrap().parse().unwrap();
    kilobytes * 1024
}

/// The memory that the kernel has for the server's side of the connections to `port`.
fn kernel_bytes(port: u16) -> usize {
    let filter = format!("sport = :{port}");
    let output = Command::new("ss").args(["-tmnH", &filter]).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let memory = output.split("skmem:(").skip(1);
    let fields = memory.flat_map(|memory| memory.split(')').next().unwrap().split(','));
    // Allocated for reading, for writing (w holds t), ahead, for options and in the backlog; not the limits (rb, tb).
    let bytes = |field: &str| {
        ["r", "w", "f", "o", "bl"]
            .iter()
            .find_map(|name| field.strip_prefix(name)?.parse::<usize>().ok())
    };
    fields.filter_map(bytes).sum()
}
