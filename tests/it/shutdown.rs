//! The end of a server: what is refused, what may finish, and what is cut off.

use std::future;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use rustix::process::Signal;
use tinyloop::Connection;

use crate::support::{
    DEADLINE, Program, Served, ask, echo, next, read_to_end, read_to_reset, the_machine, time,
};

const MEGABYTE: usize = 1_000_000;

/// Who cannot write for so long is blocked by the server, if that has little else to do.
const BLOCKED: Duration = Duration::from_millis(300);

/// Bytes in which one that is missing shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[test]
fn new_connections_are_refused_as_soon_as_the_shutdown_begins() {
    let _machine = the_machine();
    let until_refused = |_| {
        let served = Served::start(
            |server| server.drain(DEADLINE),
            async |mut connection| {
                connection.write_all(b"!").await?;
                connection.read(&mut [0]).await.map(drop)
            },
        );
        // Keeps the server draining.
        let mut open = served.connect();
        open.read_exact(&mut [0]).expect("is served");
        served.shut_down();
        let elapsed = time(|| while TcpStream::connect(served.addr).is_ok() {});
        assert!(!served.has_ended());
        drop(open);
        elapsed
    };
    let fastest = (0..5).map(until_refused).min().unwrap();
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
}

#[test]
fn a_handler_hears_that_the_server_closes() {
    let served = Served::start(
        |server| server.drain(DEADLINE),
        async |mut connection| {
            assert!(!connection.is_closing());
            connection.write_all(b"hello").await?;
            connection.closing().await;
            // Once more, though it has resolved.
            connection.closing().await;
            assert!(connection.is_closing());
            connection.write_all(b", goodbye").await
        },
    );
    let connections = [(); 3].map(|()| served.connect());
    for mut connection in &connections {
        connection.read_exact(&mut [0; 5]).expect("is served");
    }
    served.shut_down();
    for connection in &connections {
        assert_eq!(read_to_end(connection), b", goodbye");
    }
    drop(connections);
    assert_eq!(served.stop().unwrap().completed, 3);
}

#[test]
fn idle_echo_connections_end_with_the_shutdown() {
    let program = Program::start(&["-l", "127.0.0.1:0", "--drain", "3600"]);
    let silent = program.connect();
    let served = program.connect();
    assert_eq!(ask(&served, "hello"), "Got: hello");
    program.signal(Signal::TERM);
    assert_eq!(read_to_end(&silent), b"");
    assert_eq!(read_to_end(&served), b"");
    let (status, _, stderr) = program.wait();
    assert_eq!(status.code(), Some(0));
    let report = stderr.last().unwrap();
    assert!(report.starts_with("accepted 2, completed 2, "), "{report}");
}

#[test]
fn a_hundred_transfers_are_finished_to_the_last_byte_and_then_the_program_ends_at_once() {
    let _machine = the_machine();
    let fastest = [(); 3].map(|()| end_after_transfers()).into_iter().min();
    assert!(fastest < Some(Duration::from_millis(10)), "{fastest:?}");
}

/// Sends SIGTERM in the middle of a hundred transfers of a megabyte. Returns how long the program lives after the last.
fn end_after_transfers() -> Duration {
    const TRANSFERS: usize = 100;
    let program = Program::start(&["-l", "127.0.0.1:0", "-q", "--prefix", "", "--drain", "60"]);
    let sent = pattern(MEGABYTE);
    let (starts, started) = mpsc::channel();
    let received = thread::scope(|scope| {
        let transfer = |_| {
            let (connection, sent, starts) = (program.connect(), &sent, starts.clone());
            let mut sender = connection.try_clone().unwrap();
            let (hold, held) = mpsc::channel::<()>();
            scope.spawn(move || {
                let (first, mut rest) = sent.split_at(MEGABYTE / 2);
                sender.write_all(first).expect("is sent");
                let pause = Duration::from_millis(20);
                while held.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    // A byte now and then: an idle connection would end.
                    sender.write_all(&rest[..1]).expect("is sent");
                    rest = &rest[1..];
                }
                sender.write_all(rest).expect("is sent");
                sender.shutdown(Shutdown::Write).unwrap();
            });
            let receiver = scope.spawn(move || {
                let mut received = vec![0; MEGABYTE / 10];
                (&connection).read_exact(&mut received).expect("begins");
                starts.send(()).unwrap();
                received.extend(read_to_end(&connection));
                (received == *sent, Instant::now())
            });
            (hold, receiver)
        };
        let (holds, receivers): (Vec<_>, Vec<_>) = (0..TRANSFERS).map(transfer).unzip();
        for _ in 0..TRANSFERS {
            next(&started);
        }
        program.signal(Signal::TERM);
        let draining = program.stderr_line();
        assert!(draining.ends_with("open connections: 100"), "{draining}");
        drop(holds);
        let results = receivers
            .into_iter()
            .map(|receiver| receiver.join().unwrap());
        results.collect::<Vec<_>>()
    });
    let (status, _, stderr) = program.wait();
    let ended = Instant::now();
    assert_eq!(status.code(), Some(0), "{stderr:?}");
    let complete = received.iter().filter(|(complete, _)| *complete).count();
    assert_eq!(complete, TRANSFERS, "{stderr:?}");
    let last = received.into_iter().map(|(_, end)| end).max().unwrap();
    ended - last
}

