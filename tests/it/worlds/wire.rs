//! The in-memory connection in time: buffers, windows, latency and rate, and the system's patience. On the test clock.

use std::future::{pending, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_lite::future::{poll_once, yield_now, zip};
use futures_lite::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tinyloop::testing::{Connector, Faults, Wire, pipe_over, server};
use tinyloop::{Connection, now, sleep, spawn};

use crate::support::run_on_test_clock;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn pair(wire: Wire) -> (Connection, Connection) {
    pipe_over(wire, Faults::none())
}

/// Writes until there is no room, and returns how many bytes found some.
async fn fill(mut connection: &Connection) -> usize {
    let mut written = 0;
    let chunk = vec![b'x'; 100_000];
    loop {
        let mut last = None;
        // A write that has had its burst lets others run first.
        for _ in 0..3 {
            last = poll_once(connection.write(&chunk)).await;
            if last.is_some() {
                break;
            }
            yield_now().await;
        }
        match last {
            Some(count) => written += count.unwrap(),
            None => return written,
        }
    }
}

async fn can_write(connection: &mut Connection) -> bool {
    let write = |cx: &mut std::task::Context<'_>| {
        Poll::Ready(Pin::new(&mut *connection).poll_write(cx, b"x").is_ready())
    };
    poll_fn(write).await
}

#[test]
fn what_is_sent_arrives_after_its_latency() {
    run_on_test_clock(async || {
        let (mut connection, mut peer) = pair(Wire::tcp().latency(SECOND));
        let start = now();
        connection.write_all(b"hello").await.unwrap();
        assert_eq!(now(), start);
        peer.read_exact(&mut [0; 5]).await.unwrap();
        assert_eq!(now() - start, SECOND);
        // The end takes as long, and so does a reset.
        connection.close().await.unwrap();
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(now() - start, 2 * SECOND);
        peer.reset();
        let reset = connection.read(&mut [0]).await.unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        assert_eq!(now() - start, 3 * SECOND);
    });
}

#[test]
fn a_reader_that_waits_already_is_woken_when_bytes_arrive() {
    run_on_test_clock(async || {
        let (mut connection, mut peer) = pair(Wire::tcp().latency(SECOND));
        let start = now();
        let reading = spawn(async move { peer.read(&mut [0]).await });
        sleep(SECOND).await;
        connection.write_all(b"!").await.unwrap();
        assert_eq!(tinyloop::timeout(HOUR, reading).await.unwrap().unwrap(), 1);
        assert_eq!(now() - start, 2 * SECOND);
    });
}

#[test]
fn each_direction_may_have_a_wire_of_its_own() {
    run_on_test_clock(async || {
        let back = Wire::tcp().latency(3 * SECOND).buffers(100, 200);
        let (mut connection, mut peer) = pair(Wire::tcp().latency(SECOND).back(back));
        let start = now();
        connection.write_all(b"?").await.unwrap();
        peer.read_exact(&mut [0]).await.unwrap();
        assert_eq!(now() - start, SECOND);
        peer.write_all(b"!").await.unwrap();
        connection.read_exact(&mut [0]).await.unwrap();
        assert_eq!(now() - start, 4 * SECOND);
        // What is not acknowledged yet still takes room.
        assert_eq!(fill(&peer).await, 99);
    });
}

#[test]
fn bytes_come_at_the_rate_of_the_wire_in_segments() {
    run_on_test_clock(async || {
        let (mut connection, mut peer) = pair(
            Wire::tcp()
                .buffers(16_000, 64_000)
                .segment(1000)
                .rate(10_000),
        );
        let start = now();
        let mut pieces = Vec::new();
        let receive = async {
            let mut buffer = [0; 4096];
            loop {
                match peer.read(&mut buffer).await.unwrap() {
                    0 => break,
                    count => pieces.push(count),
                }
            }
        };
        let send = async {
            connection.write_all(&vec![b'x'; 100_000]).await.unwrap();
            connection.close().await.unwrap();
        };
        zip(send, receive).await;
        assert_eq!((now() - start).as_millis(), 10_000);
        assert_eq!(pieces, [1000; 100]);
    });
}

#[test]
fn what_is_written_while_the_window_is_closed_joins() {
    run_on_test_clock(async || {
        let (mut connection, mut peer) = pair(Wire::tcp().buffers(1000, 1000));
        connection.write_all(&[b'x'; 1000]).await.unwrap();
        for _ in 0..10 {
            connection.write_all(b"word").await.unwrap();
        }
        let mut buffer = [0; 2000];
        assert_eq!(peer.read(&mut buffer).await.unwrap(), 1000);
        assert_eq!(peer.read(&mut buffer).await.unwrap(), 40);
    });
}

