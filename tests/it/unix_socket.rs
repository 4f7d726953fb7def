//! Unix sockets: their files, and what is printed of them.

use std::fs;
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Barrier};
use std::thread;

use rustix::net::{self, AddressFamily, SendFlags, SocketAddrUnix, SocketType};
use rustix::process::Signal;
use tinyloop::Listener;

use crate::support::{DEADLINE, Program, TempDir, ask};

fn start(path: &Path) -> Program {
    Program::start(&["-l", &listen_on(path)])
}

fn listen_on(path: &Path) -> String {
    format!("unix:{}", path.to_str().unwrap())
}

fn connect(path: &Path) -> UnixStream {
    with_deadline(UnixStream::connect(path).expect("connects"))
}

fn with_deadline(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Runs a program that cannot listen on `path`. Returns the line in which it says so.
fn refused(path: &Path) -> String {
    let program = Program::spawn(
        Program::command()
            .args(["-l", &listen_on(path)])
            .stdout(Stdio::piped()),
    );
    let (status, stdout, stderr) = program.wait();
    assert_eq!(status.code(), Some(1));
    assert_eq!(
        (stdout.len(), stderr.len()),
        (0, 1),
        "{stdout:?} {stderr:?}"
    );
    stderr.into_iter().next().unwrap()
}

#[test]
fn the_program_serves_a_unix_socket_and_removes_its_file_in_the_end() {
    let dir = TempDir::new("serves");
    let path = dir.path("socket");
    let program = start(&path);
    let connections = [connect(&path), connect(&path)];
    for connection in &connections {
        assert_eq!(ask(connection, "hello"), "Got: hello");
    }
    drop(connections);
    let (stdout, _) = program.stop();
    assert_eq!(stdout[0], "Connection from unix:unnamed");
    assert!(!fs::exists(&path).unwrap());
}

#[test]
fn the_file_of_a_killed_server_is_replaced() {
    let dir = TempDir::new("replaced");
    let path = dir.path("socket");
    let killed = start(&path);
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(fs::exists(&path).unwrap());
    let program = start(&path);
    assert_eq!(ask(&connect(&path), "hello"), "Got: hello");
    program.stop();
}

#[test]
fn a_socket_in_use_is_left_alone() {
    let dir = TempDir::new("in-use");
    let path = dir.path("socket");
    let program = start(&path);
    let line = refused(&path);
    let expected = format!(
        "cannot listen on unix:{}: address already in use",
        path.display()
    );
    assert!(line.starts_with(&expected), "{line}");
    assert_eq!(ask(&connect(&path), "hello"), "Got: hello");
    program.stop();
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let dir = TempDir::new("no-socket");
    let (file, folder, link) = (dir.path("file"), dir.path("folder"), dir.path("link"));
    fs::write(&file, "precious").unwrap();
    fs::create_dir(&folder).unwrap();
    symlink(&file, &link).unwrap();
    for path in [&file, &folder, &link] {
        let line = refused(path);
        assert!(
            line.contains("the file exists and is not a socket"),
            "{line}"
        );
    }
    assert_eq!(fs::read_to_string(&link).unwrap(), "precious");
    assert!(folder.is_dir());
}

#[test]
fn a_file_that_somebody_else_has_put_there_stays() {
    let dir = TempDir::new("somebody-else");
    let path = dir.path("socket");
    let program = start(&path);
    fs::remove_file(&path).unwrap();
    let _listener = UnixListener::bind(&path).unwrap();
    program.stop();
    connect(&path);
}

#[test]
fn a_peers_path_is_printed_with_what_could_harm_a_terminal_escaped() {
    let dir = TempDir::new("peer");
    let path = dir.path("socket");
    let program = start(&path);
    let socket = net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let peer = SocketAddrUnix::new(dir.path("peer\x1b[31m\n")).unwrap();
    net::bind(&socket, &peer).unwrap();
    net::connect(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let connection = with_deadline(socket.into());
    assert_eq!(ask(&connection, "\x1b]0;hello\n"), "Got: \x1b]0;hello\n");
    let peer = format!("unix:{}", dir.path("peer\\u{1b}[31m\\n").display());
    assert_eq!(program.stdout_line(), format!("Connection from {peer}"));
    drop(connection);
    let closed = program.stdout_line();
    assert!(
        closed.starts_with(&format!("Connection closed {peer}: completed, ")),
        "{closed}"
    );
    program.stop();
}

#[test]
fn the_servers_path_is_printed_with_what_could_harm_a_terminal_escaped() {
    let dir = TempDir::new("escaped");
    let path = dir.path("server\x1b[31m\n");
    let printed = format!("unix:{}", dir.path("server\\u{1b}[31m\\n").display());
    let mut command = Program::command();
    command
        .args(["-l", &listen_on(&path)])
        .stdout(Stdio::piped());
    let program = Program::spawn(&mut command);
    assert_eq!(program.stdout_line(), format!("listening on {printed}"));
    assert!(refused(&path).starts_with(&format!("cannot listen on {printed}: ")));
    program.stop();

    fs::write(&path, "precious").unwrap();
    assert!(refused(&path).starts_with(&format!("cannot listen on {printed}: ")));
}

#[test]
fn of_several_who_bind_a_path_at_once_one_has_it_and_is_reached() {
    let dir = TempDir::new("at-once");
    let path = dir.path("socket");
    for _ in 0..300 {
        // A stale file, which each of them may remove.
        drop(UnixListener::bind(&path).unwrap());
        let start = Arc::new(Barrier::new(4));
        let binding: Vec<_> = (0..4)
            .map(|_| {
                let (path, start) = (path.clone(), start.clone());
                thread::spawn(move || {
                    start.wait();
                    Listener::bind_unix(path).ok()
                })
            })
            .collect();
        let bound: Vec<Listener> = binding
            .into_iter()
            .filter_map(|thread| thread.join().unwrap())
            .collect();
        assert_eq!(bound.len(), 1);
        UnixStream::connect(&path).expect("the one is reached");
        drop(bound);
        assert!(!path.exists());
    }
}

#[test]
fn urgent_data_comes_back_in_line() {
    let dir = TempDir::new("urgent");
    let path = dir.path("socket");
    let program = start(&path);
    let connection = connect(&path);
    assert_eq!(ask(&connection, "before"), "Got: before");
    net::send(&connection, b"hel", SendFlags::empty()).unwrap();
    net::send(&connection, b"!", SendFlags::OOB).unwrap();
    net::send(&connection, b"lo", SendFlags::empty()).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut reply = Vec::new();
    (&connection).read_to_end(&mut reply).unwrap();
    let reply = String::from_utf8(reply).unwrap().replace("Got: ", "");
    assert_eq!(reply, "hel!lo");
    program.stop();
}
