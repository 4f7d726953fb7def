//! Bytes from one connection to another, both ways; and the forwarder of the examples, whose heart that is.

use std::error::Error;
use std::future::pending;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use tinyloop::testing::{Faults, advance, for_each_seed, pipe, server_at};
use tinyloop::{Connection, CopyError, EventLoop, copy_both, sleep, spawn, timeout};

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
        for first_resets in [true, false] {
            let (first, client) = pipe(Faults::none());
            let (second, server) = pipe(Faults::none());
            let copying = spawn(async move { copy_both(&first, &second).await });
            sleep(HOUR).await;
            let (resets, mut other) = match first_resets {
                true => (client, server),
                false => (server, client),
            };
            resets.reset();
            let error = copying.await.unwrap_err();
            assert_eq!(matches!(error, CopyError::First(_)), first_resets);
            assert!(
                error.to_string().starts_with("cannot read from unknown: "),
                "{error}"
            );
            let system = error.source().and_then(<dyn Error>::downcast_ref);
            assert!(system.is_some_and(|error: &io::Error| error.raw_os_error().is_some()));
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
fn peers_that_read_only_after_the_copy_still_get_all_of_it() {
    run_on_test_clock(async || {
        let (first, mut client) = pipe(Faults::none());
        let (second, mut server) = pipe(Faults::none());
        // More than the receive buffer of a peer, and less than this and the send buffer together.
        let bytes = vec![b'x'; 75_000];
        for peer in [&mut client, &mut server] {
            peer.write_all(&bytes).await.unwrap();
            peer.close().await.unwrap();
        }
        let copied = copy_both(&first, &second).await.unwrap();
        assert_eq!(copied, (75_000, 75_000));
        for peer in [&mut client, &mut server] {
            let mut received = Vec::new();
            peer.read_to_end(&mut received).await.unwrap();
            assert!(received == bytes, "{}", received.len());
        }
    });
}

/// A copy, and its peers: a reset of one while the copy does not read from it.
async fn after_the_reset(
    first_resets: bool,
    before: impl AsyncFnOnce(&mut Connection),
) -> (CopyError, io::Error, Duration) {
    let (first, client) = pipe(Faults::none());
    let (second, server) = pipe(Faults::none());
    let copying = spawn(async move { copy_both(&first, &second).await });
    let (mut resets, mut other) = match first_resets {
        true => (client, server),
        false => (server, client),
    };
    before(&mut resets).await;
    sleep(HOUR).await;
    let start = tinyloop::now();
    resets.reset();
    let error = copying.await.unwrap_err();
    let told = other.write_all(b"x").await.unwrap_err();
    (error, told, tinyloop::now() - start)
}

#[test]
fn the_reset_of_a_peer_is_passed_on_while_the_copy_does_not_read_from_it() {
    run_on_test_clock(async || {
        let fills = async |peer: &mut Connection| {
            let write = async { drop(peer.write_all(&vec![0; 1_000_000]).await) };
            timeout(HOUR, write).await.unwrap_err();
        };
        let half_closes = async |peer: &mut Connection| peer.close().await.unwrap();
        for first_resets in [true, false] {
            for ended in [
                after_the_reset(first_resets, fills).await,
                after_the_reset(first_resets, half_closes).await,
            ] {
                let (error, told, time) = ended;
                assert_eq!(
                    matches!(error, CopyError::First(_)),
                    first_resets,
                    "{error}"
                );
                assert!(
                    error.to_string().starts_with("cannot read from "),
                    "{error}"
                );
                let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
                assert!(kinds.contains(&told.kind()), "{told}");
                assert!(time <= Duration::from_secs(1), "{time:?}");
            }
        }
    });
}

#[test]
fn a_copy_that_never_begins_resets_both() {
    run_on_test_clock(async || {
        let (first, mut client) = pipe(Faults::none());
        let (second, mut server) = pipe(Faults::none());
        client.write_all(b"request").await.unwrap();
        drop(copy_both(&first, &second));
        drop((first, second));
        for peer in [&mut client, &mut server] {
            let error = peer.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_peer_is_not_idle_while_the_other_one_takes_what_it_has_sent() {
    run_on_test_clock(async || {
        let (server, connector) = tinyloop::testing::server();
        let live = server.live_report();
        let upstream = server_at("slow:80", Faults::none());
        let read_slowly = async |mut connection: Connection| {
            for _ in 0..5 {
                sleep(5 * HOUR).await;
                connection.read(&mut vec![0; 100_000]).await?;
            }
            connection.read_to_end(&mut Vec::new()).await.map(drop)
        };
        let _upstream = spawn(upstream.serve(read_slowly));
        let forward = async |client: Connection| {
            let upstream = Connection::connect("slow:80").await?;
            upstream.set_idle_timeout(Some(HOUR));
            copy_both(&client, &upstream).await?;
            Ok(())
        };
        let _serving = spawn(server.idle_timeout(HOUR).serve(forward));
        let mut client = connector.connect(Faults::none()).unwrap();
        client.write_all(&vec![0; 1_000_000]).await.unwrap();
        client.close().await.unwrap();
        let ended = (&client).read(&mut [0]).await;
        assert_eq!(
            ended.unwrap(),
            0,
            "the upstream has closed: {:?}",
            live.report()
        );
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
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
        assert_eq!(tinyloop::now() - start, 12 * HOUR);
    });
}

#[test]
fn a_pair_is_idle_also_after_a_half_close() {
    run_on_test_clock(async || {
        for first_closes in [true, false] {
            let (first, mut client) = pipe(Faults::none());
            let (second, mut server) = pipe(Faults::none());
            let (closes, own) = match first_closes {
                true => (&mut client, &first),
                false => (&mut server, &second),
            };
            let idle = 2 * HOUR + Duration::from_millis(100);
            own.set_idle_timeout(Some(idle));
            let copying = spawn(async move { copy_both(&first, &second).await });
            closes.write_all(b"x").await.unwrap();
            closes.close().await.unwrap();
            // At no multiple of the pause between two looks.
            sleep(HOUR + Duration::from_millis(123)).await;
            let answers = if first_closes {
                &mut server
            } else {
                &mut client
            };
            answers.write_all(b"x").await.unwrap();
            let last = tinyloop::now();
            let error = copying.await.unwrap_err();
            assert_eq!(matches!(error, CopyError::First(_)), first_closes);
            assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
            let time = tinyloop::now() - last;
            let late = Duration::from_secs(1);
            assert!((idle..=idle + late).contains(&time), "{time:?}");
        }
    });
}

#[test]
fn a_pair_whose_half_was_closed_from_the_start_is_idle_on_time() {
    run_on_test_clock(async || {
        for millis in [100, 300, 950, 1000, 5000] {
            let (first, mut client) = pipe(Faults::none());
            let (second, _server) = pipe(Faults::none());
            let idle = Duration::from_millis(millis);
            first.set_idle_timeout(Some(idle));
            client.close().await.unwrap();
            let start = tinyloop::now();
            copy_both(&first, &second).await.unwrap_err();
            let time = tinyloop::now() - start;
            let late = Duration::from_secs(1);
            assert!(
                (idle..=idle + late).contains(&time),
                "{millis} ms: {time:?}"
            );
        }
    });
}

#[test]
fn an_answer_that_came_in_time_is_passed_on_before_a_half_closed_pair_is_idle() {
    run_on_test_clock(async || {
        for first_closes in [true, false] {
            let (first, mut client) = pipe(Faults::none());
            let (second, mut server) = pipe(Faults::none());
            let (asks, answers, own) = match first_closes {
                true => (&mut client, &mut server, &first),
                false => (&mut server, &mut client, &second),
            };
            own.set_idle_timeout(Some(HOUR));
            let copying = spawn(async move { copy_both(&first, &second).await });
            asks.write_all(b"request").await.unwrap();
            asks.close().await.unwrap();
            answers.read_to_end(&mut Vec::new()).await.unwrap();
            sleep(HOUR / 2).await;
            answers.write_all(b"reply").await.unwrap();
            answers.close().await.unwrap();
            // The process is stopped, or another task blocks the loop.
            advance(2 * HOUR);
            let mut reply = Vec::new();
            asks.read_to_end(&mut reply).await.unwrap();
            assert_eq!(reply, b"reply");
            copying.await.unwrap();
        }
    });
}

#[test]
fn a_pair_is_idle_from_the_end_of_a_write_that_has_waited() {
    run_on_test_clock(async || {
        let (first, mut client) = pipe(Faults::none());
        let (second, mut server) = pipe(Faults::none());
        first.set_idle_timeout(Some(HOUR));
        // As much as the second connection holds, and a little that the copy holds.
        let (twin, _reader) = pipe(Faults::none());
        let fill = async { (&twin).write_all(&[0; 1_000_000]).await };
        timeout(HOUR, fill).await.unwrap_err();
        let length = twin.bytes_out() as usize + 1000;
        let copying = spawn(async move { copy_both(&first, &second).await });
        client.write_all(&vec![0; length]).await.unwrap();
        sleep(5 * HOUR + Duration::from_millis(500)).await;
        server.read_exact(&mut vec![0; length]).await.unwrap();
        let last = tinyloop::now();
        let error = copying.await.unwrap_err();
        assert!(matches!(error, CopyError::First(_)), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
        assert_eq!(tinyloop::now() - last, HOUR);
    });
}

#[test]
fn a_connection_is_watched_after_a_copy_that_was_cut_while_a_write_waited() {
    run_on_test_clock(async || {
        for cancelled in [true, false] {
            let (server, connector) = tinyloop::testing::server();
            let live = server.live_report();
            let copy_and_forget_the_client = async move |client: Connection| {
                let (second, peer) = pipe(Faults::none());
                let copied = timeout(HOUR, copy_both(&client, &second));
                if cancelled {
                    copied.await.unwrap_err();
                } else {
                    let resets = async {
                        sleep(HOUR / 2).await;
                        peer.reset();
                    };
                    let (copied, ()) = future::zip(copied, resets).await;
                    copied.unwrap().unwrap_err();
                }
                pending::<()>().await;
                Ok(())
            };
            let serving = spawn(server.idle_timeout(HOUR).serve(copy_and_forget_the_client));
            let mut client = connector.connect(Faults::none()).unwrap();
            client.write_all(&[0; 1_000_000]).await.unwrap_err();
            sleep(3 * HOUR).await;
            assert_eq!(live.report().timed_out, 1, "{:?}", live.report());
            drop(serving);
        }
    });
}

#[test]
fn a_reset_that_came_before_the_last_end_is_passed_on() {
    run_on_test_clock(async || {
        let (first, mut client) = pipe(Faults::none());
        let (second, mut server) = pipe(Faults::none());
        let copying = spawn(async move { copy_both(&first, &second).await });
        server.close().await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap();
        client.write_all(&[0; 50_000]).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        server.reset();
        sleep(Duration::from_millis(100)).await;
        client.close().await.unwrap();
        let error = copying.await.unwrap_err();
        assert!(matches!(error, CopyError::Second(_)), "{error}");
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
    for (client_resets, half_closes) in [(true, false), (false, false), (true, true), (false, true)]
    {
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
        if half_closes {
            resets.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&other), b"");
        }
        set_socket_linger(&resets, Some(Duration::ZERO)).unwrap();
        drop(resets);
        if half_closes {
            // A peer that has read the end and says nothing is told of the reset by its system alone.
            let mut polled = [PollFd::new(&other, PollFlags::empty())];
            let deadline = Timespec::try_from(DEADLINE).unwrap();
            assert_eq!(poll(&mut polled, Some(&deadline)), Ok(1));
            assert!(polled[0].revents().contains(PollFlags::ERR));
        } else {
            assert_eq!(read_to_reset(&other), b"");
        }
    }
    let (_, stderr) = forwarder.stop();
    assert!(
        stderr[0].starts_with("accepted 4, completed 0, failed 4, "),
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
    let refused = format!("forwarder: cannot connect to {addr}: connection refused");
    assert_eq!(stderr[0], refused);
    assert!(stderr[1].contains("failed 1, "), "{stderr:?}");
}

#[test]
fn the_forwarder_does_not_start_with_what_is_wrong() {
    for (arguments, status, told) in [
        (
            &["127.0.0.1:0", "[::1"][..],
            1,
            "forwarder: \"[::1\" is not an address",
        ),
        (
            &["127.0.0.1:0", "127.0.0.1:1", "more"],
            2,
            "usage: forwarder ",
        ),
        (&["127.0.0.1:0"], 2, "usage: forwarder "),
    ] {
        let forwarder = Program::spawn(Program::example("forwarder").args(arguments));
        let (ended, _, stderr) = forwarder.wait();
        assert_eq!(ended.code(), Some(status), "{arguments:?}");
        assert!(stderr[0].starts_with(told), "{stderr:?}");
    }
}
