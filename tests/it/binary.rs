//! The program, as a user runs it.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::iter;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::process::{self, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Signal, geteuid};

use crate::server::has_ended;
use crate::support::{
    DEADLINE, Program, TempDir, ask, connect, exchange, hang_up, has_ipv6, within_deadline,
};

const BINARY: &str = env!("CARGO_BIN_EXE_tinyloop");

/// Runs the program to its end. Returns its exit code and what it printed.
fn outcome(command: &mut Command) -> (Option<i32>, Vec<String>, Vec<String>) {
    let (status, stdout, stderr) = Program::spawn(command.stdout(Stdio::piped())).wait();
    (status.code(), stdout, stderr)
}

/// Runs the program, which has to fail with `code` and a single line on stderr. Returns that line.
fn only_line_of_failure(command: &mut Command, code: i32) -> String {
    let (status, stdout, stderr) = outcome(command);
    assert_eq!(status, Some(code), "{command:?}: {stderr:?}");
    assert_eq!(stderr.len(), 1, "{command:?}: {stderr:?}");
    assert_eq!(stdout, [""; 0], "{command:?}");
    assert!(!stderr[0].contains("panicked at"), "{stderr:?}");
    stderr[0].clone()
}

/// An address of this process's own, for a program that cannot say where it listens.
pub(crate) fn own_addr(port: u16) -> SocketAddr {
    let [.., high, low] = process::id().to_be_bytes();
    (Ipv4Addr::new(127, 77, high, low), port).into()
}

/// Waits until somebody listens, with a connection that is closed at once.
pub(crate) fn wait_for_listener(addr: SocketAddr) {
    let start = Instant::now();
    while TcpStream::connect(addr).is_err() {
        assert!(start.elapsed() < DEADLINE, "nobody listens on {addr}");
        thread::yield_now();
    }
}

#[test]
fn two_clients_at_once_are_answered() {
    let program = Program::start(&["-l", "127.0.0.1:0"]);
    let (first, second) = (program.connect(), program.connect());
    assert_eq!(ask(&second, "two"), "Got: two");
    assert_eq!(ask(&first, "one"), "Got: one");
    program.stop();
}

#[test]
fn an_address_may_be_a_port_or_an_ip_and_a_port_and_be_given_again() {
    // The addresses expected, each with whether it is IPv6, and whether they share a port.
    let cases: [(&[&str], &[&str]); 6] = [
        (&["-l", "0"], &["127.0.0.1", "[::1]"]),
        (&["--listen", ":0"], &["0.0.0.0", "[::]"]),
        (&["--listen=127.0.0.1:0"], &["127.0.0.1"]),
        (&["-l=127.0.0.1:0"], &["127.0.0.1"]),
        (&["-l", "[::1]:0"], &["[::1]"]),
        (
            &["-l", "127.0.0.1:0", "-l", "0"],
            &["127.0.0.1", "127.0.0.1", "[::1]"],
        ),
    ];
    for (args, hosts) in cases {
        let hosts: Vec<_> = hosts
            .iter()
            .filter(|host| has_ipv6() || !host.starts_with('['))
            .collect();
        if hosts.is_empty() {
            continue;
        }
        let program = Program::start(args);
        let mut addrs = vec![program.addr()];
        for _ in 1..hosts.len() {
            let line = program.stdout_line();
            addrs.push(line.strip_prefix("listening on ").unwrap().parse().unwrap());
        }
        for (addr, host) in addrs.iter().zip(hosts) {
            assert_eq!(
                addr.to_string(),
                format!("{host}:{}", addr.port()),
                "{args:?}"
            );
            assert_eq!(ask(&connect(*addr), "x"), "Got: x", "{args:?}");
        }
        if let [.., v4, v6] = addrs[..]
            && v6.is_ipv6()
        {
            assert_eq!(v4.port(), v6.port(), "both families share the port");
        }
        let (stdout, _) = program.stop();
        assert!(
            !stdout.iter().any(|line| line.starts_with("listening")),
            "{stdout:?}"
        );
    }
}