#[test]
fn a_transfer_to_a_peer_that_pauses_is_finished_too() {
    let program = Program::start(&["-l", "127.0.0.1:0", "-q", "--prefix", "", "--drain", "60"]);
    let sent = pattern(16 * MEGABYTE);
    let connection = program.connect();
    let received = thread::scope(|scope| {
        let mut sender = connection.try_clone().unwrap();
        let sent = &sent;
        scope.spawn(move || {
            // Fails when the server cuts us off, which the reader sees.
            sender.write_all(sent).ok();
            sender.shutdown(Shutdown::Write).ok();
        });
        let mut received = vec![0; MEGABYTE];
        (&connection).read_exact(&mut received).expect("begins");
        program.signal(Signal::TERM);
        // The server waits for us all this time: it is not idle.
        let (_silent, pause) = mpsc::channel::<()>();
        pause.recv_timeout(Duration::from_secs(1)).unwrap_err();
        (&connection).read_to_end(&mut received).ok();
        received
    });
    assert!(received == sent, "{} bytes", received.len());
    let (status, _, stderr) = program.wait();
    assert_eq!(status.code(), Some(0), "{stderr:?}");
}

/// Writes until the server has read nothing for `blocked`, and reads nothing.
fn stall(connection: &TcpStream, blocked: Duration) {
    connection.set_write_timeout(Some(blocked)).unwrap();
    let chunk = [b'x'; 64 * 1024];
    let error = loop {
        if let Err(error) = { connection }.write(&chunk) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

/// Sends SIGTERM while all `connections` are stalled. Returns how long after the deadline the program lives.
fn lives_on_after_the_deadline(connections: usize, blocked: Duration) -> Duration {
    let drain = Duration::from_millis(500);
    let program = Program::start(&["-l", "127.0.0.1:0", "--drain", "0.5"]);
    let stalled: Vec<_> = (0..connections).map(|_| program.connect()).collect();
    thread::scope(|scope| {
        for connection in &stalled {
            scope.spawn(move || stall(connection, blocked));
        }
    });
    program.signal(Signal::TERM);
    let signalled = Instant::now();
    let (status, _, stderr) = program.wait();
    let lived = signalled.elapsed();
    assert_eq!(status.code(), Some(0));
    assert_eq!(
        stderr[0],
        format!("draining for at most 500.0ms, open connections: {connections}")
    );
    let aborted = format!("aborted {connections}, ");
    assert!(stderr[1].contains(&aborted), "{stderr:?}");
    lived.checked_sub(drain).expect("not before the deadline")
}

#[test]
fn stalled_connections_are_cut_off_at_the_deadline() {
    let _machine = the_machine();
    let late = [(); 3].map(|()| lives_on_after_the_deadline(2, BLOCKED));
    assert!(
        late.iter().min() <= Some(&Duration::from_millis(50)),
        "{late:?}"
    );
}

#[test]
#[ignore = "needs the machine to itself"]
fn a_hundred_stalled_connections_are_cut_off_at_the_deadline_too() {
    let _machine = the_machine();
    // They share the server, so each of them has to be patient.
    let late = [(); 3].map(|()| lives_on_after_the_deadline(100, 5 * BLOCKED));
    assert!(
        late.iter().min() <= Some(&Duration::from_millis(50)),
        "{late:?}"
    );
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let _machine = the_machine();
    for (first, second, code) in [
        (Signal::TERM, Signal::INT, 130),
        (Signal::INT, Signal::TERM, 143),
        (Signal::TERM, Signal::TERM, 143),
    ] {
        let program = Program::start(&["-l", "127.0.0.1:0", "--drain", "3600"]);
        let stalled = program.connect();
        stall(&stalled, BLOCKED);
        program.signal(first);
        assert_eq!(
            program.stderr_line(),
            "draining for at most 3600.0s, open connections: 1"
        );
        program.signal(second);
        let mut status = None;
        let elapsed = time(|| status = Some(program.wait().0));
        assert_eq!(status.unwrap().code(), Some(code));
        assert!(elapsed <= Duration::from_millis(50), "{elapsed:?}");
    }
}

#[test]
fn a_reply_arrives_whole_though_the_handler_has_returned_and_input_is_unread() {
    let (tell_written, written) = mpsc::channel();
    let served = Served::start(
        |server| server,
        async move |mut connection: Connection| {
            connection.write_all(&pattern(MEGABYTE)).await?;
            tell_written.send(()).unwrap();
            Ok(())
        },
    );
    let mut connection = served.connect();
    connection.write_all(&[b'x'; 50_000]).unwrap();
    // The rest has room in the kernel's buffers.
    let mut received = vec![0; MEGABYTE - 20_000];
    connection.read_exact(&mut received).expect("begins");
    next(&written);
    received.extend(read_to_end(&connection));
    assert!(received == pattern(MEGABYTE), "{} bytes", received.len());
    drop(connection);
    assert_eq!(served.stop().unwrap().completed, 1);
}

#[test]
fn a_handler_that_does_not_end_is_cancelled_after_the_drain() {
    let served = Served::start(
        |server| server.drain(Duration::from_millis(100)),
        async |mut connection| {
            connection.write_all(b"!").await?;
            future::pending().await
        },
    );
    let connections = [served.connect(), served.connect()];
    for mut connection in &connections {
        connection.read_exact(&mut [0]).expect("is served");
    }
    served.shut_down();
    for connection in &connections {
        assert_eq!(read_to_reset(connection), b"");
    }
    let report = served.stop().unwrap();
    assert_eq!((report.accepted, report.aborted), (2, 2));
}

#[test]
fn a_server_without_connections_ends_at_once() {
    let served = Served::start(|server| server.drain(Duration::MAX), echo);
    assert_eq!(served.stop().unwrap(), tinyloop::Report::default());
}
