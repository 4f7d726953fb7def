//! Bytes from one connection to another, both ways; and the forwarder of the examples, whose heart that is.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use tinyloop::testing::{Faults, for_each_seed, pipe, server_at};
use tinyloop::{Connection, EventLoop, Side, copy_both, sleep, spawn, timeout};

use crate::support::{
    DEADLINE, Program, connect_to_reset, read_to_end, read_to_reset, run_on_test_clock,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Sends `bytes` and the end on one end of a pair, and reads what comes to its end.
async fn exchange(connection: &mut Connection, bytes: &[u8]) -> io::Result<Vec<u8>> {
    connection.write_all(bytes).await?;
    connection.close().await?;
    let mut received = Vec::new();
    connection.read_to_end(&mut received).await?;
    Ok(received)
}

#[test]
fn every_byte_and_each_half_close_goes_through_whatever_goes_wrong_on_the_way() {
    for_each_seed(0..60, |seed| {
        EventLoop::with_test_clock().unwrap().run(async {
            let mut random = fastrand_bytes(seed);
            let (there, back) = (random(300_000), random(200_000));
            let (first, mut client) = pipe(Faults::from_seed(seed));
            let (second, mut server) = pipe(Faults::from_seed(seed + 1_000_000));
            let copying = spawn(async move { copy_both(&first, &second).await });
            let served = async {
                let mut request = Vec::new();
                server.read_to_end(&mut request).await.unwrap();
                // The other direction goes on after the half-close.
                server.write_all(&back).await.unwrap();
                server.close().await.unwrap();
                request
            };
            let (reply, request) = future::zip(exchange(&mut client, &there), served).await;
            assert!(reply.unwrap() == back && request == there);
            assert_eq!(copying.await.unwrap(), (300_000, 200_000));
        });
    });
}

/// Bytes that differ from place to place.
fn fastrand_bytes(seed: u64) -> impl FnMut(usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    move |length| {
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }
}

#[test]
fn a_reset_is_passed_on_and_the_error_says_which_side() {
    run_on_test_clock(async || {
        for side in [Side::First, Side::Second] {
            let (first, client) = pipe(Faults::none());
            let (second, server) = pipe(Faults::none());
            let copying = spawn(async move { copy_both(&first, &second).await });
            sleep(HOUR).await;
            let (resets, mut other) = match side {
                Side::First => (client, server),
                Side::Second => (server, client),
            };
            resets.reset();
            let error = copying.await.unwrap_err();
            assert_eq!(error.side, side);
            assert!(
                error.to_string().starts_with("cannot read from unknown: "),
                "{error}"
            );
            assert_eq!(
                io::Error::from(error).kind(),
                io::ErrorKind::ConnectionReset
            );
            let error = other.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn who_gives_up_a_copy_lets_no_peer_take_a_part_for_the_whole() {
    run_on_test_clock(async || {
        let (first, mut client) = pipe(Faults::none());
        let (second, mut server) = pipe(Faults::none());
        let copying =
            spawn(async move { timeout(HOUR, copy_both(&first, &second)).await.is_err() });
        client.write_all(b"a part").await.unwrap();
        assert!(copying.await);
        let mut received = Vec::new();
        let error = server.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(
            (&*received, error.kind()),
            (&b"a part"[..], io::ErrorKind::ConnectionReset)
        );
        assert!(client.read(&mut [0]).await.is_err());
    });
}

#[test]
fn a_pair_is_idle_when_nothing_moves_in_either_direction() {
    run_on_test_clock(async || {
        let (first, _client) = pipe(Faults::none());
        let (second, mut server) = pipe(Faults::none());
        first.set_idle_timeout(Some(2 * HOUR));
        second.set_idle_timeout(Some(2 * HOUR));
        let start = tinyloop::now();
        let copying = spawn(async move { copy_both(&first, &second).await });
        for _ in 0..10 {
            sleep(HOUR).await;
            server.write_all(b"x").await.unwrap();
        }
        let error = copying.await.unwrap_err();
        assert_eq!(error.error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(tinyloop::now() - start, 12 * HOUR);
    });
}

#[test]
fn a_server_counts_an_idle_pair_as_timed_out() {
    run_on_test_clock(async || {
        let upstream = server_at("upstream:80", Faults::none());
        let _upstream =
            spawn(upstream.serve(async |connection| tinyloop::echo(connection, b"").await));
        let (server, connector) = tinyloop::testing::server();
        let live = server.live_report();
        let forward = async |client: Connection| {
            let upstream = Connection::connect("upstream:80").await?;
            copy_both(&client, &upstream).await?;
            Ok(())
        };
        let _serving = spawn(server.idle_timeout(HOUR).serve(forward));
        let mut client = connector.connect(Faults::none()).unwrap();
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        assert!(client.read(&mut [0]).await.is_err(), "is cut");
        sleep(HOUR).await;
        assert_eq!(live.report().timed_out, 1, "{:?}", live.report());
    });
}

#[test]
fn an_idle_pair_is_small() {
    let (first, _client) = pipe(Faults::none());
    let (second, _server) = pipe(Faults::none());
    assert!(
        size_of_val(&copy_both(&first, &second)) < 700,
        "{}",
        size_of_val(&copy_both(&first, &second))
    );
}

/// A forwarder to `upstream`.
fn forwarder(upstream: SocketAddr) -> Program {
    let mut command = Program::example("forwarder");
    Program::start_command(command.args(["127.0.0.1:0", &upstream.to_string()]))
}

/// A listener for the forwarder's other side, and the forwarder.
fn forwarder_and_upstream() -> (Program, TcpListener) {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    (forwarder(upstream.local_addr().unwrap()), upstream)
}

/// A connection through the forwarder: the client's end, and the server's.
fn pair(forwarder: &Program, upstream: &TcpListener) -> (TcpStream, TcpStream) {
    let client = forwarder.connect();
    let (server, _) = upstream.accept().unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    server.set_write_timeout(Some(DEADLINE)).unwrap();
    (client, server)
}

/// Sends so many megabytes that differ, and the end.
fn send(mut stream: &TcpStream, megabytes: usize, seed: u64) {
    let chunk = fastrand_bytes(seed)(1_000_000);
    for number in 0..megabytes {
        stream.write_all(&number.to_be_bytes()).unwrap();
        stream.write_all(&chunk).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

fn check(mut stream: &TcpStream, megabytes: usize, seed: u64) {
    let chunk = fastrand_bytes(seed)(1_000_000);
    let mut received = vec![0; chunk.len()];
    for number in 0..megabytes {
        let mut head = [0; 8];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(usize::from_be_bytes(head), number);
        stream.read_exact(&mut received).unwrap();
        assert!(received == chunk, "megabyte {number}");
    }
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "and then the end");
}

#[test]
fn the_forwarder_passes_on_a_hundred_megabytes_both_ways_at_once() {
    let (forwarder, upstream) = forwarder_and_upstream();
    let (client, server) = pair(&forwarder, &upstream);
    thread::scope(|scope| {
        scope.spawn(|| send(&client, 105, 1));
        scope.spawn(|| send(&server, 105, 2));
        scope.spawn(|| check(&server, 105, 1));
        check(&client, 105, 2);
    });
    drop((client, server));
    let (_, stderr) = forwarder.stop();
    assert!(
        stderr[0].starts_with("accepted 1, completed 1, "),
        "{stderr:?}"
    );
}

#[test]
fn the_forwarder_passes_on_each_half_close_in_its_order() {
    let (forwarder, upstream) = forwarder_and_upstream();
    let (client, mut server) = pair(&forwarder, &upstream);
    (&client).write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&server), b"request");
    server.write_all(b"reply after the end").unwrap();
    drop(server);
    assert_eq!(read_to_end(&client), b"reply after the end");

    let (mut client, server) = pair(&forwarder, &upstream);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&client), b"");
    client.write_all(b"still there").unwrap();
    drop(client);
    assert_eq!(read_to_end(&server), b"still there");
    drop(server);
    let (_, stderr) = forwarder.stop();
    assert!(
        stderr[0].starts_with("accepted 2, completed 2, "),
        "{stderr:?}"
    );
}

#[test]
fn the_forwarder_passes_on_a_reset_as_a_reset() {
    let (forwarder, upstream) = forwarder_and_upstream();
    for client_resets in [true, false] {
        let (mut client, mut server) = pair(&forwarder, &upstream);
        client.write_all(b"ping").unwrap();
        server.read_exact(&mut [0; 4]).unwrap();
        server.write_all(b"pong").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        let (resets, other) = if client_resets {
            (client, server)
        } else {
            (server, client)
        };
        set_socket_linger(&resets, Some(Duration::ZERO)).unwrap();
        drop(resets);
        assert_eq!(read_to_reset(&other), b"");
    }
    let (_, stderr) = forwarder.stop();
    assert!(
        stderr[0].starts_with("accepted 2, completed 0, failed 2, "),
        "{stderr:?}"
    );
}

#[test]
fn a_peer_of_the_forwarder_that_never_reads_holds_up_nobody_and_little_memory() {
    let (forwarder, upstream) = forwarder_and_upstream();
    let deaf: Vec<(TcpStream, TcpStream)> = (0..20).map(|_| pair(&forwarder, &upstream)).collect();
    for (client, _) in &deaf {
        // Until the buffers of both sockets are full.
        client
            .set_write_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let full = loop {
            if let Err(error) = (&*client).write(&[0; 65536]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }
    let (mut client, mut server) = pair(&forwarder, &upstream);
    client.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", forwarder.pid().as_raw_nonzero()))
            .unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let resident: usize = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(resident < 20_000, "{resident} kB");
}

#[test]
fn the_forwarder_ends_quiet_pairs_with_the_shutdown_and_finishes_a_transfer() {
    let (forwarder, upstream) = forwarder_and_upstream();
    let (_quiet, quiet_server) = pair(&forwarder, &upstream);
    let (client, server) = pair(&forwarder, &upstream);
    thread::scope(|scope| {
        scope.spawn(|| send(&client, 30, 3));
        // The transfer is under way.
        server.peek(&mut [0]).unwrap();
        forwarder.signal(Signal::TERM);
        check(&server, 30, 3);
        drop(server);
        assert_eq!(read_to_end(&client), b"");
    });
    assert_eq!(read_to_end(&quiet_server), b"");
    drop(quiet_server);
    let (status, _, stderr) = forwarder.wait();
    assert!(status.success());
    assert!(stderr[0].contains("completed 2, "), "{stderr:?}");
}

#[test]
fn a_client_of_a_forwarder_whose_server_is_not_there_is_reset() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = upstream.local_addr().unwrap();
    drop(upstream);
    let forwarder = forwarder(addr);
    connect_to_reset(forwarder.addr());
    let (_, stderr) = forwarder.stop();
    assert!(stderr[0].contains("failed 1, "), "{stderr:?}");
}