#[test]
fn a_connection_holds_what_its_two_buffers_hold_and_a_unix_socket_one() {
    run_on_test_clock(async || {
        let (connection, _peer) = pair(Wire::tcp().buffers(5000, 20_000));
        assert_eq!(fill(&connection).await, 25_000);
        let (connection, _peer) = pair(Wire::unix().buffers(5000, 20_000));
        assert_eq!(fill(&connection).await, 5000);
    });
}

#[test]
fn a_window_opens_in_steps_and_a_write_waits_for_a_third_of_its_buffer() {
    run_on_test_clock(async || {
        let wire = Wire::tcp().buffers(30_000, 20_000).segment(4000);
        let (mut connection, mut peer) = pair(wire);
        assert_eq!(fill(&connection).await, 50_000);
        let mut read = 0;
        while !can_write(&mut connection).await {
            peer.read_exact(&mut [0; 100]).await.unwrap();
            read += 100;
        }
        // Three segments are more than a third.
        assert_eq!(read, 12_000);
    });
}

#[test]
fn a_unix_socket_has_room_when_three_quarters_are_free() {
    run_on_test_clock(async || {
        let (mut connection, mut peer) = pair(Wire::unix().buffers(8000, 1));
        assert_eq!(fill(&connection).await, 8000);
        let mut read = 0;
        while !can_write(&mut connection).await {
            peer.read_exact(&mut [0; 100]).await.unwrap();
            read += 100;
        }
        assert_eq!(read, 6000);
    });
}

/// A server with a stall timeout of an hour, whose handler writes until it waits, and its peer.
fn stalled(wire: Wire) -> (tinyloop::Task<io::Result<tinyloop::Report>>, Connection) {
    let (server, connector) = server();
    let serving = server
        .stall_timeout(HOUR)
        .shutdown_on(sleep(20 * HOUR))
        .serve(async |connection| {
            // Nobody waits for a write, so that the system alone finds out.
            fill(&connection).await;
            (&connection).read(&mut [0]).await.map(drop)
        });
    let peer = connector.connect_over(wire, Faults::none()).unwrap();
    (spawn(serving), peer)
}

#[test]
fn the_system_gives_up_a_peer_that_takes_nothing_for_three_stall_timeouts() {
    run_on_test_clock(async || {
        let start = now();
        let (serving, mut peer) = stalled(Wire::tcp());
        sleep(3 * HOUR + SECOND).await;
        let mut received = Vec::new();
        let reset = peer.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        assert_eq!(now() - start, 3 * HOUR + SECOND);
        assert_eq!(serving.await.unwrap().timed_out, 1);
    });
}

#[test]
fn the_system_does_not_give_up_a_peer_that_reads_a_segment_now_and_then() {
    run_on_test_clock(async || {
        let (serving, mut peer) = stalled(Wire::tcp().segment(1000).buffers(100_000, 20_000));
        for _ in 0..5 {
            sleep(2 * HOUR).await;
            peer.read_exact(&mut [0; 10_000]).await.unwrap();
        }
        drop(peer);
        assert_eq!(serving.await.unwrap().timed_out, 0);
    });
}

#[test]
fn what_a_closed_connection_still_holds_is_delivered() {
    run_on_test_clock(async || {
        let (mut connection, mut peer) = pair(Wire::tcp().latency(SECOND));
        connection.write_all(&vec![b'x'; 70_000]).await.unwrap();
        drop(connection);
        let mut received = Vec::new();
        peer.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 70_000);
    });
}

#[test]
fn input_after_the_close_throws_away_what_a_connection_still_holds() {
    run_on_test_clock(async || {
        let (mut connection, mut peer) = pair(Wire::tcp().latency(SECOND));
        connection.write_all(&vec![b'x'; 70_000]).await.unwrap();
        drop(connection);
        peer.write_all(b"late").await.unwrap();
        sleep(HOUR).await;
        let mut received = Vec::new();
        let reset = peer.read_to_end(&mut received).await.unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        assert_eq!(received.len(), 64 * 1024, "what had arrived");
    });
}

