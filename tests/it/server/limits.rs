//! How many connections may be open, and what happens to more.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tinyloop::WhenFull;

use crate::server::{has_ended, is_silent_for, observed};
use crate::support::{Program, Served, ask, echo, next, the_machine, time};

#[test]
fn a_full_server_lets_the_next_wait_and_serves_it_as_soon_as_there_is_room() {
    let _machine = the_machine();
    let served = Served::start(|server| server.max_connections(1), echo);
    let mut held = served.connect();
    assert_eq!(ask(&held, "first"), "Got: first");
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let mut waiting = served.connect();
        waiting.write_all(b"next").unwrap();
        assert!(is_silent_for(&waiting, Duration::from_millis(50)));
        assert_eq!(ask(&held, "still here"), "Got: still here");
        fastest = fastest.min(time(|| {
            drop(held);
            waiting.read_exact(&mut [0; 9]).expect("is served");
        }));
        held = waiting;
    }
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
    drop(held);
    let report = served.stop().unwrap();
    assert_eq!((report.accepted, report.rejected), (6, 0));
    assert_eq!(report.peak_connections, 1);
}

#[test]
fn a_full_server_can_reject_the_next() {
    let (served, events) = observed(
        |server| server.max_connections(2).when_full(WhenFull::Reject),
        echo,
    );
    let held = [served.connect(), served.connect()];
    for connection in &held {
        assert_eq!(ask(connection, "held"), "Got: held");
    }
    for _ in 0..10 {
        assert!(has_ended(&served.connect()));
    }
    for connection in &held {
        assert_eq!(ask(connection, "still here"), "Got: still here");
    }
    let report = served.stop().unwrap();
    assert_eq!((report.accepted, report.rejected), (2, 10));
    let told = |what: &str| events.try_iter().filter(|line| line.contains(what)).count();
    assert_eq!(told("the server is full"), 10);
}

#[test]
fn a_server_that_rejects_has_room_again_as_soon_as_a_connection_ends() {
    let _machine = the_machine();
    let served = Served::start(
        |server| server.max_connections(1).when_full(WhenFull::Reject),
        echo,
    );
    let mut held = served.connect();
    assert_eq!(ask(&held, "first"), "Got: first");
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let mut admitted = None;
        fastest = fastest.min(time(|| {
            drop(held);
            while admitted.is_none() {
                admitted = try_ask(served.connect());
            }
        }));
        held = admitted.unwrap();
    }
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
}

/// The connection if it is served, none if it is rejected.
fn try_ask(mut stream: TcpStream) -> Option<TcpStream> {
    stream.write_all(b"?").ok()?;
    stream.read_exact(&mut [0; 6]).ok()?;
    Some(stream)
}

#[test]
fn a_limit_that_comes_and_goes_is_told_once_and_its_end_once() {
    let (served, events) = observed(
        |server| server.max_connections(2).when_full(WhenFull::Reject),
        echo,
    );
    let limit = "connection limit reached (2): new connections are rejected";
    let expect = |starts: &[&str]| {
        for start in starts {
            let event = next(&events);
            assert!(event.starts_with(start), "{event}, not {start}");
        }
    };
    let (first, _second) = (served.connect(), served.connect());
    expect(&["listening", "Connection from", "Connection from", limit]);
    assert!(has_ended(&served.connect()));
    assert!(has_ended(&served.connect()));
    expect(&["rejected", "rejected"]);
    drop(first);
    expect(&["Connection closed"]);
    for _ in 0..10 {
        let third = served.connect();
        expect(&["Connection from"]);
        assert!(has_ended(&served.connect()));
        expect(&["rejected"]);
        drop(third);
        expect(&["Connection closed"]);
    }
    let cleared = next(&events);
    assert!(
        cleared.starts_with("below the connection limit again after "),
        "{cleared}"
    );
    assert!(cleared.ends_with(", rejected 12"), "{cleared}");
    let _third = served.connect();
    expect(&["Connection from", limit]);
}

#[test]
fn the_program_has_both_ways_to_be_full() {
    for (when_full, told) in [("wait", "wait"), ("reject", "are rejected")] {
        let options = ["--max-connections", "1", "--when-full", when_full];
        let program = Program::start(&[&["-l", "127.0.0.1:0"], &options[..]].concat());
        let held = program.connect();
        let limit = format!("connection limit reached (1): new connections {told}");
        assert_eq!(program.stderr_line(), limit);
        let more = program.connect();
        match when_full {
            "wait" => {
                drop(held);
                assert_eq!(ask(&more, "served"), "Got: served");
            }
            _ => {
                assert!(has_ended(&more));
                assert_eq!(ask(&held, "served"), "Got: served");
            }
        }
        program.stop();
    }
}
