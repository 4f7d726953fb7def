//! Sockets that are passed on, as systemd does, and what the program tells systemd.

use std::fs::File;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::Signal;

use crate::support::{DEADLINE, Program, TempDir, ask, hang_up};
use crate::workers::Load;

/// The command that runs the program with sockets that it inherits, as systemd runs it.
fn activated(sockets: Vec<OwnedFd>, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        // The program has the shell's number.
        .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_tinyloop"))
        .args(args)
        .env("LISTEN_FDS", sockets.len().to_string())
        .stdout(Stdio::piped());
    let mappings = sockets.into_iter().zip(3..);
    let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    command.fd_mappings(mappings.collect()).unwrap();
    command
}

/// Another descriptor of the same socket.
fn duplicate(socket: &TcpListener) -> OwnedFd {
    socket.try_clone().unwrap().into()
}

#[test]
fn the_program_listens_on_all_sockets_that_it_inherits() {
    let dir = TempDir::new("activation");
    let path = dir.path("socket");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    for workers in [None, Some("--workers=2")] {
        let sockets = vec![
            tcp.try_clone().unwrap().into(),
            unix.try_clone().unwrap().into(),
        ];
        let args = Vec::from_iter(workers);
        let mut command = activated(sockets, &args);
        let program = Program::start_command(command.env("LISTEN_FDNAMES", "web:local"));
        assert_eq!(program.addr(), tcp.local_addr().unwrap());
        assert_eq!(
            program.stdout_line(),
            format!("listening on unix:{}", path.display())
        );
        assert_eq!(ask(&program.connect(), "x"), "Got: x");
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(ask(&client, "y"), "Got: y");
        drop(client);
        program.stop();
        assert!(path.exists(), "the file is not the program's");
    }
}

#[test]
fn a_restart_under_activation_loses_no_connection() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = || Program::start_command(&mut activated(vec![duplicate(&socket)], &["-q"]));
    let mut program = start();
    let load = Load::start(socket.local_addr().unwrap(), 4);
    for _ in 0..10 {
        program.stop();
        program = start();
    }
    let (connections, errors) = load.stop();
    assert!(errors.is_empty(), "of {connections}: {errors:?}");
    program.stop();
}