#[test]
fn a_closed_connection_holds_nothing_for_longer_than_three_stall_timeouts() {
    run_on_test_clock(async || {
        for (hours, is_delivered) in [(2, true), (4, false)] {
            let (server, connector) = server();
            let serving = server
                .stall_timeout(HOUR)
                .shutdown_on(sleep(10 * HOUR))
                .serve(async |mut connection| {
                    // Its peer has closed its half, so the server leaves the rest to the system.
                    while connection.read(&mut [0]).await? > 0 {}
                    connection.write_all(&vec![b'x'; 70_000]).await
                });
            let serving = spawn(serving);
            let mut peer = connector.connect(Faults::none()).unwrap();
            peer.close().await.unwrap();
            sleep(hours * HOUR).await;
            let mut received = Vec::new();
            let end = peer.read_to_end(&mut received).await;
            assert_eq!(end.is_ok(), is_delivered);
            let arrived = if is_delivered { 70_000 } else { 64 * 1024 };
            assert_eq!(received.len(), arrived);
            assert_eq!(serving.await.unwrap().completed, 1);
        }
    });
}

/// A server that echoes until `connector` and its clients are gone.
fn echo_server() -> (tinyloop::Task<io::Result<tinyloop::Report>>, Connector) {
    let (server, connector) = server();
    let serving = server
        .shutdown_on(sleep(HOUR))
        .serve(async |connection| tinyloop::echo(connection, b"").await);
    (spawn(serving), connector)
}

async fn ask(connector: &Connector) -> Connection {
    let mut client = connector.connect(Faults::none()).unwrap();
    client.write_all(b"?").await.unwrap();
    client
}

async fn is_answered(client: &mut Connection) -> bool {
    let mut answer = [0];
    let answered = client.read_exact(&mut answer);
    tinyloop::timeout(10 * SECOND, answered).await.is_ok()
}

#[test]
fn a_connection_waits_while_its_server_has_no_descriptor_for_it() {
    run_on_test_clock(async || {
        let (serving, connector) = echo_server();
        connector.limit_descriptors(1);
        let mut first = ask(&connector).await;
        assert!(is_answered(&mut first).await);
        let mut second = ask(&connector).await;
        assert!(!is_answered(&mut second).await);
        drop(first);
        assert!(is_answered(&mut second).await);
        drop(second);
        assert_eq!(serving.await.unwrap().completed, 2);
    });
}

#[test]
fn a_server_goes_on_after_accepts_that_fail() {
    const EMFILE: i32 = 24;
    const ECONNABORTED: i32 = 103;
    run_on_test_clock(async || {
        let (serving, connector) = echo_server();
        for errno in [EMFILE, ECONNABORTED] {
            connector.fail_accepts(errno, 3);
            let mut client = ask(&connector).await;
            assert!(is_answered(&mut client).await);
        }
        assert_eq!(serving.await.unwrap().accepted, 2);
    });
}

#[test]
fn an_accept_that_fails_for_good_ends_the_server() {
    const EBADF: i32 = 9;
    run_on_test_clock(async || {
        let (serving, connector) = echo_server();
        connector.fail_accepts(EBADF, 1);
        assert!(serving.await.is_err());
    });
}

#[test]
fn a_full_queue_takes_nobody_until_the_server_accepts() {
    run_on_test_clock(async || {
        let (server, connector) = server();
        connector.set_backlog(1);
        let connect = || connector.connect(Faults::none());
        let waiting = [connect().unwrap(), connect().unwrap()];
        assert_eq!(connect().unwrap_err().kind(), ErrorKind::WouldBlock);
        let serving = spawn(server.serve(async |_| pending().await));
        sleep(SECOND).await;
        connect().unwrap();
        drop((waiting, serving));
    });
}

#[test]
fn a_reply_is_complete_when_the_peers_system_has_nearly_all_of_it() {
    run_on_test_clock(async || {
        let (server, connector) = server();
        let serving = server
            .stall_timeout(HOUR)
            .shutdown_on(sleep(10 * HOUR))
            .serve(async |mut connection| connection.write_all(&vec![b'x'; 70_000]).await);
        let serving = spawn(serving);
        // The first takes all at last, the second nothing.
        let mut peers = [(); 2].map(|()| connector.connect(Faults::none()).unwrap());
        sleep(2 * HOUR).await;
        let mut reply = Vec::new();
        peers[0].read_to_end(&mut reply).await.unwrap();
        assert_eq!(reply.len(), 70_000);
        sleep(2 * HOUR).await;
        let reset = peers[1].read_to_end(&mut reply).await.unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        let report = serving.await.unwrap();
        assert_eq!((report.completed, report.timed_out), (1, 1));
    });
}