#[test]
#[ignore = "needs unshare and ip"]
fn without_ipv6_the_port_alone_means_ipv4() {
    for (disable_ipv6, lines) in [
        (
            "0",
            &["listening on 127.0.0.1:25000", "listening on [::1]:25000"][..],
        ),
        ("1", &["listening on 127.0.0.1:25000"]),
    ] {
        let script = format!(
            "ip link set lo up && echo {disable_ipv6} >/proc/sys/net/ipv6/conf/all/disable_ipv6 && exec {BINARY}"
        );
        let program = Program::spawn(
            Command::new("unshare")
                .args(["--map-root-user", "--net", "sh", "-c", &script])
                .stdout(Stdio::piped()),
        );
        assert_eq!(program.stdout_line(), lines[0]);
        let (stdout, stderr) = program.stop();
        assert_eq!(stdout, lines[1..], "{stderr:?}");
    }
}

#[test]
fn the_prefix_may_be_chosen_and_may_be_empty() {
    let longest = "p".repeat(1024);
    let given = format!("--prefix={longest}");
    let cases: [(&[&str], &str); 7] = [
        (&[], "Got: "),
        (&["-p", "> "], "> "),
        (&["--prefix", "=\u{fc}="], "=\u{fc}="),
        (&["--prefix=a=b"], "a=b"),
        (&["--prefix="], ""),
        (&["-p", ""], ""),
        (&[&given], &longest),
    ];
    for (args, prefix) in cases {
        let program = Program::start(&[&["-l", "127.0.0.1:0"], args].concat());
        exchange(
            &program.connect(),
            b"hello\0\xff",
            &[prefix.as_bytes(), b"hello\0\xff"].concat(),
        );
        program.stop();
    }
}

#[test]
fn each_connection_is_told_in_two_lines_and_quiet_tells_none() {
    for quiet in [false, true] {
        let args: &[&str] = if quiet { &["-q"] } else { &[] };
        let program = Program::start(&[&["-l", "127.0.0.1:0"], args].concat());
        for _ in 0..2 {
            let client = program.connect();
            let addr = client.local_addr().unwrap();
            assert_eq!(ask(&client, "x"), "Got: x");
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
        assert_eq!(stdout, [""; 0], "nothing else");
        let report = "accepted 2, completed 2, failed 0, panicked 0, timed out 0, rejected 0, aborted 0, \
                      bytes in 2, bytes out 12, peak connections ";
        assert_eq!(stderr.len(), 1, "{stderr:?}");
        assert!(stderr[0].starts_with(report), "{stderr:?}");
    }
}

#[test]
fn quiet_prints_no_line_that_a_client_brings_about() {
    let cases: [(&str, &[&str]); 3] = [
        (
            "unlimited",
            &["--max-connections", "2", "--when-full", "reject"],
        ),
        ("unlimited", &["--max-connections", "2"]),
        ("24", &["--max-connections", "1000"]),
    ];
    for (descriptors, args) in cases {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "[ $0 = unlimited ] || ulimit -n $0; exec \"$@\"",
                descriptors,
            ])
            .args([BINARY, "-q", "-l", "127.0.0.1:0"]);
        let program = Program::start_command(command.args(args));
        for _ in 0..3 {
            // More than there is room for.
            let clients: Vec<_> = (0..30).map(|_| program.connect()).collect();
            // Whoever is in first is answered; the others wait, or are rejected.
            let tries = iter::repeat_n(&clients, 100).flatten();
            let answered = tries.into_iter().any(|mut client| {
                let mut reply = [0; 6];
                client
                    .set_read_timeout(Some(Duration::from_millis(10)))
                    .unwrap();
                client.write_all(b"x").is_ok() && client.read_exact(&mut reply).is_ok()
            });
            assert!(answered, "{args:?}: none of all clients found a place");
            for client in clients {
                set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
            }
        }
        let (stdout, stderr) = program.stop();
        assert_eq!(stdout, [""; 0], "{args:?}");
        let report = stderr.last().unwrap();
        assert!(report.starts_with("accepted "), "{stderr:?}");
        let unasked = stderr.iter().filter(|line| !line.starts_with("draining "));
        assert_eq!(unasked.count(), 1, "{args:?}: {stderr:?}");
    }
}

#[test]
fn what_a_client_sends_is_never_printed() {
    let program = Program::start(&["-l", "127.0.0.1:0"]);
    assert_eq!(
        ask(&program.connect(), "\u{1b}]0;secret\u{7}"),
        "Got: \u{1b}]0;secret\u{7}"
    );
    let (stdout, stderr) = program.stop();
    assert!(!format!("{stdout:?}{stderr:?}").contains("secret"));
}

