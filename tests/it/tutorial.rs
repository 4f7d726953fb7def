//! The tutorial: that it shows the programs as they are, and that these do what it says, wrong things included.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;

use crate::support::{DEADLINE, Program, connect, hang_up, read_to_end, read_to_reset};

const TUTORIAL: &str = include_str!("../../docs/tutorial.md");

const STEPS: [(&str, &str); 5] = [
    (
        "1_sequential",
        include_str!("../../examples/tutorial/1_sequential.rs"),
    ),
    (
        "2_threaded",
        include_str!("../../examples/tutorial/2_threaded.rs"),
    ),
    (
        "3_async",
        include_str!("../../examples/tutorial/3_async.rs"),
    ),
    (
        "4_server",
        include_str!("../../examples/tutorial/4_server.rs"),
    ),
    (
        "5_key_value",
        include_str!("../../examples/tutorial/5_key_value.rs"),
    ),
];

/// The client of the sixth step, with its bug and without.
const CLIENTS: [(&str, &str); 2] = [
    (
        "6_client.py",
        include_str!("../../examples/tutorial/6_client.py"),
    ),
    (
        "6_client_mended.py",
        include_str!("../../examples/tutorial/6_client_mended.py"),
    ),
];

/// More connections than a program with 16 descriptors may have.
const TOO_MANY: usize = 20;

/// What the tutorial fences with these first lines.
fn blocks(first_lines: &str) -> Vec<&'static str> {
    let fenced = TUTORIAL.split(first_lines).skip(1);
    fenced
        .map(|rest| rest.split("```\n").next().unwrap())
        .collect()
}

/// Runs a step. Cargo names its program as the tutorial does.
fn start(step: &str) -> Program {
    Program::start_command(Program::example(step).arg("127.0.0.1:0"))
}

/// Runs a step in a shell that lets it have 16 descriptors, as the tutorial does.
fn start_with_16_descriptors(step: &str) -> Program {
    let mut program = Program::example(step);
    Program::start_command(&mut Program::with_descriptors(
        16,
        program.arg("127.0.0.1:0"),
    ))
}

/// Types what a terminal of the tutorial types into `nc`, and is to see what it sees: by turns, a line each.
fn follow(session: &str, nc: &mut BufReader<TcpStream>) {
    let mut lines = session.lines();
    while let (Some(typed), Some(seen)) = (lines.next(), lines.next()) {
        types(nc, typed);
        sees(nc, seen);
    }
}

/// In one piece, as `nc` sends it.
fn types(nc: &mut BufReader<TcpStream>, line: &str) {
    let line = format!("{line}\n");
    nc.get_mut().write_all(line.as_bytes()).expect("is sent");
}

fn sees(nc: &mut BufReader<TcpStream>, expected: &str) {
    let mut line = String::new();
    nc.read_line(&mut line).expect("is answered");
    assert_eq!(line, format!("{expected}\n"));
}

/// The terminals of the tutorial, in its order.
fn sessions() -> Vec<&'static str> {
    blocks("```console\n$ nc localhost 25000\n")
}

#[test]
fn the_tutorial_shows_the_programs_as_they_are() {
    let shown = blocks("```rust,no_run\n");
    assert_eq!(shown.len(), STEPS.len());
    for ((step, program), shown) in STEPS.iter().zip(shown) {
        assert!(
            *program == shown,
            "docs/tutorial.md shows another {step}.rs"
        );
        let run = format!("$ cargo run --example {step}\n");
        assert!(
            TUTORIAL.contains(&run),
            "docs/tutorial.md does not run it: {run}"
        );
    }
    let store = STEPS[4].1;
    assert!(store.lines().count() < 70, "as it says");
}

