//! The three models, as the tutorial shows them: what they have in common, and whom they let wait.

use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::process::resident_bytes;
use crate::support::{Program, ask, exchange, hang_up, within_deadline};

const MODELS: [&str; 3] = ["async", "threaded", "sequential"];

fn start(model: &str, args: &[&str]) -> Program {
    Program::start(&[&["-l", "127.0.0.1:0", "--model", model], args].concat())
}

#[test]
fn async_and_threaded_answer_two_clients_at_once() {
    for model in ["async", "threaded"] {
        let program = start(model, &[]);
        let (first, second) = (program.connect(), program.connect());
        for round in ["one", "two"] {
            assert_eq!(ask(&second, round), format!("Got: {round}"), "{model}");
            assert_eq!(ask(&first, round), format!("Got: {round}"), "{model}");
        }
        program.stop();
    }
}

#[test]
fn sequential_answers_the_second_client_when_the_first_has_ended() {
    let program = start("sequential", &[]);
    let first = program.connect();
    assert_eq!(ask(&first, "one"), "Got: one");
    let second = program.connect();
    (&second).write_all(b"two").unwrap();
    assert_eq!(ask(&first, "three"), "Got: three");
    let addrs = [&first, &second].map(|client| client.local_addr().unwrap());
    drop(first);
    exchange(&second, b"", b"Got: two");
    drop(second);
    for addr in addrs {
        assert_eq!(program.stdout_line(), format!("Connection from {addr}"));
        let closed = program.stdout_line();
        assert!(
            closed.starts_with(&format!("Connection closed {addr}")),
            "{closed}"
        );
    }
    program.stop();
}

#[test]
fn sequential_serves_one_client_at_a_time_even_on_two_addresses() {
    let program = start("sequential", &["-l", "127.0.0.1:0"]);
    let other_addr = program.stdout_line();
    let other_addr = other_addr.strip_prefix("listening on ").unwrap();
    let first = program.connect();
    assert_eq!(ask(&first, "one"), "Got: one");
    let second = crate::support::connect(other_addr.parse().unwrap());
    (&second).write_all(b"two").unwrap();
    assert_eq!(ask(&first, "three"), "Got: three");
    drop(first);
    exchange(&second, b"", b"Got: two");
    program.stdout_line();
    assert!(program.stdout_line().starts_with("Connection closed "));
    program.stop();
}

#[test]
fn the_models_answer_alike() {
    let long = vec![b'x'; 30_000];
    let cases: [(&[&str], &[u8], &[u8]); 6] = [
        (&[], b"hello\n", b"Got: hello\n"),
        (&["-p", "> "], b"\0\xff", b"> \0\xff"),
        (&["-p", ""], &long, &long),
        (
            &["--framing", "line"],
            b"one\n\ntwo",
            b"Got: one\nGot: \nGot: two",
        ),
        (&["--framing=line"], &long, &[b"Got: ", &long[..]].concat()),
        (&[], b"", b""),
    ];
    for model in MODELS {
        for (args, message, reply) in cases {
            let program = start(model, args);
            let client = program.connect();
            exchange(&client, message, reply);
            assert_eq!(hang_up(client), b"", "{model} {args:?}");
            program.stop();
        }
    }
}

#[test]
fn the_models_read_chunks_of_the_same_size() {
    for model in MODELS {
        let program = start(model, &["-p", ">"]);
        let client = program.connect();
        (&client).write_all(&[b'x'; 30_000]).unwrap();
        let reply = String::from_utf8(hang_up(client)).unwrap();
        let chunks: Vec<usize> = reply.split('>').map(str::len).collect();
        assert_eq!(chunks[0], 0, "{model}");
        assert!(
            chunks.iter().all(|&chunk| chunk <= 10_000),
            "{model}: {chunks:?}"
        );
        assert_eq!(chunks.iter().sum::<usize>(), 30_000, "{model}: {chunks:?}");
        program.stop();
    }
}

#[test]
fn a_client_that_sends_line_ends_alone_costs_no_model_much_memory_however_long_the_prefix() {
    const CLIENTS: usize = 20;
    // The threads' stacks, and the replies of 64 KiB that their peers do not take.
    const MOST: usize = 300_000;
    let prefix = "p".repeat(1024);
    for model in ["async", "threaded"] {
        let program = start(model, &["-q", "--framing", "line", "-p", &prefix]);
        let clients: Vec<_> = (0..CLIENTS).map(|_| program.connect()).collect();
        for client in &clients {
            exchange(client, b"\n", format!("{prefix}\n").as_bytes());
        }
        let before = resident_bytes(program.pid());
        for mut client in &clients {
            client
                .set_write_timeout(Some(Duration::from_millis(50)))
                .unwrap();
            while client.write(&[b'\n'; 10_000]).is_ok() {}
        }
        let after = resident_bytes(program.pid());
        let each = after.saturating_sub(before) / CLIENTS;
        assert!(each < MOST, "{model}: {each} bytes for each connection");
        drop(clients);
        program.stop();
    }
}