#[test]
fn random_bytes_and_control_characters_leave_no_trace_in_the_output_of_any_model() {
    let seed = fastrand::u64(..);
    let mut random = Rng::with_seed(seed);
    let mut random_bytes = move || -> Vec<u8> {
        let byte = |random: &mut Rng| match random.bool() {
            true => random.u8(..),
            false => *random.choice(b"\x1b\r\0\x07\x08\x7f\x9b\n").unwrap(),
        };
        (0..random.usize(1..5000))
            .map(|_| byte(&mut random))
            .collect()
    };
    let directory = TempDir::new("output");
    for (port, model) in [(25010, "async"), (25011, "threaded"), (25012, "sequential")] {
        let (addr, output) = (own_addr(port), directory.path(model));
        // As bytes, in a file: what is no text would not come as a line.
        let program = Program::spawn(
            Command::new("sh")
                .args(["-c", "exec \"$@\" >\"$0\" 2>&1"])
                .arg(&output)
                .args([BINARY, "-m", model, "-l", &addr.to_string()])
                .stdout(Stdio::null()),
        );
        wait_for_listener(addr);
        for n in 0..20 {
            let client = connect(addr);
            (&client).write_all(&random_bytes()).unwrap();
            if n % 2 == 0 {
                hang_up(client);
            } else {
                set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
            }
        }
        assert_eq!(ask(&connect(addr), "x"), "Got: x");
        program.stop();
        let output = fs::read(output).unwrap();
        let is_text = |&byte: &u8| byte == b'\n' || byte.is_ascii_graphic() || byte == b' ';
        let lines = output.iter().filter(|&&byte| byte == b'\n').count();
        assert!(lines > 20, "{}", output.escape_ascii());
        assert!(
            output.iter().all(is_text),
            "{}, seed {seed}",
            output.escape_ascii()
        );
    }
}

#[test]
fn a_stdout_that_is_closed_or_full_does_not_stop_the_server() {
    // On /dev/full all is lost: one line for the listener, and two for each connection.
    let cases = [
        (25000, "exec \"$0\" \"$@\" >&-", None),
        (25001, "exec \"$0\" \"$@\" >/dev/full", Some(9)),
    ];
    for (port, script, lost_lines) in cases {
        let addr = own_addr(port);
        let program = Program::spawn(
            Command::new("sh")
                .args(["-c", script, BINARY, "-l", &addr.to_string()])
                .stdout(Stdio::null()),
        );
        wait_for_listener(addr);
        for _ in 0..3 {
            let client = connect(addr);
            assert_eq!(ask(&client, "x"), "Got: x", "{script}");
            hang_up(client);
        }
        let (_, stderr) = program.stop();
        assert_eq!(
            stderr.len(),
            1 + lost_lines.iter().len(),
            "{script}: {stderr:?}"
        );
        if let Some(lost_lines) = lost_lines {
            assert_eq!(stderr[1], format!("lines of output lost: {lost_lines}"));
        }
    }
}

/// The program, with a pipe as its stdout, of which one line was read.
fn start_with_pipe() -> (Program, BufReader<PipeReader>) {
    let (reader, writer) = io::pipe().unwrap();
    let mut program = Program::spawn(
        Program::command()
            .args(["-l", "127.0.0.1:0"])
            .stdout(writer),
    );
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    program.listens_on(line.trim_end());
    (program, reader)
}

#[test]
fn a_reader_of_stdout_that_leaves_does_not_stop_the_server() {
    within_deadline(|| {
        let (program, reader) = start_with_pipe();
        drop(reader);
        for _ in 0..10 {
            assert_eq!(ask(&program.connect(), "x"), "Got: x");
        }
        let (_, stderr) = program.stop();
        let last = stderr.last().unwrap();
        assert!(last.starts_with("lines of output lost: "), "{last}");
    });
}

