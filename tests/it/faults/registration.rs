//! The kernel refuses to watch a new connection.

use std::fs;
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use rustix::process::Signal;

use crate::server::has_ended;
use crate::support::{DEADLINE, Program, TempDir, ask};

/// How many clients wait when the server begins to accept: no more than it accepts in a row.
const CLIENTS: usize = 12;

/// Which calls of epoll_ctl fail, counted from one. Some six come before those for the connections.
const REFUSED: RangeInclusive<usize> = 10..=12;

/// The program, stopped after it has said where it listens and before it accepts. When it goes on, some connections
/// cannot be watched.
///
/// So the clients that come now are accepted and registered in a row, and no other calls are between theirs. On a
/// running server, it depends on when it sleeps which of its calls is the one for a new connection.
fn start_stopped(errno: &str, log: &Path) -> Program {
    let (from, to) = REFUSED.into_inner();
    let refuse = format!("inject=epoll_ctl:error={errno}:when={from}..{to}");
    let mut command = Command::new("strace");
    // Without `-f`, so that the loop's thread alone is traced: smol's helper thread changes what is watched already, which
    // takes no memory.
    command.args(["-D", "-qq", "-e", "trace=epoll_ctl,setsockopt"]);
    // Three are the bind's. The fourth is the first call of the server.
    command.args(["-e", "inject=setsockopt:signal=STOP:when=4"]);
    command.args(["-e", &refuse, "-o"]).arg(log);
    command.args([env!("CARGO_BIN_EXE_tinyloop"), "-l", "127.0.0.1:0"]);
    let program = Program::start_command(&mut command);
    let start = Instant::now();
    while !fs::read_to_string(log)
        .unwrap()
        .contains("stopped by SIGSTOP")
    {
        assert!(start.elapsed() < DEADLINE, "does not stop");
        thread::yield_now();
    }
    program
}

#[test]
#[ignore = "needs strace"]
fn a_connection_that_the_kernel_does_not_watch_is_closed_and_the_others_are_served() {
    let dir = TempDir::new("registration");
    let log = dir.path("log");
    let errors = [
        ("ENOSPC", "no space left on device"),
        ("ENOMEM", "cannot allocate memory"),
    ];
    for (errno, message) in errors {
        let program = start_stopped(errno, &log);
        // The first call that comes now is for the listener.
        let calls = fs::read_to_string(&log).unwrap();
        let before = 1 + calls.matches("epoll_ctl(").count();
        let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| program.connect()).collect();
        program.signal(Signal::CONT);
        for (client, call) in clients.iter().zip(before + 1..) {
            if REFUSED.contains(&call) {
                assert!(has_ended(client), "{errno}: is closed");
                let addr = client.local_addr().unwrap();
                assert_eq!(program.stderr_line(), format!("rejected {addr}: {message}"));
            } else {
                assert_eq!(ask(client, errno), format!("Got: {errno}"));
            }
        }
        assert_eq!(ask(&program.connect(), "later"), "Got: later");
        let calls = fs::read_to_string(&log).unwrap();
        let refused = calls.matches("(INJECTED)").count();
        println!("registration: {errno} for {refused} of {CLIENTS} clients, who are closed");
        assert_eq!(refused, REFUSED.count(), "{calls}");
        let registrations = calls.lines().filter(|line| line.starts_with("epoll_ctl("));
        let mut registrations = registrations.skip(before).take(CLIENTS);
        assert!(
            registrations.all(|call| call.contains("EPOLL_CTL_ADD")),
            "{calls}"
        );
        program.stop();
    }
}
