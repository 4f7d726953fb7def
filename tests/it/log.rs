//! The program's lines for programs: `--log json`, and the time before lines of text.

use std::io::Write;
use std::net::Shutdown;

use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Program, ask, connect, read_to_end};

/// The program with `--log json`, behind its first line.
fn start(args: &[&str]) -> Program {
    let args = ["--log", "json", "-l", "127.0.0.1:0"].iter().chain(args);
    let mut program = Program::spawn(
        Program::command()
            .args(args)
            .stdout(std::process::Stdio::piped()),
    );
    let first = object(&program.stdout_line());
    assert_eq!(first["event"], "listening");
    program.listens_on(&format!("listening on {}", first["addr"].as_str().unwrap()));
    program
}

/// A line's object, whose time is as it should be.
fn object(line: &str) -> Value {
    let object: Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert!(line.starts_with("{\"time\":\""), "{line}");
    assert_time(object["time"].as_str().unwrap());
    object
}

/// RFC 3339 in UTC, with microseconds: `2026-11-25T12:00:00.123456Z`.
fn assert_time(time: &str) {
    let form: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(form, "0000-00-00T00:00:00.000000Z", "{time}");
    assert!(time > "2026-01-01", "{time}");
}

/// The next line, which has to be of `event`.
fn next(program: &Program, event: &str) -> Value {
    let object = object(&program.stdout_line());
    assert_eq!(object["event"], event, "{object}");
    object
}

#[test]
fn a_connection_is_told_as_json_from_its_beginning_to_its_end() {
    let program = start(&["--fault", "slice=2@0%", "--seed", "7"]);
    assert_eq!(
        next(&program, "faults")["what"],
        "--fault slice=2@0% --seed 7"
    );
    let client = program.connect();
    let peer = client.local_addr().unwrap().to_string();
    let connected = next(&program, "connected");
    assert_eq!(connected["peer"], *peer);
    ask(&client, "hello");
    client.shutdown(Shutdown::Write).unwrap();
    read_to_end(&client);
    let closed = next(&program, "closed");
    assert_eq!(closed["id"], connected["id"]);
    assert_eq!(closed["peer"], *peer);
    assert_eq!(closed["reason"], "completed");
    assert_eq!(
        (&closed["bytes_in"], &closed["bytes_out"]),
        (&5.into(), &10.into())
    );
    let duration = closed["duration"].as_f64().unwrap();
    assert!(duration > 0.0 && duration < 60.0, "{closed}");

    let client = program.connect();
    next(&program, "connected");
    ask(&client, "hello");
    set_socket_linger(&client, Some(std::time::Duration::ZERO)).unwrap();
    drop(client);
    let closed = next(&program, "closed");
    assert_eq!(
        (&closed["reason"], &closed["error_kind"]),
        (&"failed".into(), &"ConnectionReset".into())
    );

    program.signal(Signal::INT);
    let report = next(&program, "report");
    assert_eq!(
        (&report["accepted"], &report["failed"]),
        (&2.into(), &1.into())
    );
    let (status, stdout, stderr) = program.wait();
    assert!(status.success());
    assert_eq!(
        (stdout.len(), stderr.len()),
        (0, 0),
        "the report is the last: {stdout:?} {stderr:?}"
    );
}

#[test]
fn what_becomes_of_a_full_server_is_told_as_json() {
    let program = start(&["--max-connections", "1", "--when-full", "reject"]);
    let client = program.connect();
    ask(&client, "hello");
    next(&program, "connected");
    let reached = next(&program, "limit_reached");
    assert_eq!(
        (&reached["max_connections"], &reached["when_full"]),
        (&1.into(), &"reject".into())
    );
    let rejected = connect(program.addr());
    assert_eq!(
        next(&program, "rejected")["peer"],
        *rejected.local_addr().unwrap().to_string()
    );
    drop(client);
    next(&program, "closed");
    assert_eq!(next(&program, "limit_cleared")["rejected"], 1);
}

#[test]
fn quiet_leaves_out_what_clients_cause_of_json_too() {
    let program = start(&["-q"]);
    let client = program.connect();
    ask(&client, "hello");
    program.signal(Signal::TERM);
    let (_, stdout, _) = program.wait();
    let events: Vec<Value> = stdout
        .iter()
        .map(|line| object(line)["event"].clone())
        .collect();
    assert_eq!(events, ["draining", "report"]);
}

#[test]
fn a_peers_path_is_quoted_in_json() {
    let directory = crate::support::TempDir::new("json");
    let path = directory.path("socket");
    let args = ["--log", "json", "-l", &format!("unix:{}", path.display())];
    let program = Program::spawn(
        Program::command()
            .args(args)
            .stdout(std::process::Stdio::piped()),
    );
    next(&program, "listening");
    let own = directory.path("\"},\n{\u{1b}[2J");
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let addr = |path| rustix::net::SocketAddrUnix::new(path).unwrap();
    rustix::net::bind(&socket, &addr(&own)).unwrap();
    rustix::net::connect(&socket, &addr(&path)).unwrap();
    let mut client = std::os::unix::net::UnixStream::from(socket);
    client.write_all(b"hello").unwrap();
    let connected = next(&program, "connected");
    assert!(
        connected["peer"].as_str().unwrap().starts_with("unix"),
        "{connected}"
    );
}

#[test]
fn lines_of_text_have_the_time_if_that_is_asked_for() {
    let args = ["--timestamps", "-l", "127.0.0.1:0"];
    let mut program = Program::spawn(
        Program::command()
            .args(args)
            .stdout(std::process::Stdio::piped()),
    );
    let line = program.stdout_line();
    let (time, text) = line.split_once(' ').unwrap();
    assert_time(time);
    program.listens_on(text);
    let client = program.connect();
    ask(&client, "hello");
    let (_, text) = program
        .stdout_line()
        .split_once(' ')
        .map(|(time, text)| (assert_time(time), text.to_owned()))
        .unwrap();
    assert!(text.starts_with("Connection from 127.0.0.1:"), "{text}");
    drop(client);
    program.signal(Signal::INT);
    let (_, _, stderr) = program.wait();
    for line in stderr {
        assert_time(line.split(' ').next().unwrap());
    }
}