#[test]
fn a_reader_of_stdout_that_stops_reading_does_not_stop_the_server() {
    // 64 KiB fit into the pipe and half a megabyte into the program; a connection's lines have more than 60 bytes.
    const CONNECTIONS: usize = 10_000;
    within_deadline(|| {
        let (program, reader) = start_with_pipe();
        for n in 1..=CONNECTIONS {
            let client = program.connect();
            // Now and then, so that the backlog never overflows.
            if n % 100 == 0 {
                assert_eq!(ask(&client, "x"), "Got: x");
            }
            // With a reset, so that no port is left in TIME_WAIT.
            set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        }
        let (_, stderr) = program.stop();
        let printed = reader
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.starts_with("Connection "))
            .count();
        let lost = 2 * CONNECTIONS - printed;
        assert!(lost > 0);
        let last = stderr.last().unwrap();
        assert_eq!(*last, format!("lines of output lost: {lost}"));
    });
}

#[test]
fn a_stderr_that_is_closed_or_full_or_not_read_does_not_stop_the_server_either() {
    let cases = [
        (25020, "exec \"$0\" \"$@\" >&- 2>&-", 20),
        (25021, "exec \"$0\" \"$@\" >/dev/full 2>/dev/full", 20),
        // So often that their lines, on both streams, fill the pipe.
        (25022, "exec \"$0\" \"$@\" 2>&1", 2000),
    ];
    for (port, script, clients) in cases {
        let (_unread, writer) = io::pipe().unwrap();
        let addr = own_addr(port);
        let program = Program::spawn(
            Command::new("sh")
                .args(["-c", script, BINARY, "-l", &addr.to_string()])
                .args(["--max-connections", "1", "--when-full", "reject"])
                .stdout(writer),
        );
        wait_for_listener(addr);
        for _ in 0..clients {
            // A client that was here before may still have its place.
            let served = iter::repeat_with(|| connect(addr)).find(|client| {
                (&mut &*client).write_all(b"x").unwrap();
                !has_ended(client)
            });
            // A line on stderr.
            assert!(has_ended(&connect(addr)), "{script}");
            drop(served);
        }
        program.stop();
    }
}

#[test]
fn help_and_version_go_to_stdout_whether_or_not_somebody_reads_them() {
    let version = format!("tinyloop {}", env!("CARGO_PKG_VERSION"));
    for (arg, text) in [
        ("--help", "--framing"),
        ("-h", "--framing"),
        ("--version", &version),
    ] {
        let (status, stdout, stderr) = outcome(Program::command().arg(arg));
        assert_eq!(status, Some(0), "{arg}");
        assert!(stdout.join("\n").contains(text), "{stdout:?}");
        assert_eq!(stderr, [""; 0], "{arg}");

        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (status, _, stderr) = Program::spawn(Program::command().arg(arg).stdout(writer)).wait();
        assert_eq!(
            (status.code(), stderr.len()),
            (Some(0), 0),
            "{arg}: {stderr:?}"
        );
    }
}

#[test]
fn wrong_usage_is_told_in_one_line_with_what_is_accepted() {
    let long_prefix = "p".repeat(1025);
    let addresses = "PORT, :PORT, IP:PORT, [IP6]:PORT, NAME:PORT or unix:PATH";
    let long_name = format!("no name {}", "x".repeat(5000));
    let cases: [(&[&str], &str); 22] = [
        (&["--listen", "localhost"], addresses),
        (&["--listen=65536"], addresses),
        (&["-l", "1.2.3:4"], addresses),
        (&["-l", ""], addresses),
        (&["--listen"], "--listen"),
        (&["--model", "forked"], "async or threaded or sequential"),
        (&["--framing=word"], "chunk or line"),
        (&["--prefix", &long_prefix], "at most 1024 bytes"),
        (&["--max-connections", "0"], "of 1 or more"),
        (&["--idle-timeout", "soon"], "seconds"),
        (
            &["--model", "threaded", "--max-connections", "5"],
            "--model async",
        ),
        (&["--model=sequential", "--idle-timeout=1"], "--model async"),
        (
            &["-m", "threaded", "--when-full", "reject"],
            "--model async",
        ),
        (&["-m", "threaded", "--stall-timeout", "1"], "--model async"),
        (&["-m", "threaded", "--drain", "1"], "--model async"),
        (
            &["-m", "sequential", "-l", "unix:/nowhere"],
            "--model async",
        ),
        (&["--colour"], "--colour; see tinyloop --help"),
        (&["--lisen", "7"], "did you mean --listen?"),
        (&["--idle-timout=5"], "did you mean --idle-timeout?"),
        (&["-l", &long_name], addresses),
        (&["--log", "xml"], "text or json"),
        (&["-m", "threaded", "--log", "json"], "--model async"),
    ];
    for (args, accepted) in cases {
        let line = only_line_of_failure(Program::command().args(args), 2);
        assert!(line.len() < 500, "{args:?}: {line}");
        assert!(line.contains(accepted), "{args:?}: {line}");
    }
    let not_text = OsString::from_vec(b"--prefix=\xff".to_vec());
    let line = only_line_of_failure(Program::command().arg(not_text), 2);
    assert!(line.contains("UTF-8"), "{line}");
}

