//! The server's and a connection's basics, and the echo: every byte comes back, whatever the client does.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tinyloop::{CHUNK, Connection, Framing, Server, spawn};

use crate::process::processor_time;
use crate::support::{
    DEADLINE, Program, Served, ask, connect, echo, exchange, read_to_end, read_to_reset,
    within_deadline,
};

const MEGABYTE: usize = 1_000_000;

/// A handler without a prefix: what it gets is what it sends.
async fn plain_echo(connection: Connection) -> io::Result<()> {
    tinyloop::echo(connection, b"").await
}

/// Bytes in which no two neighbours are alike, and `Got: ` does not occur.
fn counting(length: usize) -> Vec<u8> {
    (0..251).cycle().take(length).collect()
}

/// Bytes of every kind, the same each time.
fn random(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Sends `message` in writes of `write_size`, half-closes, and reads to the end meanwhile.
fn send_and_half_close(mut stream: &TcpStream, message: &[u8], write_size: usize) -> Vec<u8> {
    thread::scope(|scope| {
        scope.spawn(move || {
            for piece in message.chunks(write_size) {
                stream.write_all(piece).expect("is sent");
            }
            stream.shutdown(Shutdown::Write).unwrap();
        });
        read_to_end(stream)
    })
}

/// The chunks of a reply whose chunks do not contain the prefix.
fn chunks(reply: &[u8]) -> Vec<&[u8]> {
    let mut rest = reply
        .strip_prefix(b"Got: ")
        .expect("a reply begins with the prefix");
    let mut chunks = Vec::new();
    while let Some(next) = rest.windows(5).position(|window| window == b"Got: ") {
        chunks.push(&rest[..next]);
        rest = &rest[next + 5..];
    }
    chunks.push(rest);
    chunks
}

#[track_caller]
fn assert_same_bytes(left: &[u8], right: &[u8]) {
    // Without printing megabytes.
    let first_difference = left
        .iter()
        .zip(right)
        .position(|(left, right)| left != right);
    assert_eq!((left.len(), None), (right.len(), first_difference));
}

/// Closes the connection with a reset.
fn reset(stream: TcpStream) {
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_server_listens_on_several_addresses() {
    within_deadline(|| {
        tinyloop::run(async {
            let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
            let server = Server::bind(&[any_port, any_port, any_port][..])
                .await
                .unwrap();
            let addrs: Vec<_> = server
                .local_addrs()
                .iter()
                .map(|addr| addr.tcp().unwrap())
                .collect();
            assert_eq!(addrs.len(), 3);
            let _serving =
                spawn(server.serve(async |mut connection| connection.write_all(b"here").await));
            for (i, addr) in addrs.iter().enumerate() {
                assert_ne!(addr.port(), 0);
                assert!(!addrs[..i].contains(addr));
                let mut stream = async_net::TcpStream::connect(addr).await.unwrap();
                let mut reply = String::new();
                stream.read_to_string(&mut reply).await.unwrap();
                assert_eq!(reply, "here");
            }
        });
    });
}

#[test]
fn an_address_that_cannot_be_bound_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let error = tinyloop::run(async { Server::bind(addr).await.unwrap_err() });
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(
        error.to_string(),
        format!("cannot listen on {addr}: address already in use")
    );

    let none: &[SocketAddr] = &[];
    let error = tinyloop::run(async { Server::bind(none).await.unwrap_err() });
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_connection_knows_its_peer_and_has_an_id_of_its_own() {
    let server = Served::start(
        |server| server,
        async |mut connection: Connection| {
            let line = format!("{} {}", connection.id(), connection.peer_addr());
            connection.write_all(line.as_bytes()).await
        },
    );
    let mut ids = Vec::new();
    for _ in 0..10 {
        let stream = server.connect();
        let line = String::from_utf8(read_to_end(&stream)).unwrap();
        let (id, peer_addr) = line.split_once(' ').unwrap();
        assert_eq!(peer_addr, stream.local_addr().unwrap().to_string());
        assert!(!ids.contains(&id.to_owned()), "{id} again");
        ids.push(id.to_owned());
    }
    assert_eq!(server.stop().unwrap().completed, 10);
}

#[test]
fn a_stream_that_becomes_a_connection_sends_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    within_deadline(move || {
        tinyloop::run(async {
            let stream = async_net::TcpStream::connect(addr).await.unwrap();
            assert!(!stream.nodelay().unwrap());
            let connection = Connection::from(stream.clone());
            assert!(stream.nodelay().unwrap());
            assert_eq!(connection.peer_addr().tcp(), Some(addr));
        });
    });
}

#[test]
fn a_connection_from_before_the_server_serves_is_like_any_other() {
    within_deadline(|| {
        tinyloop::run(async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            for server in [
                Server::bind("127.0.0.1:0").await.unwrap(),
                Server::from_listener(listener).unwrap(),
            ] {
                let client = connect(server.local_addrs()[0].tcp().unwrap());
                // Only a socket that takes urgent data in line finds it among the rest.
                net::send(&client, b"!", SendFlags::OOB).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                let mut incoming = server.incoming().unwrap();
                let connection = incoming.next().await.unwrap().unwrap();
                echo(connection).await.unwrap();
                assert_eq!(read_to_end(&client), b"Got: !");
            }
        });
    });
}

