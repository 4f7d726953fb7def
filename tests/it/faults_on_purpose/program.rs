//! The program with `--fault` and `--seed`, as a peer on a real socket sees it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::Signal;

use super::plan;
use crate::support::{
    DEADLINE, Program, ask, connect, connect_to_reset, exchange, hang_up, read_to_end,
    read_to_reset,
};

/// Runs the program with these arguments. Returns what it says of its faults, too.
fn start(args: &[&str]) -> (Program, String) {
    let program = Program::start(&[&["--listen", "127.0.0.1:0"], args].concat());
    let line = program.stdout_line();
    let told = line.strip_prefix("misbehaving on purpose: ").expect(&line);
    let told = told.to_owned();
    (program, told)
}

/// Sends 8,000 bytes, for a reply of 8,005 at least.
fn send(program: &Program) -> TcpStream {
    let mut client = program.connect();
    // The program may have reset the connection by now.
    client.write_all(&[b'x'; 8000]).ok();
    client
}

/// Expects the lines of a connection. Returns the second.
fn lines_of(program: &Program, client: &TcpStream, fault: &str) -> String {
    let opened = format!("Connection from {}, {fault}", client.local_addr().unwrap());
    assert_eq!(program.stdout_line(), opened);
    let closed = program.stdout_line();
    assert!(closed.starts_with("Connection closed "), "{closed}");
    assert!(closed.ends_with(&format!(" s, {fault}")), "{closed}");
    closed
}

#[test]
fn a_peer_sees_a_reset_after_its_bytes() {
    let (program, _) = start(&["--fault", "reset-after=5000"]);
    let client = send(&program);
    assert_eq!(read_to_reset(&client).len(), 5000);
    let closed = lines_of(&program, &client, "#1 fault reset-after=5000");
    assert!(closed.contains("failed: reset on purpose, "), "{closed}");
    let (_, stderr) = program.stop();
    assert!(stderr[0].ends_with(", faulty 1"), "{stderr:?}");
}

#[test]
fn what_a_slow_reader_has_not_read_is_delivered_before_the_reset() {
    let (program, _) = start(&["--fault", "reset-after=500kB"]);
    let mut client = program.connect();
    // Most of what the program writes stays in its own buffer for a while.
    set_socket_recv_buffer_size(&client, 4096).unwrap();
    let mut writer = client.try_clone().unwrap();
    let writing = thread::spawn(move || {
        loop {
            if let Err(error) = writer.write_all(&[b'x'; 10_000]) {
                return error.kind();
            }
        }
    });
    let mut received = 0;
    let mut buffer = vec![0; 10_000];
    let mut told = None;
    loop {
        thread::sleep(Duration::from_millis(1));
        match client.read(&mut buffer) {
            // The kernel tells of a reset once: it may have been the write that was told.
            Ok(0) => break,
            Ok(length) => received += length,
            Err(error) => {
                told = Some(error.kind());
                break;
            }
        }
    }
    assert_eq!(received, 500_000);
    let told = [told, Some(writing.join().unwrap())];
    assert!(told.contains(&Some(ErrorKind::ConnectionReset)), "{told:?}");
}

#[test]
fn a_peer_sees_an_orderly_close_after_its_bytes() {
    let (program, _) = start(&["--fault", "close-after=5000"]);
    let client = send(&program);
    assert_eq!(read_to_end(&client).len(), 5000);
    let addr = client.local_addr().unwrap();
    drop(client);
    assert!(
        program
            .stdout_line()
            .starts_with(&format!("Connection from {addr}, #1 "))
    );
    assert!(program.stdout_line().contains(": completed, "));
}

#[test]
fn a_peer_sees_a_reset_at_once_when_it_is_refused() {
    let (program, _) = start(&["--fault", "refuse"]);
    connect_to_reset(program.addr());
    assert!(program.stdout_line().ends_with(", #1 fault refuse"));
    let closed = program.stdout_line();
    assert!(closed.contains("bytes in 0, bytes out 0, "), "{closed}");
}