#[test]
fn a_name_is_listened_on_at_all_of_its_addresses() {
    let program = Program::start(&["-l", "localhost:0"]);
    ask(&program.connect(), "hello");
    for model in ["async", "threaded"] {
        let args = ["-m", model, "-l", "no-such-host.invalid:25000"];
        let line = only_line_of_failure(Program::command().args(args), 1);
        let start = "cannot listen on no-such-host.invalid:25000: ";
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn an_address_that_cannot_be_had_is_told_in_one_line_with_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let in_use = format!(
        "cannot listen on {taken}: address already in use; another server uses it; choose another port with --listen"
    );
    let cases = [
        (taken.to_string(), in_use.as_str()),
        (taken.port().to_string(), &in_use),
        (
            "192.0.2.1:25000".to_owned(),
            "cannot listen on 192.0.2.1:25000: cannot assign requested address; choose an address of this machine",
        ),
    ];
    for model in ["async", "threaded", "sequential"] {
        for (addr, expected) in &cases {
            let line = only_line_of_failure(Program::command().args(["-m", model, "-l", addr]), 1);
            assert_eq!(line, *expected);
        }
    }

    let monitor_cases = [
        (
            taken.to_string(),
            format!(
                "cannot monitor on {taken}: address already in use; another server uses it; choose another port with --monitor"
            ),
        ),
        (
            "192.0.2.1:1".to_owned(),
            "cannot monitor on 192.0.2.1:1: cannot assign requested address; choose an address of this machine".to_owned(),
        ),
    ];
    for (addr, expected) in monitor_cases {
        let args = ["-l", "127.0.0.1:0", "--monitor", &addr];
        assert_eq!(
            only_line_of_failure(Program::command().args(args), 1),
            expected
        );
    }
}

#[test]
fn an_ipv6_address_that_is_not_whole_is_told_in_one_line_with_a_remedy() {
    if !has_ipv6() {
        return;
    }
    let cases = [
        (
            "[fe80::1]:25000",
            "add the number of an interface (see ip link), such as [fe80::1%2]:25000",
        ),
        ("[::ffff:127.0.0.1]:0", "write it as 127.0.0.1:0"),
        ("[ff02::1]:0", "choose an address of this machine"),
    ];
    for (addr, remedy) in cases {
        let line = only_line_of_failure(Program::command().args(["-l", addr]), 1);
        let expected = format!("cannot listen on {addr}: invalid argument; {remedy}");
        assert_eq!(line, expected);
    }
    let args = ["-l", "127.0.0.1:0", "--monitor", "[fe80::1]:25000"];
    let line = only_line_of_failure(Program::command().args(args), 1);
    assert!(line.ends_with(cases[0].1), "{line}");
}

#[test]
fn a_path_that_cannot_be_had_is_told_in_one_line_with_a_remedy() {
    let directory = TempDir::new("no-path");
    let file = directory.path("file");
    fs::write(&file, "").unwrap();
    let long = |bytes| {
        directory
            .path(&"x".repeat(bytes))
            .to_str()
            .unwrap()
            .to_owned()
    };
    let most = "x".repeat(107 - long(0).len());
    let cases = [
        (
            file.to_str().unwrap().to_owned(),
            "choose another path".to_owned(),
        ),
        (
            format!("{}/socket", file.display()),
            "choose another path".to_owned(),
        ),
        (long(0) + "nowhere/socket", "choose another path".to_owned()),
    ];
    for (path, remedy) in cases {
        let line =
            only_line_of_failure(Program::command().args(["-l", &format!("unix:{path}")]), 1);
        assert!(line.ends_with(&format!("; {remedy}")), "{line}");
    }
    for path in [long(0) + &most + "x", long(300)] {
        let args = ["-l", &format!("unix:{path}")];
        assert_eq!(
            only_line_of_failure(Program::command().args(args), 1),
            format!(
                "cannot listen on a Unix socket: its path has {} bytes, and may have 107 at most",
                path.len()
            )
        );
    }
    let longest = format!("unix:{}{most}", long(0));
    Program::start(&["-l", &longest]).stop();
}

/// What runs a command as a user without rights and without other processes.
pub(crate) fn as_nobody() -> Vec<&'static str> {
    match geteuid().is_root() {
        true => vec![
            "setpriv",
            "--reuid=64321",
            "--regid=64321",
            "--clear-groups",
        ],
        false => vec!["env"],
    }
}