#[test]
fn a_burst_of_connections_waits_for_the_server_without_a_delay() {
    tinyloop::run(async {
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addrs()[0].tcp().unwrap();
        // Nobody serves: with a backlog of 128, the next one would wait for ever.
        let held: Vec<TcpStream> = (0..300).map(|_| connect(addr)).collect();
        assert_eq!(held.len(), 300);
    });
}

#[test]
fn a_chunk_and_its_prefix_are_one_write() {
    // A socket that keeps the bounds of writes, to see them.
    let (ours, theirs) = net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    net::sockopt::set_socket_timeout(&ours, net::sockopt::Timeout::Recv, Some(DEADLINE)).unwrap();
    let echo = thread::spawn(move || {
        let theirs = std::os::unix::net::UnixStream::from(theirs);
        tinyloop::run(async {
            let stream = async_net::unix::UnixStream::try_from(theirs)?;
            echo(Connection::from(stream)).await
        })
    });
    for length in [1, 100, CHUNK - 1, CHUNK] {
        let chunk = counting(length);
        net::send(&ours, &chunk, SendFlags::empty()).unwrap();
        let mut reply = vec![0; 2 * CHUNK];
        let (received, _) = net::recv(&ours, &mut reply[..], RecvFlags::empty()).unwrap();
        assert_same_bytes(&reply[..received], &[b"Got: ", &chunk[..]].concat());
    }
    drop(ours);
    echo.join().unwrap().unwrap();
}

#[test]
fn a_long_message_is_answered_in_chunks_with_a_prefix_each() {
    let server = Served::start(|server| server, echo);
    let message = counting(30_000);
    let reply = send_and_half_close(&server.connect(), &message, message.len());
    let chunks = chunks(&reply);
    assert_eq!(CHUNK, 10_000);
    assert!(
        chunks
            .iter()
            .all(|chunk| (1..=CHUNK).contains(&chunk.len()))
    );
    assert_same_bytes(&chunks.concat(), &message);
    server.stop().unwrap();
}

#[test]
fn a_client_that_half_closes_gets_every_byte_and_then_the_end() {
    let plain = Served::start(|server| server.drain(DEADLINE), plain_echo);
    let prefixed = Served::start(|server| server.drain(DEADLINE), echo);
    let cases: [(Vec<u8>, usize); 7] = [
        (vec![], 1),
        (vec![b'x'], 1),
        (vec![0; 3], 1),
        (counting(2_000), 1),
        (random(20_000), 7),
        (vec![0; MEGABYTE], MEGABYTE),
        (counting(5 * MEGABYTE), 5 * MEGABYTE),
    ];
    for (message, write_size) in &cases {
        let reply = send_and_half_close(&plain.connect(), message, *write_size);
        assert_same_bytes(&reply, message);
        let reply = send_and_half_close(&prefixed.connect(), message, *write_size);
        match message.is_empty() {
            true => assert_eq!(reply, b""),
            false => assert_same_bytes(&chunks(&reply).concat(), message),
        }
    }
    let sent: usize = cases.iter().map(|(message, _)| message.len()).sum();
    let report = plain.stop().unwrap();
    assert_eq!((report.accepted, report.completed), (7, 7));
    assert_eq!(
        (report.bytes_in, report.bytes_out),
        (sent as u64, sent as u64)
    );
    assert_eq!(prefixed.stop().unwrap().completed, 7);
}