#[test]
fn the_models_print_the_same_lines() {
    for model in MODELS {
        for quiet in [false, true] {
            let program = start(model, if quiet { &["--quiet"] } else { &[] });
            for _ in 0..2 {
                let client = program.connect();
                assert_eq!(ask(&client, "x"), "Got: x");
                let addr = client.local_addr().unwrap();
                hang_up(client);
                if !quiet {
                    assert_eq!(program.stdout_line(), format!("Connection from {addr}"));
                    let closed = program.stdout_line();
                    assert!(
                        closed.starts_with(&format!("Connection closed {addr}")),
                        "{closed}"
                    );
                }
            }
            let (stdout, stderr) = program.stop();
            assert_eq!(stdout, [""; 0], "{model}");
            let reports = if model == "async" { 1 } else { 0 };
            assert_eq!(stderr.len(), reports, "{model}: {stderr:?}");
        }
    }
}

#[test]
fn a_reset_connection_ends_no_model() {
    for model in MODELS {
        let program = start(model, &[]);
        let client = program.connect();
        assert_eq!(ask(&client, "x"), "Got: x");
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(ask(&program.connect(), "next"), "Got: next", "{model}");
        program.stop();
    }
}

#[test]
fn signals_end_every_model_with_success_while_clients_are_connected() {
    for model in MODELS {
        for signal in [Signal::INT, Signal::TERM] {
            let program = start(model, &[]);
            let client = program.connect();
            assert_eq!(ask(&client, "x"), "Got: x");
            program.signal(signal);
            let (status, _, stderr) = program.wait();
            assert_eq!(status.code(), Some(0), "{model} {signal:?}: {stderr:?}");
        }
    }
}

/// A process's end of the connection that comes from `peer`.
#[cfg(target_os = "linux")]
fn accepted_socket(program: &Program, peer: std::net::SocketAddr) -> std::os::fd::OwnedFd {
    use rustix::net::getpeername;
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

    let pidfd = pidfd_open(program.pid(), PidfdFlags::empty()).unwrap();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap();
    descriptors
        .filter_map(|entry| {
            entry
                .unwrap()
                .file_name()
                .into_string()
                .unwrap()
                .parse()
                .ok()
        })
        .filter_map(|number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok())
        .find(|descriptor| getpeername(descriptor).is_ok_and(|addr| addr == Some(peer.into())))
        .expect("the program has that connection")
}

#[cfg(target_os = "linux")]
#[test]
fn every_model_sends_replies_without_delay() {
    for model in MODELS {
        let program = start(model, &[]);
        let client = program.connect();
        assert_eq!(ask(&client, "x"), "Got: x");
        let accepted = accepted_socket(&program, client.local_addr().unwrap());
        assert!(
            rustix::net::sockopt::tcp_nodelay(accepted).unwrap(),
            "{model}"
        );
        program.stop();
    }
}

/// An `nc` in a terminal of its own, as it were.
struct Netcat(Child);

impl Netcat {
    fn start(program: &Program) -> Netcat {
        let addr = program.addr();
        let mut command = Command::new("nc");
        command.args(["-N", &addr.ip().to_string(), &addr.port().to_string()]);
        Netcat(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    fn type_in(&mut self, text: &str) {
        self.0
            .stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// What it prints for a text of this length.
    fn reply(mut self, length: usize) -> (Netcat, String) {
        within_deadline(move || {
            let mut reply = vec![0; "Got: ".len() + length];
            self.0
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut reply)
                .unwrap();
            (self, String::from_utf8(reply).unwrap())
        })
    }

    /// Ends its input. Returns what it still prints before it ends.
    fn end(self) -> String {
        let Output { status, stdout, .. } = within_deadline(|| self.0.wait_with_output().unwrap());
        assert!(status.success());
        String::from_utf8(stdout).unwrap()
    }
}

#[test]
#[ignore = "needs nc"]
fn netcat_gets_its_answer_from_every_model() {
    for model in MODELS {
        let program = start(model, &[]);
        let mut nc = Netcat::start(&program);
        nc.type_in("x");
        assert_eq!(nc.end(), "Got: x", "{model}");
        program.stop();
    }
}

#[test]
#[ignore = "needs nc"]
fn two_netcats_at_once_see_how_the_models_differ() {
    for model in MODELS {
        let program = start(model, &[]);
        let mut first = Netcat::start(&program);
        first.type_in("one");
        let (first, reply) = first.reply(3);
        assert_eq!(reply, "Got: one", "{model}");
        let mut second = Netcat::start(&program);
        second.type_in("two");
        if model == "sequential" {
            assert_eq!(first.end(), "");
            assert_eq!(second.end(), "Got: two");
        } else {
            let (second, reply) = second.reply(3);
            assert_eq!(reply, "Got: two", "{model}");
            assert_eq!((first.end(), second.end()), (String::new(), String::new()));
        }
        program.stop();
    }
}