#[test]
fn the_first_step_answers_the_second_when_the_first_has_ended() {
    let program = start("1_sequential");
    let (first, second) = (program.connect(), program.connect());
    let (mut first, mut second) = (BufReader::new(first), BufReader::new(second));
    follow(sessions()[0], &mut first);
    let (typed, seen) = sessions()[1].split_once('\n').unwrap();
    types(&mut second, typed);
    // The first goes on, and the second has no answer yet.
    follow(sessions()[0], &mut first);
    assert!(has_nothing(second.get_ref()));
    hang_up(first.into_inner());
    let second = second.into_inner();
    second.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&second), seen.as_bytes());
}

/// Whether nothing has come in so far.
fn has_nothing(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn the_later_steps_answer_two_at_once() {
    for step in ["2_threaded", "3_async", "4_server"] {
        let program = start(step);
        let mut clients = [program.connect(), program.connect()].map(BufReader::new);
        for session in [0, 1, 0] {
            for client in clients.iter_mut().rev() {
                follow(sessions()[session], client);
            }
        }
        for client in clients {
            hang_up(client.into_inner());
        }
    }
}

#[test]
fn the_second_step_ends_without_descriptors() {
    let program = start_with_16_descriptors("2_threaded");
    // At the latest when it has ended, it refuses.
    let connect = |_| TcpStream::connect_timeout(&program.addr(), DEADLINE).ok();
    let _clients: Vec<_> = (0..TOO_MANY).map_while(connect).collect();
    let (status, _, stderr) = program.wait();
    assert_eq!(status.code(), Some(1));
    assert!(stderr[0].contains("Too many open files"), "{stderr:?}");
}

#[test]
fn the_third_step_freezes_without_descriptors_and_the_fourth_does_not() {
    let exchange = sessions()[0];
    let program = start_with_16_descriptors("3_async");
    let mut first = BufReader::new(program.connect());
    follow(exchange, &mut first);
    let _clients: Vec<_> = (0..TOO_MANY).map(|_| program.connect()).collect();
    assert!(
        program
            .stderr_line()
            .starts_with("cannot accept: Too many open files")
    );
    types(&mut first, "hello");
    // It spins, and turns to nobody meanwhile.
    for _ in 0..1000 {
        assert!(program.stderr_line().starts_with("cannot accept: "));
    }
    assert!(has_nothing(first.get_ref()));
    drop(program);

    let program = start_with_16_descriptors("4_server");
    let addr = program.addr();
    let mut first = BufReader::new(program.connect());
    let clients: Vec<_> = (0..TOO_MANY).map(|_| connect(addr)).collect();
    while !program.stdout_line().starts_with("cannot accept for now: ") {}
    follow(exchange, &mut first);
    drop(clients);
    follow(exchange, &mut BufReader::new(connect(addr)));
}

#[test]
fn the_fourth_step_ends_in_an_orderly_way() {
    let program = start("4_server");
    let mut client = BufReader::new(program.connect());
    follow(sessions()[0], &mut client);
    program.signal(Signal::INT);
    assert_eq!(read_to_end(client.get_ref()), b"");
    let (status, stdout, _) = program.wait();
    assert!(status.success());
    let last = blocks("last line begins with:\n\n```console\n")[0].trim_end();
    assert!(stdout.last().unwrap().starts_with(last), "{stdout:?}");
}

#[test]
fn the_fifth_step_is_a_store_that_all_share_and_nobody_fills_up() {
    let program = start("5_key_value");
    let [mut first, mut second] = [program.connect(), program.connect()].map(BufReader::new);
    follow(sessions()[2], &mut first);
    follow("set key of the first\nok", &mut first);
    follow("get key\nof the first", &mut second);

    // A line without an end, and bytes that are no text.
    for input in [&[b'x'; 1024][..], b"get \xff\n"] {
        let mut client = program.connect();
        client.write_all(input).unwrap();
        assert_eq!(read_to_reset(&client), b"", "it ends");
    }

    let keys = 10_000;
    // With the one from before, these are all.
    let requests: String = (1..keys).map(|key| format!("set {key} x\n")).collect();
    first.get_mut().write_all(requests.as_bytes()).unwrap();
    for _ in 1..keys {
        sees(&mut first, "ok");
    }
    for (request, answer) in [
        ("set another x", "the store is full"),
        ("set 1 y", "ok"),
        ("del 2", "ok"),
        ("set another x", "ok"),
        ("get another", "x"),
    ] {
        follow(&format!("{request}\n{answer}"), &mut second);
    }
}

#[test]
fn the_tutorial_shows_the_client_with_its_bug_and_what_mends_it() {
    let shown = blocks("```python\n");
    let [(_, client), (_, mended)] = CLIENTS;
    assert_eq!(shown[0], client);
    assert!(mended.contains(shown[1]), "{}", shown[1]);
    let line = blocks("becomes `")[0].split('`').next().unwrap();
    let call = client.lines().find(|line| line.contains("recv(")).unwrap();
    let as_shown = client.replace(call.trim(), line);
    let as_shown = as_shown.split_once("\n\n\nwith").unwrap();
    let (_, body) = as_shown.0.split_once("import").unwrap();
    assert!(mended.contains(body), "it differs by what is shown");
}

/// What a client of the tutorial prints, with what it says on stderr. The server has these options.
fn client_prints(script: &str, options: &[&str]) -> String {
    let program = Program::start(&[&["--listen", "127.0.0.1:0"], options].concat());
    let mut command = Command::new("python3");
    let path = format!("{}/examples/tutorial/{script}", env!("CARGO_MANIFEST_DIR"));
    command.args([path, program.addr().port().to_string()]);
    let output = command.output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
#[ignore = "needs python3"]
fn the_sixth_step_breaks_a_client_and_mends_it() {
    let [(client, _), (mended, _)] = CLIENTS;
    let shown = |script: &str| {
        blocks(&format!(
            "```console\n$ python3 examples/tutorial/{script}\n"
        ))
    };
    let sessions = shown(client);
    assert_eq!(client_prints(client, &[]), sessions[0]);
    let fault = blocks("$ cargo run -- ")[0].trim_end();
    let options: Vec<&str> = fault.split(' ').collect();
    // A machine that is busy for a tenth of a second may let two pieces arrive together.
    let broken = client_prints(client, &options);
    let (beginning, _) = sessions[1].rsplit_once('\'').unwrap();
    assert!(broken.starts_with(beginning), "{broken}");
    assert_eq!(client_prints(mended, &options), shown(mended)[0]);

    let table = TUTORIAL
        .lines()
        .filter(|line| line.starts_with("| `--fault "));
    let ends = ["received b'Got: hel'", "reset by peer", "timed out", ""];
    for (row, end) in table.zip(ends) {
        let option = row.split('`').nth(1).unwrap();
        let options: Vec<&str> = option.split(' ').collect();
        if !end.is_empty() {
            let printed = client_prints(mended, &options);
            assert!(printed.trim_end().ends_with(end), "{option}: {printed}");
        }
    }
}

#[test]
fn the_monitor_shows_the_task_that_blocks() {
    let mut command = Program::example("blocked");
    let program = Program::start_command(command.args(["127.0.0.1:0"; 2]));
    let line = program.stdout_line();
    let monitor = line.strip_prefix("monitor on ").unwrap().parse().unwrap();

    let [mut first, mut second] = [program.connect(), program.connect()].map(BufReader::new);
    follow("10\nfib(10) = 55", &mut first);
    follow("91\na number from 0 to 90, please", &mut second);
    // For decades.
    types(&mut first, "90");
    let peer_addr = first.get_ref().local_addr().unwrap().to_string();
    let start = Instant::now();
    loop {
        let mut monitor = connect(monitor);
        monitor.write_all(b"ps\nquit\n").unwrap();
        let ps = String::from_utf8(read_to_end(&monitor)).unwrap();
        let longest = ps.lines().nth(1).unwrap();
        if longest.contains(" running ") && longest.contains(&peer_addr) {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "{ps}");
    }
    types(&mut second, "1");
    assert!(has_nothing(second.get_ref()));
}