#[test]
#[ignore = "needs setpriv"]
fn a_port_that_needs_rights_is_told_in_one_line_with_a_remedy() {
    let runner = as_nobody();
    let mut command = Command::new(runner[0]);
    let line = only_line_of_failure(
        command
            .args(&runner[1..])
            .args([BINARY, "-l", "127.0.0.1:80"]),
        1,
    );
    assert_eq!(
        line,
        "cannot listen on 127.0.0.1:80: permission denied; choose a port above 1023"
    );
    let mut command = Command::new(runner[0]);
    let command = command.args(&runner[1..]).arg(BINARY);
    let line = only_line_of_failure(command.args(["-l", "127.0.0.1:0", "--monitor", "80"]), 1);
    assert_eq!(
        line,
        "cannot monitor on 127.0.0.1:80: permission denied; choose a port above 1023"
    );
}

/// Runs the program under some limit. Returns whether it listens: then it answers a client. Otherwise it has said in one
/// line why not.
fn listens_under(runner: &[&str], args: &[&str]) -> bool {
    let mut program = Program::spawn(
        Command::new("sh")
            // All in one stream, so that whatever comes next can be waited for.
            .args(["-c", "exec \"$@\" 2>&1", "sh"])
            .args(runner)
            .args([BINARY, "-l", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped()),
    );
    let line = program.stdout_line();
    if line.starts_with("cannot ") {
        let (status, more, _) = program.wait();
        assert_eq!((status.code(), more.len()), (Some(1), 0), "{line} {more:?}");
        return false;
    }
    program.listens_on(&line);
    let client = program.connect();
    assert_eq!(ask(&client, "x"), "Got: x", "{runner:?} {args:?}");
    let (stdout, _) = program.stop();
    assert!(!stdout.concat().contains("panicked at"), "{stdout:?}");
    true
}

#[test]
#[ignore = "needs prlimit"]
fn with_few_descriptors_the_program_listens_or_says_why_not() {
    // With three of them, the system's loader cannot open the libraries.
    let models = ["async", "threaded", "sequential"].map(|model| ["-m", model]);
    for args in models.iter().chain(&[["--monitor", "0"]]) {
        for limit in 4..=24 {
            let listens = listens_under(&["prlimit", &format!("--nofile={limit}")], args);
            if limit == 4 || limit == 24 {
                assert_eq!(listens, limit == 24);
            }
        }
    }
}

#[test]
#[ignore = "needs prlimit and setpriv"]
fn without_the_right_to_start_threads_the_program_says_so() {
    // Whoever is not root may have any number of processes besides this one.
    let limits = if geteuid().is_root() { 0..=6 } else { 0..=0 };
    for model in ["async", "threaded", "sequential"] {
        for limit in limits.clone() {
            let limit_threads = ["prlimit", &format!("--nproc={limit}")];
            let runner = [&as_nobody()[..], &limit_threads].concat();
            let listens = listens_under(&runner, &["-m", model]);
            assert!(limit > 1 || !listens, "{limit}");
        }
    }
}

#[test]
fn sigint_and_sigterm_end_the_program_with_success() {
    for signal in [Signal::INT, Signal::TERM] {
        let program = Program::start(&["-l", "127.0.0.1:0"]);
        let client = program.connect();
        assert_eq!(ask(&client, "x"), "Got: x");
        program.signal(signal);
        let mut rest = Vec::new();
        (&client)
            .read_to_end(&mut rest)
            .expect("ends in an orderly way");
        assert_eq!(program.wait().0.code(), Some(0), "{signal:?}");
    }
}