/// Where systemd would listen, and the next message there, line by line.
fn notifications(dir: &TempDir) -> UnixDatagram {
    let socket = UnixDatagram::bind(dir.path("notify")).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn next_message(socket: &UnixDatagram) -> Vec<String> {
    let mut message = [0; 1000];
    let length = socket.recv(&mut message).expect("a notification");
    let text = str::from_utf8(&message[..length]).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Waits for a message with this line.
fn wait_for_message(socket: &UnixDatagram, line: &str) {
    let start = Instant::now();
    while !next_message(socket).iter().any(|found| found == line) {
        assert!(start.elapsed() < DEADLINE, "no {line}");
    }
}

#[test]
fn systemd_is_told_when_the_program_is_ready_how_it_does_and_when_it_stops() {
    let dir = TempDir::new("notify");
    let socket = notifications(&dir);
    let cases: [(&[&str], &str); 2] = [
        (&["-l", "127.0.0.1:0"], ""),
        (&["-l", "127.0.0.1:0", "--workers", "2"], "2 workers, "),
    ];
    for (args, workers) in cases {
        let mut command = Program::command();
        command.args(args).env("NOTIFY_SOCKET", dir.path("notify"));
        // It tells twice in this time. A worker has it for its answers, also on a busy machine.
        command.env("WATCHDOG_USEC", "400000");
        let program = Program::start_command(&mut command);
        assert_eq!(next_message(&socket), ["READY=1"]);
        let status = |open, accepted| {
            format!("STATUS={workers}{open} connections open, {accepted} accepted")
        };
        assert_eq!(next_message(&socket), ["WATCHDOG=1", &status(0, 0)]);
        assert_eq!(
            next_message(&socket),
            ["WATCHDOG=1"],
            "the status has not changed"
        );
        let client = program.connect();
        assert_eq!(ask(&client, "x"), "Got: x");
        wait_for_message(&socket, &status(1, 1));
        hang_up(client);
        wait_for_message(&socket, &status(0, 1));
        program.signal(Signal::TERM);
        wait_for_message(&socket, "STOPPING=1");
        program.ends_well("accepted 1, ");
        // What was on its way.
        socket.set_nonblocking(true).unwrap();
        while socket.recv(&mut [0; 1000]).is_ok() {}
        socket.set_nonblocking(false).unwrap();
    }
}

#[test]
fn the_watchdog_is_told_by_the_loop_and_hears_nothing_while_that_is_blocked() {
    let dir = TempDir::new("watchdog");
    let socket = notifications(&dir);
    let mut command = Program::command();
    command
        .args(["-l", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", dir.path("notify"));
    let program = Program::start_command(command.env("WATCHDOG_USEC", "100000"));
    wait_for_message(&socket, "WATCHDOG=1");
    program.signal(Signal::STOP);
    // The messages that came before the stop.
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let silence = || socket.recv(&mut [0; 1000]).err().map(|error| error.kind());
    while silence() != Some(io::ErrorKind::WouldBlock) {}
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    program.signal(Signal::CONT);
    wait_for_message(&socket, "WATCHDOG=1");
    program.stop();
}

#[test]
fn systemd_may_listen_on_an_abstract_name_and_a_slow_systemd_holds_up_nobody() {
    let name = format!("tinyloop-test-{}", std::process::id());
    let addr = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&addr).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = Program::command();
    command
        .args(["-l", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .env("WATCHDOG_USEC", "2000");
    let program = Program::start_command(&mut command);
    assert_eq!(next_message(&socket), ["READY=1"]);
    // Nobody takes the next messages, until there is no room for one.
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send_to_addr(b"x", &addr).is_ok() {}
    let client = program.connect();
    for _ in 0..50 {
        assert_eq!(ask(&client, "x"), "Got: x");
        thread::sleep(Duration::from_millis(1));
    }
    drop(client);
    program.stop();
}

#[test]
fn without_systemd_nobody_is_told_and_a_deaf_systemd_does_no_harm() {
    let dir = TempDir::new("deaf");
    let mut command = Program::command();
    command
        .args(["-l", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", dir.path("nobody"));
    let program = Program::start_command(&mut command);
    assert_eq!(ask(&program.connect(), "x"), "Got: x");
    program.stop();
}

#[test]
fn passed_descriptors_that_are_no_listening_sockets_are_refused_in_one_line() {
    let refused = |mut command: Command| {
        let (status, stdout, stderr) = Program::spawn(&mut command).wait();
        assert_eq!((status.code(), stdout.len()), (Some(1), 0), "{stderr:?}");
        assert_eq!(stderr.len(), 1, "{stderr:?}");
        stderr[0].clone()
    };
    let file = File::open("/dev/null").unwrap().into();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap().into();
    let datagram = UnixDatagram::unbound().unwrap().into();
    let idle = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let idle_unix = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    for descriptor in [file, udp, datagram, idle, idle_unix] {
        assert_eq!(
            refused(activated(vec![descriptor], &[])),
            "LISTEN_FDS: descriptor 3 (\"unknown\") is no TCP or Unix socket that listens"
        );
    }
    let good = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = activated(vec![duplicate(&good)], &[]);
    command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "a:b");
    assert_eq!(
        refused(command),
        "LISTEN_FDS: descriptor 4 (\"b\") is no TCP or Unix socket that listens"
    );
    let mut command = activated(vec![duplicate(&good)], &[]);
    command.env("LISTEN_FDNAMES", "a:b");
    assert_eq!(
        refused(command),
        "LISTEN_FDS: 1 sockets have 2 names (LISTEN_FDNAMES)"
    );
    for number in ["", "x", "-1", "99999999999", "2000000000"] {
        let mut command = activated(vec![duplicate(&good)], &[]);
        command.env("LISTEN_FDS", number);
        assert_eq!(
            refused(command),
            format!("LISTEN_FDS: {number:?} is no number of descriptors")
        );
    }
    let mut command = Program::command();
    command.env("TINYLOOP_WORKER", "x").stdout(Stdio::piped());
    assert_eq!(
        refused(command),
        "TINYLOOP_WORKER is for the workers that --workers starts"
    );
}

#[test]
fn a_teaching_model_serves_an_inherited_tcp_socket() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    // Its owner has made it so, and that is shared.
    tcp.set_nonblocking(true).unwrap();
    let command = &mut activated(vec![duplicate(&tcp)], &["--model", "threaded"]);
    let program = Program::start_command(command);
    assert_eq!(ask(&program.connect(), "x"), "Got: x");
    program.stop();
}