#[test]
fn a_stalled_connection_stops_reading_and_ends_at_the_deadline_of_the_drain() {
    let (program, _) = start(&["--fault", "stall-after=3", "--drain", "0.5"]);
    let mut client = program.connect();
    exchange(&client, b"hello", b"Got");
    client
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let error = loop {
        if let Err(error) = client.write(&[b'x'; 100_000]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "its buffers are full");
    let start = Instant::now();
    program.signal(Signal::INT);
    assert_eq!(read_to_reset(&client), b"");
    assert!(start.elapsed() >= Duration::from_millis(500));
    let (status, stdout, stderr) = program.wait();
    assert!(status.success());
    assert!(stdout[1].contains(": aborted, "), "{stdout:?}");
    assert!(
        stdout[1].ends_with(", #1 fault stall-after=3"),
        "{stdout:?}"
    );
    assert!(stderr.concat().contains("aborted 1, "), "{stderr:?}");
}

#[test]
fn a_delayed_connection_and_one_that_closes_late_end_at_the_deadline_of_the_drain() {
    for fault in ["delay=1min", "close-delay=1min", "rate=1"] {
        let (program, _) = start(&["--fault", fault, "--drain", "0.2"]);
        let mut client = program.connect();
        client.write_all(b"hello").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        while !program.stdout_line().starts_with("Connection from ") {}
        let (stdout, _) = program.stop();
        assert!(stdout[0].contains(": aborted, "), "{stdout:?}");
    }
}

#[test]
fn a_peer_that_stays_does_not_hold_up_the_drain_of_a_server_with_faults() {
    let (program, _) = start(&["--fault", "delay=1ms", "--drain", "600"]);
    let client = program.connect();
    ask(&client, "hello");
    program.signal(Signal::TERM);
    let (status, _, _) = program.wait();
    assert!(status.success());
    assert_eq!(read_to_end(&client), b"");
}

#[test]
fn a_silent_connection_ends_in_the_drain_and_by_the_idle_timeout() {
    let (program, _) = start(&["--fault", "silent-after=0"]);
    let mut client = program.connect();
    client.write_all(b"hello").unwrap();
    while !program.stdout_line().starts_with("Connection from ") {}
    program.signal(Signal::INT);
    assert_eq!(read_to_end(&client), b"");
    assert!(program.wait().0.success());

    for fault in ["silent-after=0", "stall-after=0"] {
        let (program, _) = start(&["--fault", fault, "--idle-timeout", "0.2"]);
        let mut client = program.connect();
        client.write_all(b"hello").ok();
        // A reset, which may have come before.
        client.read(&mut [0]).unwrap_err();
        assert!(program.stdout_line().starts_with("Connection from "));
        assert!(program.stdout_line().contains(": timed out, "));
    }
}

/// What befalls the first hundred connections of the program, by its own lines, and as one says what it was told.
fn befallen(args: &[&str]) -> (Vec<String>, String) {
    let (program, told) = start(args);
    let mut lines = Vec::new();
    for _ in 0..100 {
        let mut client = program.connect();
        client.write_all(b"hello").unwrap();
        client.read_to_end(&mut Vec::new()).ok();
        let line = program.stdout_line();
        lines.push(line.split_once(", ").unwrap().1.to_owned());
        drop(client);
        assert!(program.stdout_line().starts_with("Connection closed "));
    }
    (lines, told)
}

#[test]
fn the_same_seed_brings_the_same_faults_to_the_same_connections() {
    let faults = [
        "--fault",
        "reset-after=3@30%",
        "--fault",
        "close-after=3@100%",
    ];
    let seed = |seed: &'static str| befallen(&[&faults[..], &["--seed", seed]].concat());
    let (first, told) = seed("7");
    assert_eq!(
        told,
        "--fault reset-after=3@30% --fault close-after=3 --seed 7"
    );
    assert_eq!(first, seed("7").0);
    assert_ne!(first, seed("8").0);
    let own = plan(7, &["reset-after=3@30%", "close-after=3"]);
    let expected: Vec<String> = (1..=100).map(|n| own.draw(n).to_string()).collect();
    assert_eq!(first, expected, "the library draws the same");

    let (drawn, told) = befallen(&faults);
    let again: Vec<&str> = told.split(' ').collect();
    assert_eq!(
        befallen(&again),
        (drawn, told.clone()),
        "what was told repeats it"
    );
}

#[test]
fn the_monitor_counts_whom_something_befell() {
    let (program, _) = start(&["--fault", "delay=1ms@50%", "--seed", "7", "--monitor", "0"]);
    let line = program.stdout_line();
    let monitor = line.strip_prefix("monitor on ").unwrap().parse().unwrap();
    for _ in 0..20 {
        let client = program.connect();
        assert_eq!(ask(&client, "hello"), "Got: hello");
        hang_up(client);
    }
    let plan = plan(7, &["delay=1ms@50%"]);
    let befallen = (1..=20).filter(|&n| !plan.draw(n).is_empty()).count();
    assert!((1..20).contains(&befallen));
    let start = Instant::now();
    loop {
        let mut stream = connect(monitor);
        stream.write_all(b"stats\nquit\n").unwrap();
        let stats = String::from_utf8(read_to_end(&stream)).unwrap();
        if stats.contains("completed         20\n") {
            let count = format!("faulty            {befallen}\n");
            assert!(stats.contains(&count), "{stats}");
            break;
        }
        assert!(start.elapsed() < DEADLINE, "{stats}");
    }
}

#[test]
fn framing_and_prefix_hold_for_a_server_that_misbehaves() {
    let (program, _) = start(&["--fault", "slice=1..7", "--framing=line", "-p", "> "]);
    exchange(&program.connect(), b"one\ntwo\n", b"> one\n> two\n");
}

#[test]
fn a_wrong_fault_or_seed_is_told_in_one_line() {
    for (args, expected) in [
        (&["--fault", "help"][..], "reset-after=5000"),
        (&["--fault", "delay=100"], "a time with its unit"),
        (&["--fault=refuse@5"], "such as @5%"),
        (&["--fault"], "--fault"),
        (
            &["--fault", "refuse", "--seed", "-1"],
            "a whole number from 0",
        ),
        (&["--seed", "1"], "--seed works only with --fault"),
        (
            &["--fault", "refuse", "-m", "threaded"],
            "--fault works only with --model async",
        ),
        (
            &["--fault", "refuse", "-m", "sequential"],
            "--fault works only with --model async",
        ),
    ] {
        let mut command = Program::command();
        command.args(args).stdout(Stdio::piped());
        let (status, stdout, stderr) = Program::spawn(&mut command).wait();
        assert_eq!(status.code(), Some(2), "{args:?}");
        assert!(stdout.is_empty(), "{stdout:?}");
        assert!(
            stderr.len() == 1 && stderr[0].contains(expected),
            "{stderr:?}"
        );
    }
}