#[test]
fn line_framing_puts_the_prefix_before_each_line_however_it_is_sent() {
    let server = Served::start(
        |server| server,
        async |connection| tinyloop::echo_framed(connection, b"> ", Framing::Line).await,
    );
    let long_line = vec![b'x'; 3 * CHUNK];
    let cases: [(&[u8], &[u8]); 4] = [
        (b"one\ntwo\n\nno end", b"> one\n> two\n> \n> no end"),
        (b"\n\n\n", b"> \n> \n> \n"),
        (b"\r\n\0\xff\n", b"> \r\n> \0\xff\n"),
        (&long_line, &[b"> ", &long_line[..]].concat()),
    ];
    for (message, reply) in cases {
        for write_size in [1, 2, 5, message.len()] {
            let stream = server.connect();
            assert_same_bytes(&send_and_half_close(&stream, message, write_size), reply);
        }
    }
    server.stop().unwrap();
}

#[test]
fn a_hundred_megabytes_come_back() {
    const BLOCK: usize = 251 * 1000;
    const BLOCKS: usize = 100 * MEGABYTE / BLOCK;
    let server = Served::start(|server| server.drain(DEADLINE), plain_echo);
    let stream = server.connect();
    let block = counting(BLOCK);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..BLOCKS {
                (&stream).write_all(&block).expect("is sent");
            }
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = vec![0; BLOCK];
        for _ in 0..BLOCKS {
            (&stream).read_exact(&mut received).expect("comes back");
            assert_same_bytes(&received, &block);
        }
    });
    assert_eq!(read_to_end(&stream), b"");
    assert_eq!(server.stop().unwrap().bytes_out, (BLOCK * BLOCKS) as u64);
}

#[test]
fn a_reset_in_the_middle_of_a_transfer_ends_its_own_connection_only() {
    let server = Served::start(|server| server.drain(DEADLINE), echo);
    let bystander = server.connect();
    for _ in 0..10 {
        let stream = server.connect();
        assert_eq!(ask(&stream, "x"), "Got: x");
        // Until the server cannot send, since nobody reads, and so reads nothing either.
        stream.set_nonblocking(true).unwrap();
        let block = vec![b'x'; MEGABYTE];
        while (&stream).write(&block).is_ok() {}
        reset(stream);
        assert_eq!(ask(&bystander, "still here"), "Got: still here");
    }
    drop(bystander);
    let report = server.stop().unwrap();
    assert_eq!((report.failed, report.completed), (10, 1));
}

#[test]
fn a_reset_right_after_connecting_harms_nobody() {
    let server = Served::start(|server| server.drain(DEADLINE), echo);
    let bystander = server.connect();
    for _ in 0..100 {
        reset(server.connect());
        assert_eq!(ask(&bystander, "still here"), "Got: still here");
    }
    // Connections are accepted in their order: after this one, all were.
    assert_eq!(ask(&server.connect(), "last"), "Got: last");
    drop(bystander);
    assert_eq!(server.stop().unwrap().accepted, 102);
}

#[test]
fn urgent_data_comes_back_in_line_and_keeps_nobody_busy() {
    let program = Program::start(&["-l", "127.0.0.1:0", "--idle-timeout", "1"]);
    let bystander = program.connect();
    let stream = program.connect();
    assert_eq!(ask(&stream, "before"), "Got: before");
    net::send(&stream, b"!", SendFlags::OOB).unwrap();
    exchange(&stream, b"", b"Got: !");
    assert_eq!(ask(&stream, "after"), "Got: after");
    // The last byte is urgent, and nothing follows.
    net::send(&stream, b"?", SendFlags::OOB).unwrap();
    exchange(&stream, b"", b"Got: ?");

    let (start, used) = (Instant::now(), processor_time(program.pid()));
    for _ in 0..50 {
        assert_eq!(ask(&bystander, "still here"), "Got: still here");
    }
    assert_eq!(read_to_reset(&stream), b"", "the idle timeout ends it");
    let (elapsed, used) = (start.elapsed(), processor_time(program.pid()) - used);
    assert!(used < elapsed / 2, "{used:?} of {elapsed:?}");
    program.stop();
}
