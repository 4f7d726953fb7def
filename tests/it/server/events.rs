//! What a server tells, as it happens and at the end.

use std::io;
use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

use tinyloop::{CloseReason, Connection, Event, WhenFull};

use crate::server::{has_ended, is_silent_for, observed};
use crate::support::{Served, ask, echo, next, read_to_end};

#[test]
fn a_server_tells_what_happens_in_order() {
    let (served, events) = observed(
        |server| {
            server
                .max_connections(2)
                .when_full(WhenFull::Reject)
                .drain(Duration::from_millis(1500))
        },
        echo,
    );
    let expect = |line: String| assert_eq!(next(&events), line);
    expect(format!("listening on {}", served.addr));

    let first = served.connect();
    let first_addr = first.local_addr().unwrap();
    expect(format!("Connection from {first_addr}"));
    assert_eq!(ask(&first, "hello"), "Got: hello");
    drop(first);
    expect(format!(
        "Connection closed {first_addr}: completed, bytes in 5, bytes out 10"
    ));

    let held = [served.connect(), served.connect()];
    let held_addrs = held.each_ref().map(|stream| stream.local_addr().unwrap());
    expect(format!("Connection from {}", held_addrs[0]));
    expect(format!("Connection from {}", held_addrs[1]));
    expect("connection limit reached (2): new connections are rejected".to_owned());
    let rejected = served.connect();
    let rejected_addr = rejected.local_addr().unwrap();
    expect(format!("rejected {rejected_addr}: the server is full"));

    served.shut_down();
    let cleared = next(&events);
    assert!(
        cleared.starts_with("below the connection limit again after "),
        "{cleared}"
    );
    assert!(cleared.ends_with(", rejected 1"), "{cleared}");
    expect("draining for at most 1.5s, open connections: 2".to_owned());
    for connection in &held {
        assert_eq!(read_to_end(connection), b"");
    }
    let mut last = [next(&events), next(&events)];
    last.sort();
    let mut closed = held_addrs
        .map(|addr| format!("Connection closed {addr}: completed, bytes in 0, bytes out 0"));
    closed.sort();
    assert_eq!(last, closed);

    let report = served.stop().unwrap();
    assert_eq!(
        report.to_string(),
        "accepted 3, completed 3, failed 0, panicked 0, timed out 0, rejected 1, aborted 0, \
         bytes in 5, bytes out 10, peak connections 2"
    );
    assert_eq!(events.try_iter().next(), None);
}

#[test]
fn an_event_names_its_connection_and_how_long_it_was_open() {
    let (sender, ids) = mpsc::channel();
    let (opened, durations) = mpsc::channel();
    let served = Served::start(
        move |server| {
            server.observe(move |event| match event {
                Event::Connected { id, .. } => sender.send(*id).unwrap(),
                Event::Closed {
                    id,
                    duration,
                    reason,
                    ..
                } => {
                    assert!(matches!(reason, CloseReason::Completed));
                    opened.send((*id, *duration)).unwrap();
                }
                _ => {}
            })
        },
        echo,
    );
    let (first, second) = (served.connect(), served.connect());
    let (first_id, second_id) = (next(&ids), next(&ids));
    assert_ne!(first_id, second_id);
    drop(second);
    assert_eq!(next(&durations).0, second_id);
    let open = Duration::from_millis(200);
    assert!(is_silent_for(&first, open));
    drop(first);
    let (id, duration) = next(&durations);
    assert_eq!(id, first_id);
    assert!(duration > open.mul_f32(0.9), "{duration:?}");
}

/// Does what the peer's first byte says.
async fn end_as_told(connection: Connection) -> io::Result<()> {
    let mut first = [0];
    let mut reader = &connection;
    futures_lite::AsyncReadExt::read_exact(&mut reader, &mut first).await?;
    match &first {
        b"c" => Ok(()),
        b"f" => Err(io::Error::other("told to")),
        b"p" => panic!("told to"),
        _ => echo(connection).await,
    }
}

#[test]
fn every_connection_is_counted_once() {
    let served = Served::start(
        |server| {
            server
                .idle_timeout(Duration::from_millis(300))
                .drain(Duration::from_millis(100))
                .socket_buffers(16 * 1024)
        },
        end_as_told,
    );
    let tell = |what: &str, times: usize| {
        for _ in 0..times {
            let mut connection = served.connect();
            connection.write_all(what.as_bytes()).unwrap();
            assert!(has_ended(&connection));
        }
    };
    tell("c", 1);
    tell("f", 2);
    tell("p", 3);
    tell("t", 4);
    let still_sending = (0..5).map(|_| {
        let connection = served.connect();
        connection.set_nonblocking(true).unwrap();
        while (&connection).write(&[b'x'; 64 * 1024]).is_ok() {}
        connection
    });
    let still_sending: Vec<_> = still_sending.collect();
    // The server has them all when it answers one that came after them.
    let last = served.connect();
    (&last).write_all(b"c").unwrap();
    assert!(has_ended(&last));
    let report = served.stop().unwrap();
    drop(still_sending);

    let ends = [
        report.completed,
        report.failed,
        report.panicked,
        report.timed_out,
        report.aborted,
    ];
    assert_eq!(ends, [2, 2, 3, 4, 5], "{report}");
    assert_eq!(report.accepted, ends.iter().sum::<u64>());
    assert_eq!(report.rejected, 0);
}
