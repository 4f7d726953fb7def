//! The echo handler over a pipe that fails as sockets do: short reads and writes, interruptions and errors, from a seed.

use std::future::pending;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use futures_lite::future::{yield_now, zip};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use smol::channel;
use tinyloop::testing::{Faults, for_each_seed, pipe, server};
use tinyloop::{CHUNK, Connection, Framer, Framing, echo_framed, now, sleep, spawn};

use crate::support::{panic_message, run_on_test_clock};

/// Stands before each chunk or line. No byte of it is in a message.
const PREFIX: &[u8] = b"\x01\x02\x01";

/// The errors that end a connection.
const ERRORS: [ErrorKind; 6] = [
    ErrorKind::ConnectionReset,
    ErrorKind::ConnectionAborted,
    ErrorKind::BrokenPipe,
    ErrorKind::TimedOut,
    ErrorKind::HostUnreachable,
    ErrorKind::Other,
];

/// A message drawn from `random`: short as a rule, and now and then longer than a pipe holds.
fn message(random: &mut Rng) -> Vec<u8> {
    let length = match random.u8(0..40) {
        0 => random.usize(..200_000),
        1..10 => random.usize(..20_000),
        _ => random.usize(..500),
    };
    let line_ends = random.u8(1..50);
    let byte = || match random.u8(..100) {
        draw if draw < line_ends => b'\n',
        _ => random.u8(b' '..),
    };
    std::iter::repeat_with(byte).take(length).collect()
}

/// Sends `message` in pieces drawn from `random`, with breaks, and closes.
async fn send(mut peer: &Connection, message: &[u8], mut random: Rng) {
    let mut rest = message;
    while !rest.is_empty() {
        let most = random.choice([1, 10, 1000, 100_000]).unwrap();
        let (piece, left) = rest.split_at(random.usize(1..=most).min(rest.len()));
        peer.write_all(piece).await.unwrap();
        rest = left;
        for _ in 0..random.u8(..3) {
            yield_now().await;
        }
    }
    peer.close().await.unwrap();
}

/// Reads to the end, in pieces drawn from `random`.
async fn receive(mut peer: &Connection, mut random: Rng) -> Vec<u8> {
    let mut received = Vec::new();
    let mut piece = vec![0; 30_000];
    loop {
        let most = random.usize(1..=piece.len());
        match peer.read(&mut piece[..most]).await.unwrap() {
            0 => return received,
            length => received.extend_from_slice(&piece[..length]),
        }
    }
}

/// What an echo server makes of a message when the seed decides how everything falls.
fn echoed(seed: u64, framing: Framing) -> (Vec<u8>, Vec<u8>) {
    let mut random = Rng::with_seed(seed);
    let message = message(&mut random);
    run_on_test_clock(async move || {
        let (connection, peer) = pipe(Faults::from_seed(seed));
        let handler = spawn(async move { echo_framed(connection, PREFIX, framing).await });
        // Tasks have their turns in an order that the main future, which the loop polls by the clock, has not.
        let replied = spawn(async move {
            let sent = send(&peer, &message, random.fork());
            let received = receive(&peer, random.fork());
            let (_, reply) = zip(sent, received).await;
            (message, reply)
        });
        handler.await.unwrap();
        replied.await
    })
}

/// The chunks of a reply in chunks.
fn chunks(mut reply: &[u8]) -> Vec<&[u8]> {
    let mut chunks = Vec::new();
    while let Some(rest) = reply.strip_prefix(PREFIX) {
        let length = rest.iter().position(|byte| PREFIX.contains(byte));
        let (chunk, rest) = rest.split_at(length.unwrap_or(rest.len()));
        chunks.push(chunk);
        reply = rest;
    }
    assert!(reply.is_empty(), "a prefix stands before each chunk");
    chunks
}

/// The reply in lines, which does not depend on how the message was cut.
fn in_lines(message: &[u8]) -> Vec<u8> {
    let mut reply = Vec::new();
    let mut at_line_start = true;
    for &byte in message {
        if at_line_start {
            reply.extend_from_slice(PREFIX);
        }
        reply.push(byte);
        at_line_start = byte == b'\n';
    }
    reply
}

fn check_both_framings(seeds: Range<u64>) {
    for_each_seed(seeds, |seed| {
        let (message, reply) = echoed(seed, Framing::Chunk);
        let chunks = chunks(&reply);
        assert!(
            chunks
                .iter()
                .all(|chunk| (1..=CHUNK).contains(&chunk.len()))
        );
        assert!(chunks.concat() == message, "every byte comes back in order");
        // And the framer, given these chunks, makes the same of them.
        let mut framer = Framer::new(PREFIX, Framing::Chunk);
        let mut framed = Vec::new();
        chunks
            .iter()
            .for_each(|chunk| framer.frame(chunk, &mut framed));
        assert!(framed == reply);

        let (message, reply) = echoed(seed, Framing::Line);
        assert!(reply == in_lines(&message), "in lines");
    });
}

#[test]
fn whatever_goes_wrong_on_the_way_every_byte_comes_back_behind_its_prefix() {
    check_both_framings(0..2000);
}

#[test]
#[ignore = "takes half a minute"]
fn whatever_goes_wrong_with_ten_thousand_seeds_every_byte_comes_back() {
    check_both_framings(2000..12_000);
}

/// Asks again and again, until there is no answer.
async fn ask_until_it_ends(peer: &mut Connection) {
    let mut answer = vec![0; PREFIX.len() + 6];
    while peer.write_all(b"hello\n").await.is_ok() && peer.read_exact(&mut answer).await.is_ok() {}
}

