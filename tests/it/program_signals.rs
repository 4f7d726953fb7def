//! What signals do to the program and to the examples.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::process::Signal;

use crate::process::ignores;
use crate::support::{Program, ask, connect, hang_up, wait_for};

const BINARY: &str = env!("CARGO_BIN_EXE_tinyloop");

#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    for model in ["async", "threaded"] {
        let script = "trap '' INT HUP; exec \"$0\" \"$@\"";
        let mut shell = Command::new("sh");
        let program = Program::start_command(shell.args([
            "-c",
            script,
            BINARY,
            "-q",
            "-m",
            model,
            "-l",
            "127.0.0.1:0",
        ]));
        for signal in [Signal::INT, Signal::HUP] {
            assert!(ignores(program.pid(), signal), "{model}: {signal:?}");
            program.signal(signal);
        }
        assert_eq!(ask(&program.connect(), "x"), "Got: x", "{model}");
        program.stop();
    }
}

#[test]
fn signals_that_are_none_of_its_business_end_the_program_as_they_end_any() {
    let others = [
        Signal::HUP,
        Signal::QUIT,
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::VTALARM,
        Signal::PROF,
        Signal::IO,
        Signal::XCPU,
    ];
    for signal in others {
        let program = Program::start(&["-l", "127.0.0.1:0"]);
        program.signal(signal);
        let (status, ..) = program.wait();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{signal:?}");
    }
}

#[test]
fn a_second_signal_ends_an_example_that_a_task_blocks() {
    let mut command = Program::example("blocked");
    let program = Program::start_command(command.args(["127.0.0.1:0", "127.0.0.1:0"]));
    let monitor = program.stdout_line();
    let monitor = monitor
        .strip_prefix("monitor on ")
        .unwrap()
        .parse()
        .unwrap();
    let client = program.connect();
    // That takes it years.
    (&client).write_all(b"90\n").unwrap();
    let peer = client.local_addr().unwrap().to_string();
    let is_blocked = || {
        let monitor = connect(monitor);
        (&monitor).write_all(b"ps\n").unwrap();
        let tasks = String::from_utf8(hang_up(monitor)).unwrap();
        let mut tasks = tasks.lines();
        tasks.any(|task| task.contains("running") && task.contains(&peer))
    };
    wait_for("the blocked task", || is_blocked().then_some(()));
    let status = program.signal_until_end(Signal::INT);
    assert_eq!(status.code(), Some(128 + Signal::INT.as_raw()), "{status}");
}
