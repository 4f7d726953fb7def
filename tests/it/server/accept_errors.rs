//! What the program does when `accept` fails.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use crate::server::is_silent_for;
use crate::support::{Program, TempDir, ask, the_machine, time};

const BINARY: &str = env!("CARGO_BIN_EXE_tinyloop");

const DESCRIPTORS: usize = 40;

const PAUSED: &str =
    "cannot accept for now: too many open files (see ulimit -n); waiting for a connection to end";

/// A program that has run out of descriptors.
struct Shortage {
    program: Program,
    held: VecDeque<TcpStream>,
    queued: VecDeque<TcpStream>,
}

impl Shortage {
    /// `runner` is a command that runs the one that follows.
    fn begin(runner: &[&str]) -> Shortage {
        let script =
            format!("ulimit -n {DESCRIPTORS}; exec {BINARY} -l 127.0.0.1:0 --max-connections 1000");
        let command = [runner, &["sh", "-c", &script]].concat();
        let program = Program::start_command(Command::new(command[0]).args(&command[1..]));
        let mut held = VecDeque::new();
        while descriptors(&program) < DESCRIPTORS {
            let connection = program.connect();
            assert_eq!(ask(&connection, "first"), "Got: first");
            held.push_back(connection);
        }
        let queued = (0..8).map(|_| program.connect()).collect();
        assert_eq!(program.stderr_line(), PAUSED);
        Shortage {
            program,
            held,
            queued,
        }
    }
}

/// How many of its descriptors the program has. It may inherit others, with higher numbers.
fn descriptors(program: &Program) -> usize {
    let path = format!("/proc/{}/fd", program.pid());
    let names = fs::read_dir(path).unwrap();
    let numbers = names.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    numbers
        .filter(|&number: &usize| number < DESCRIPTORS)
        .count()
}

/// The processor time that the program has used so far.
fn processor_time(program: &Program) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap();
    let nanoseconds = tasks.map(|task| {
        let statistics = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        let on_processor = statistics.split(' ').next().unwrap();
        on_processor.parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanoseconds.sum())
}

#[test]
fn without_descriptors_the_next_client_is_served_as_soon_as_a_connection_closes() {
    let _machine = the_machine();
    let mut shortage = Shortage::begin(&[]);
    let mut fastest = Duration::MAX;
    while let Some(mut next) = shortage.queued.pop_front() {
        for connection in &shortage.held {
            assert_eq!(ask(connection, "still here"), "Got: still here");
        }
        next.write_all(b"next").unwrap();
        let closing = shortage.held.pop_front();
        fastest = fastest.min(time(|| {
            drop(closing);
            next.read_exact(&mut [0; 9])
                .expect("the queued client is served");
        }));
        let resumed = shortage.program.stderr_line();
        assert!(resumed.starts_with("accepting again after "), "{resumed}");
        if !shortage.queued.is_empty() {
            assert_eq!(shortage.program.stderr_line(), PAUSED);
        }
        shortage.held.push_back(next);
    }
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
    shortage.program.stop();
}

#[test]
fn a_shortage_of_descriptors_costs_one_line_and_no_processor_time() {
    let _machine = the_machine();
    let shortage = Shortage::begin(&[]);
    let (start, used_before) = (Instant::now(), processor_time(&shortage.program));
    assert!(is_silent_for(&shortage.queued[0], Duration::from_secs(1)));
    let used = processor_time(&shortage.program) - used_before;
    let share = used.as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(share < 0.01, "{share}");
    let (_, stderr) = shortage.program.stop();
    assert!(!stderr.contains(&PAUSED.to_owned()), "{stderr:?}");
}

#[test]
#[ignore = "needs strace"]
fn a_shortage_of_descriptors_costs_at_most_ten_accepts_a_second() {
    let dir = TempDir::new("accepts");
    let log = dir.path("log");
    let traced = ["strace", "-D", "-f", "-qq", "-e", "trace=accept4", "-o"];
    let shortage = Shortage::begin(&[&traced[..], &[log.to_str().unwrap()]].concat());
    let start = Instant::now();
    assert!(is_silent_for(&shortage.queued[0], Duration::from_secs(2)));
    shortage.program.stop();
    let most = 1 + (start.elapsed().as_secs_f64() * 10.0) as usize;
    let accepts = fs::read_to_string(&log).unwrap();
    let failed = accepts.lines().filter(|line| line.contains("EMFILE"));
    let failed = failed.count();
    assert!((2..=most).contains(&failed), "{failed}, at most {most}");
}

#[test]
#[ignore = "needs strace"]
fn no_error_of_a_connection_or_of_the_system_stops_the_server() {
    let connection_errors =
        ["ECONNABORTED", "EPROTO", "EPERM", "EINTR", "ENETDOWN"].map(|e| (e, 20));
    let shortages = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"].map(|errno| (errno, 3));
    for (errno, times) in connection_errors.into_iter().chain(shortages) {
        let inject = format!("inject=accept4:error={errno}:when=1..{times}");
        let mut command = Command::new("strace");
        command.args(["-D", "-f", "-qq", "-e", "trace=accept4", "-e", &inject]);
        command.args(["-o", "/dev/null", BINARY, "-l", "127.0.0.1:0"]);
        let program = Program::start_command(&mut command);
        let connections = [(); 5].map(|()| program.connect());
        for connection in connections {
            assert_eq!(ask(&connection, errno), format!("Got: {errno}"));
        }
        program.stop();
    }
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
    let script = format!("ulimit -n {DESCRIPTORS}; exec {BINARY} -l 127.0.0.1:0");
    let program = Program::start_command(Command::new("sh").args(["-c", &script]));
    let _connections: Vec<TcpStream> = (0..DESCRIPTORS).map(|_| program.connect()).collect();
    let line = "connection limit reached (8): more wait for one to end";
    assert_eq!(program.stderr_line(), line);
    let (_, stderr) = program.stop();
    assert!(!stderr.contains(&PAUSED.to_owned()), "{stderr:?}");
}