#[test]
fn an_error_at_any_step_ends_the_handler_with_that_error() {
    for kind in ERRORS {
        for calls in 0..40 {
            for faults in [Faults::none(), Faults::from_seed(calls)] {
                run_on_test_clock(async move || {
                    let (connection, mut peer) = pipe(faults.fail_after(calls, kind));
                    let handler = echo_framed(connection, PREFIX, Framing::Line);
                    let (ended, ()) = zip(handler, ask_until_it_ends(&mut peer)).await;
                    assert_eq!(ended.unwrap_err().kind(), kind, "after {calls} calls");
                });
            }
        }
    }
}

#[test]
fn an_error_on_one_connection_leaves_the_server_and_the_others_alone() {
    run_on_test_clock(async || {
        let (server, connector) = server();
        let (shutdown, shut_down) = channel::bounded::<()>(1);
        let serving = server
            .shutdown_on(async move { shut_down.recv().await.unwrap_or_default() })
            .serve(async |connection| echo_framed(connection, PREFIX, Framing::Chunk).await);
        let serving = spawn(serving);

        let mut bystander = connector.connect(Faults::none()).unwrap();
        let mut failed = 0;
        for kind in ERRORS {
            for calls in 0..40 {
                let faults = Faults::none().fail_after(calls, kind);
                let mut broken = connector.connect(faults).unwrap();
                ask_until_it_ends(&mut broken).await;
                failed += 1;
                let mut answer = [0; 8];
                bystander.write_all(b"still").await.unwrap();
                bystander.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"\x01\x02\x01still");
            }
        }
        bystander.close().await.unwrap();
        assert_eq!(bystander.read(&mut [0]).await.unwrap(), 0);
        drop(shutdown);
        let report = serving.await.unwrap();
        assert_eq!((report.failed, report.completed), (failed, 1));
        assert_eq!(report.accepted, failed + 1);
        assert_eq!(
            connector.connect(Faults::none()).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "a server that is gone accepts nothing"
        );
    });
}

#[test]
fn a_seed_replays_what_happened() {
    for seed in 0..50 {
        let (first, again) = (echoed(seed, Framing::Chunk), echoed(seed, Framing::Chunk));
        assert!(first == again, "the same cuts with seed {seed}");
    }
    let (one, other) = (echoed(1, Framing::Chunk), echoed(2, Framing::Chunk));
    assert!(one != other);
}

#[test]
fn a_failure_names_its_seed() {
    let mut seen = Vec::new();
    let message = panic_message(|| {
        for_each_seed(10..20, |seed| {
            seen.push(seed);
            assert!(seed != 13, "unlucky");
        })
    });
    assert_eq!(message, "with seed 13: unlucky");
    assert_eq!(seen, [10, 11, 12, 13]);
}

#[test]
fn an_echo_that_loses_a_byte_is_caught() {
    /// Takes a short write for a whole one.
    async fn careless(mut connection: Connection) -> io::Result<()> {
        let mut chunk = [0; 1000];
        loop {
            match connection.read(&mut chunk).await? {
                0 => return connection.close().await,
                length => _ = connection.write(&chunk[..length]).await?,
            }
        }
    }
    let message = panic_message(|| {
        for_each_seed(0..100, |seed| {
            run_on_test_clock(async move || {
                let (connection, peer) = pipe(Faults::from_seed(seed));
                let handler = spawn(careless(connection));
                let sent = send(&peer, &[b'x'; 2000], Rng::with_seed(seed));
                let received = receive(&peer, Rng::with_seed(seed));
                let (_, reply) = zip(sent, received).await;
                handler.await.unwrap();
                assert_eq!(reply.len(), 2000);
            });
        })
    });
    assert!(message.starts_with("with seed "), "{message}");
}

#[test]
fn a_peer_that_goes_away_ends_a_write_that_waits() {
    run_on_test_clock(async || {
        let (mut connection, peer) = pipe(Faults::none());
        let writing = spawn(async move {
            loop {
                connection.write_all(&[b'x'; 1000]).await?;
            }
        });
        let start = now();
        sleep(Duration::from_secs(1)).await;
        drop(peer);
        let ended: io::Result<()> = writing.await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!((now() - start).as_secs(), 1);
    });
}

#[test]
fn a_server_that_is_dropped_refuses_those_who_come_later() {
    run_on_test_clock(async || {
        let (server, connector) = server();
        let serving = spawn(server.serve(async |_| pending().await));
        connector.connect(Faults::none()).unwrap();
        sleep(Duration::from_secs(1)).await;
        let mut waiting = connector.connect(Faults::none()).unwrap();
        serving.cancel().await;
        let reset = waiting.read(&mut [0]).await.unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        let refused = connector.connect(Faults::none()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_server_that_is_dropped_drops_those_who_wait_for_it() {
    run_on_test_clock(async || {
        let (server, connector) = server();
        let mut waiting = connector.connect(Faults::none()).unwrap();
        let serving = server
            .shutdown_on(async {})
            .serve(async |_| pending().await);
        serving.await.unwrap();
        let reset = waiting.read(&mut [0]).await.unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_peer_may_write_during_the_drain_as_on_a_socket() {
    run_on_test_clock(async || {
        let (server, connector) = server();
        let serving = server
            .shutdown_on(sleep(Duration::from_secs(1)))
            .drain(Duration::from_secs(60))
            .serve(async |connection| tinyloop::echo(connection, b"").await);
        let serving = spawn(serving);
        let mut peer = connector.connect(Faults::none()).unwrap();
        sleep(Duration::from_millis(1500)).await;
        peer.write_all(b"too late").await.unwrap();
        let mut reply = Vec::new();
        peer.read_to_end(&mut reply).await.unwrap();
        assert_eq!(reply, b"");
        drop(peer);
        assert_eq!(serving.await.unwrap().completed, 1);
    });
}
