//! What the program does when `accept` fails.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use rustix::net::sockopt::set_socket_linger;
use tinyloop::testing::{Faults, server};
use tinyloop::{now, sleep, spawn};

use crate::process::processor_time;
use crate::server::is_silent_for;
use crate::support::{Program, TempDir, ask, echo, run_on_test_clock};

const BINARY: &str = env!("CARGO_BIN_EXE_tinyloop");

/// How a line about a pause begins.
const PAUSED: &str = "cannot accept for now: ";

/// How often in a row each error is met.
const TIMES: u32 = 20;

/// How long a pause without descriptors or memory is.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the program under strace, which lets its first accepts fail, each with `errno`. Five clients come and are served
/// in the end. Returns whether the program said that it paused, and how long the failures took from first to last.
fn accept_with_failures(errno: &str) -> (bool, Duration) {
    let dir = TempDir::new("failing-accepts");
    let log = dir.path("log");
    let inject = format!("inject=accept4:error={errno}:when=1..{TIMES}");
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-ttt", "-e", "trace=accept4", "-e"]);
    command.arg(&inject).arg("-o").arg(&log);
    command.args([BINARY, "-l", "127.0.0.1:0"]);
    let program = Program::start_command(&mut command);
    let connections = [(); 5].map(|()| program.connect());
    for connection in connections {
        assert_eq!(ask(&connection, errno), format!("Got: {errno}"));
    }
    let (_, stderr) = program.stop();
    let has_paused = stderr.iter().any(|line| line.starts_with(PAUSED));

    let log = fs::read_to_string(log).unwrap();
    let failures = log.lines().filter(|line| line.ends_with("(INJECTED)"));
    // Behind the thread's number: seconds, with their fraction.
    let seconds = |line: &str| -> f64 { line.split_whitespace().nth(1).unwrap().parse().unwrap() };
    let times: Vec<f64> = failures.map(seconds).collect();
    assert_eq!(times.len(), TIMES as usize, "{log}");
    let took = Duration::from_secs_f64(times[times.len() - 1] - times[0]);
    (has_paused, took)
}

#[test]
#[ignore = "needs strace"]
fn no_error_of_a_connection_or_of_the_system_stops_the_server() {
    for errno in ["ECONNABORTED", "EPROTO", "EPERM", "EINTR", "ENETDOWN"] {
        let (has_paused, took) = accept_with_failures(errno);
        assert!(!has_paused, "{errno}");
        // Far less than a pause for each; a traced call takes long, though.
        assert!(took < 5 * PAUSE, "{errno}: {took:?}");
    }
    // These are shortages, in which it looks again after a pause.
    for errno in ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"] {
        let (has_paused, took) = accept_with_failures(errno);
        assert!(has_paused, "{errno}");
        assert!(took >= (TIMES - 1) * PAUSE, "{errno}: {took:?}");
    }
}

#[test]
#[ignore = "needs strace"]
fn an_error_of_connections_that_never_ends_costs_next_to_no_processor_time() {
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qq", "-e", "trace=accept4", "-o", "/dev/null"]);
    command.args(["-e", "inject=accept4:error=EPERM"]);
    let program = Program::start_command(command.args([BINARY, "-l", "127.0.0.1:0"]));
    let waits = program.connect();
    let line = program.stderr_line();
    assert!(line.starts_with(PAUSED), "{line}");
    let (start, before) = (Instant::now(), processor_time(program.pid()));
    assert!(is_silent_for(&waits, 5 * PAUSE));
    let used = processor_time(program.pid()) - before;
    assert!(used < start.elapsed() / 10, "{used:?}");
}

#[test]
fn a_reset_connection_does_not_stop_the_server() {
    let program = Program::start(&["-l", "127.0.0.1:0"]);
    for _ in 0..100 {
        let connection = program.connect();
        // Closing now resets.
        set_socket_linger(&connection, Some(Duration::ZERO)).unwrap();
    }
    assert_eq!(ask(&program.connect(), "next"), "Got: next");
    program.stop();
}

#[test]
fn by_default_the_limit_of_connections_comes_before_that_of_descriptors() {
    let script = format!("ulimit -n 40; exec {BINARY} -l 127.0.0.1:0");
    let program = Program::start_command(Command::new("sh").args(["-c", &script]));
    let _connections: Vec<TcpStream> = (0..40).map(|_| program.connect()).collect();
    let line = "connection limit reached (8): new connections wait";
    assert_eq!(program.stderr_line(), line);
    let (_, stderr) = program.stop();
    assert!(!stderr.concat().contains(PAUSED), "{stderr:?}");
}

#[test]
fn a_hundred_errors_of_connections_in_a_row_cost_no_pause_and_one_more_does() {
    const ECONNABORTED: i32 = 103;
    run_on_test_clock(async || {
        let (server, connector) = server();
        let shutdown = sleep(Duration::from_secs(3600));
        let _serving = spawn(server.shutdown_on(shutdown).serve(echo));
        for (errors, pause) in [(100, Duration::ZERO), (101, PAUSE)] {
            connector.fail_accepts(ECONNABORTED, errors);
            let start = now();
            let mut client = connector.connect(Faults::none()).unwrap();
            client.write_all(b"?").await.unwrap();
            client.read_exact(&mut [0; 6]).await.unwrap();
            assert_eq!(now() - start, pause, "{errors} errors");
        }
    });
}
