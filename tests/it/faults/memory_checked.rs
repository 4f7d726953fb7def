//! The program's memory, each byte of it watched by valgrind while connections of all kinds come and go.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;

use crate::faults::form;
use crate::monitor::ask_monitor;
use crate::support::{Program, ask, hang_up, time};

const ROW: &str = "memory checked by valgrind";

#[test]
#[ignore = "needs valgrind"]
fn no_byte_is_used_that_should_not_be_and_none_is_lost() {
    let rounds = form(10, 1000);
    for framing in ["chunk", "line"] {
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--fair-sched=yes", "--error-exitcode=99"]);
        command.args(["--leak-check=full", "--show-leak-kinds=definite"]);
        command.args(["--errors-for-leak-kinds=definite"]);
        command.arg(env!("CARGO_BIN_EXE_tinyloop"));
        command.args(["-q", "-l", "127.0.0.1:0", "--monitor", "0"]);
        let program = Program::start_command(command.args(["--framing", framing]));
        let line = program.stdout_line();
        let monitor = line.strip_prefix("monitor on ").unwrap().parse().unwrap();

        let took = time(|| {
            for _ in 0..rounds {
                connections_of_all_kinds(&program);
                assert!(ask_monitor(monitor, "ps").contains("ID"));
            }
        });
        println!("{ROW}: {} connections, {framing}s: {took:.1?}", 30 * rounds);

        // Some are there until the drain ends them.
        let open = [(); 20].map(|()| program.connect());
        for connection in &open {
            ask(connection, "hello");
        }
        // The good end that this asks for is valgrind's, too, which has complained of nothing.
        let (_, stderr) = program.stop();
        assert!(
            !stderr.iter().any(|line| line.starts_with("==")),
            "{stderr:#?}"
        );
    }
}

/// Thirty connections: a third end well, a third are reset, and a third send more than they read.
fn connections_of_all_kinds(program: &Program) {
    let connections = [(); 30].map(|()| program.connect());
    for (n, mut connection) in connections.into_iter().enumerate() {
        assert_eq!(ask(&connection, "hello"), "Got: hello");
        match n % 3 {
            0 => assert_eq!(hang_up(connection), b""),
            1 => set_socket_linger(&connection, Some(Duration::ZERO)).unwrap(),
            _ => connection.write_all(&[b'\n'; 50_000]).unwrap(),
        }
    }
}
