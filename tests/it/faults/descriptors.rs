//! A server with more clients than descriptors.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::faults::{assert_time, form};
use crate::process::{descriptors, processor_time};
use crate::server::is_silent_for;
use crate::support::{DEADLINE, Program, TempDir, ask, the_machine, time};

const ROW: &str = "descriptors";

const DESCRIPTORS: usize = 64;
const CLIENTS: usize = 200;

/// How long the shortage lasts. In the long form as in the promise.
fn duration() -> Duration {
    Duration::from_secs(form(2, 10))
}

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
        let script = format!("ulimit -n {DESCRIPTORS}; exec \"$@\"");
        let program = [env!("CARGO_BIN_EXE_tinyloop"), "-l", "127.0.0.1:0"];
        // Else it would not accept more than it has descriptors for.
        let limit = ["--max-connections", "1000"];
        let command = [runner, &["sh", "-c", &script, "sh"], &program, &limit].concat();
        let program = Program::start_command(Command::new(command[0]).args(&command[1..]));
        let mut held = VecDeque::new();
        while own_descriptors(&program) < DESCRIPTORS {
            let connection = program.connect();
            assert_eq!(ask(&connection, "first"), "Got: first");
            held.push_back(connection);
        }
        let queued = (held.len()..CLIENTS).map(|_| program.connect());
        let queued = queued.collect();
        assert_eq!(program.stderr_line(), PAUSED);
        Shortage {
            program,
            held,
            queued,
        }
    }

    fn assert_held_connections_are_well(&self) {
        for connection in &self.held {
            assert_eq!(ask(connection, "still here"), "Got: still here");
        }
    }

    /// Waits for [`duration`], in which no queued client is served. Returns how long that was.
    fn last(&self) -> Duration {
        time(|| assert!(is_silent_for(&self.queued[0], duration())))
    }
}

/// How many of its descriptors the program has. It may inherit others, with higher numbers.
fn own_descriptors(program: &Program) -> usize {
    let numbers = descriptors(program.pid()).into_iter();
    numbers.filter(|&number| number < DESCRIPTORS).count()
}

#[test]
fn a_shortage_of_descriptors_costs_one_line_and_no_processor_time_and_harms_nobody() {
    let _machine = the_machine();
    let shortage = Shortage::begin(&[]);
    let used_before = processor_time(shortage.program.pid());
    let elapsed = shortage.last();
    let used = processor_time(shortage.program.pid()) - used_before;
    assert_time("descriptors: processor time", used, elapsed / 100);
    let mut lines = shortage.program.printed();
    lines.retain(|line| !line.starts_with("Connection from "));
    println!(
        "{ROW}: log lines: {} in {elapsed:.1?} (at most 10)",
        1 + lines.len()
    );
    assert_eq!(lines, [""; 0], "no more than the first line");
    shortage.assert_held_connections_are_well();
    shortage.program.stop();
}

#[test]
fn without_descriptors_the_next_client_is_served_as_soon_as_a_connection_closes() {
    let _machine = the_machine();
    let mut shortage = Shortage::begin(&[]);
    let mut times = Vec::new();
    while let Some(mut next) = shortage.queued.pop_front() {
        shortage.assert_held_connections_are_well();
        next.write_all(b"next").unwrap();
        let closing = shortage.held.pop_front();
        times.push(time(|| {
            drop(closing);
            next.read_exact(&mut [0; 9])
                .expect("the queued client is served");
        }));
        shortage.held.push_back(next);
    }
    times.sort();
    // Without being woken, the server would look again after 50 ms on average: no machine is as busy as that for long.
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    assert!(median < Duration::from_millis(10), "{median:?}");
    let row = format!("{ROW}: {} queued clients, the slowest", times.len());
    assert_time(&row, most, Duration::from_millis(10));
    shortage.program.stop();
}

#[test]
#[ignore = "needs strace"]
fn a_shortage_of_descriptors_costs_at_most_ten_accepts_a_second() {
    let dir = TempDir::new("accepts");
    let log = dir.path("log");
    let traced = ["strace", "-D", "-f", "-qq", "-e", "trace=accept4", "-o"];
    let shortage = Shortage::begin(&[&traced[..], &[log.to_str().unwrap()]].concat());
    let failed_accepts = || {
        let accepts = fs::read_to_string(&log).unwrap();
        accepts
            .lines()
            .filter(|line| line.contains("EMFILE"))
            .count()
    };
    // From one failure on, so that there is no more than one in each tenth of a second after it.
    let earlier = failed_accepts();
    let begin = Instant::now();
    let (start, before) = loop {
        assert!(begin.elapsed() < DEADLINE, "tries again");
        let (look, failed) = (Instant::now(), failed_accepts());
        if failed > earlier {
            break (look, failed);
        }
        thread::sleep(Duration::from_millis(1));
    };
    shortage.last();
    let accepts = failed_accepts() - before;
    let most = (start.elapsed().as_secs_f64() * 10.0) as usize;
    println!("{ROW}: accept calls: {accepts} (at most {most})");
    assert!((1..=most).contains(&accepts), "{accepts}, at most {most}");
    shortage.program.stop();
}
