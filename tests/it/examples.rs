//! The examples, as somebody would run them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::iter;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_rustls::rustls::pki_types::pem::PemObject;
use futures_rustls::rustls::pki_types::{CertificateDer, ServerName};
use futures_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::Signal;

use crate::support::{DEADLINE, Program, TempDir, ask, connect, read_to_end, read_to_reset};

/// Runs an example that listens.
fn start(example: &str) -> Program {
    Program::start_command(Program::example(example).arg("127.0.0.1:0"))
}

#[test]
fn the_echo_server_answers_and_ends_in_an_orderly_way() {
    let program = start("echo_server");
    let client = program.connect();
    assert_eq!(ask(&client, "hello"), "Got: hello");
    program.signal(Signal::INT);
    assert_eq!(read_to_end(&client), b"");
    program.ends_well("accepted 1, completed 1, ");
}

#[test]
fn the_example_with_workers_serves_with_several_processes_until_a_signal() {
    for signal in [Signal::INT, Signal::TERM] {
        let program = start("workers");
        let clients: Vec<_> = (0..10).map(|_| program.connect()).collect();
        for client in &clients {
            assert_eq!(ask(client, "hello"), "Got: hello");
        }
        program.signal(signal);
        for client in &clients {
            assert_eq!(read_to_end(client), b"");
        }
        let (status, ..) = program.wait();
        assert!(status.success());
    }
}

#[test]
fn an_example_says_why_it_cannot_listen() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for example in ["echo_server", "chat", "tls_echo"] {
        let mut command = Program::example(example);
        let (status, _, stderr) = Program::spawn(command.arg(&addr)).wait();
        assert_eq!(status.code(), Some(1));
        let reason = format!("cannot listen on {addr}: address already in use");
        assert!(stderr[0].contains(&reason), "{stderr:?}");
    }
}

/// Somebody in the chat.
struct Guest {
    number: u64,
    lines: BufReader<TcpStream>,
}

impl Guest {
    /// Enters the chat, where so many others are.
    fn enter(addr: SocketAddr, others: usize) -> Guest {
        Guest::enter_with(connect(addr), others)
    }

    fn enter_with(stream: TcpStream, others: usize) -> Guest {
        let mut guest = Guest {
            number: 0,
            lines: BufReader::new(stream),
        };
        let greeting = guest.hear();
        let number = greeting
            .strip_prefix("* you are ")
            .and_then(|rest| rest.strip_suffix(&format!(", and {others} others are here")));
        guest.number = number.expect(&greeting).parse().unwrap();
        guest
    }

    fn say(&mut self, line: &[u8]) {
        self.lines.get_mut().write_all(line).unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("hears something");
        assert_eq!(line.pop(), Some('\n'), "a whole line");
        line
    }

    fn is_told(&mut self, line: &str) {
        assert_eq!(self.hear(), line);
    }
}

#[test]
fn the_chat_passes_lines_on_to_all_others() {
    let program = start("chat");
    let mut ann = Guest::enter(program.addr(), 0);
    let mut bob = Guest::enter(program.addr(), 1);
    ann.is_told(&format!("* {} is here", bob.number));
    let mut cid = Guest::enter(program.addr(), 2);
    for guest in [&mut ann, &mut bob] {
        guest.is_told(&format!("* {} is here", cid.number));
    }

    ann.say(b"good ");
    ann.say(b"morning\nhow are you?\r\n");
    for guest in [&mut bob, &mut cid] {
        guest.is_told(&format!("{}: good morning", ann.number));
        guest.is_told(&format!("{}: how are you?", ann.number));
    }
    // What ann hears next is not her own.
    bob.say("fine, \u{1f642}\n".as_bytes());
    ann.is_told(&format!("{}: fine, \u{1f642}", bob.number));
    cid.is_told(&format!("{}: fine, \u{1f642}", bob.number));

    let left = format!("* {} has left", bob.number);
    drop(bob);
    ann.is_told(&left);
    cid.is_told(&left);
    let dan = Guest::enter(program.addr(), 2).number;
    // The chat knows that dan has left. Otherwise the farewells of the others would be written to a closed connection.
    for news in ["is here", "has left"] {
        ann.is_told(&format!("* {dan} {news}"));
    }

    program.signal(Signal::TERM);
    let (status, _, stderr) = program.wait();
    assert!(status.success(), "{stderr:?}");
    assert!(
        stderr[0].starts_with("accepted 4, completed 4, "),
        "{stderr:?}"
    );
}

#[test]
fn the_chat_passes_nothing_on_that_harms_a_terminal() {
    let program = start("chat");
    let mut ann = Guest::enter(program.addr(), 0);
    let mut bob = Guest::enter(program.addr(), 1);
    let mut all_bytes: Vec<u8> = (0..=255).filter(|&byte| byte != b'\n').collect();
    // C1 controls, in UTF-8.
    all_bytes.extend("\u{9b}2J\u{85}".as_bytes());
    all_bytes.push(b'\n');
    ann.is_told(&format!("* {} is here", bob.number));
    ann.say(&all_bytes);
    let heard = bob.hear();
    assert!(heard.starts_with(&format!("{}: ", ann.number)));
    assert!(heard.contains("ABC"));
    assert!(!heard.contains(char::is_control), "{heard:?}");
    // Without an end, a line comes in pieces.
    ann.say(&[b'x'; 1024]);
    bob.is_told(&format!("{}: {}", ann.number, "x".repeat(1024)));
}

#[test]
fn whoever_reads_all_the_time_misses_no_line_of_a_long_text() {
    const LINES: u32 = 5000;
    let program = start("chat");
    let mut ann = Guest::enter(program.addr(), 0);
    let mut bob = Guest::enter(program.addr(), 1);
    let text: String = (0..LINES).map(|n| format!("line {n}\n")).collect();
    ann.say(text.as_bytes());
    for n in 0..LINES {
        bob.is_told(&format!("{}: line {n}", ann.number));
    }
}

/// Connects with a receive buffer as small as the system has it.
fn with_a_small_window(addr: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    set_socket_recv_buffer_size(&socket, 1).unwrap();
    rustix::net::connect(&socket, &addr).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn somebody_who_does_not_read_does_not_hold_up_the_chat() {
    const LINES: usize = 3000;
    let program = start("chat");
    let mut deaf = Guest::enter_with(with_a_small_window(program.addr()), 0);
    let mut ann = Guest::enter(program.addr(), 1);
    let mut bob = Guest::enter(program.addr(), 2);
    ann.is_told(&format!("* {} is here", bob.number));
    let text = "x".repeat(1000);
    // Three megabytes are more than the queue and the sockets hold.
    for _ in 0..LINES {
        ann.say(format!("{text}\n").as_bytes());
        bob.is_told(&format!("{}: {text}", ann.number));
    }
    let last_words = "can you hear me?";
    ann.say(format!("{last_words}\n").as_bytes());
    bob.is_told(&format!("{}: {last_words}", ann.number));

    for guest in [ann.number, bob.number] {
        deaf.is_told(&format!("* {guest} is here"));
    }
    // Now it reads what there is, until it hears something new again.
    let again = format!("{}: and now?", ann.number);
    let mut heard = 0;
    loop {
        ann.say(b"and now?\n");
        if deaf.hear() == again {
            break;
        }
        heard += 1;
    }
    assert!((1..LINES).contains(&heard), "{heard} lines");
}

#[test]
fn the_port_checker_tells_open_from_closed_and_silent() {
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&open, 1000).unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent_listener();
    let addr_of = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let [open_addr, closed_addr, silent_addr] = [&open, &closed, &silent.0].map(addr_of);
    drop(closed);

    let check = |targets: &[&String]| {
        let mut command = Program::example("port_checker");
        Program::spawn(command.args(targets).stdout(Stdio::piped())).wait()
    };
    let (status, stdout, _) = check(&[&silent_addr, &open_addr, &closed_addr]);
    assert_eq!(status.code(), Some(1));
    assert_eq!(stdout.len(), 3);
    assert!(
        stdout[..2].contains(&format!("{open_addr} open")),
        "{stdout:?}"
    );
    assert!(
        stdout[..2].contains(&format!("{closed_addr} closed")),
        "{stdout:?}"
    );
    assert_eq!(
        stdout[2],
        format!("{silent_addr} timed out"),
        "as it finishes"
    );

    let (status, stdout, _) = check(&[&open_addr; 300]);
    assert_eq!(status.code(), Some(0), "all are open");
    assert_eq!(stdout.len(), 300);

    let (status, stdout, stderr) = check(&[]);
    assert_eq!((status.code(), stdout.len()), (Some(2), 0));
    assert_eq!(stderr, ["usage: port_checker HOST:PORT..."]);
}

/// A listener whose queue is full, so that the system does not answer another connection; and what fills it.
fn silent_listener() -> (TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let addr = listener.local_addr().unwrap();
    let queued =
        iter::from_fn(|| TcpStream::connect_timeout(&addr, Duration::from_millis(200)).ok());
    let queued = queued.collect();
    (listener, queued)
}

#[test]
fn the_periodic_tool_ticks_and_answers_signals() {
    let directory = TempDir::new("periodic");
    for file in ["one", "two", "three"] {
        fs::write(directory.path(file), "").unwrap();
    }
    let mut command = Program::example("periodic");
    command.arg("0.01").current_dir(directory.path(""));
    let program = Program::spawn(command.stdout(Stdio::piped()));
    for tick in 1..=3 {
        assert_eq!(program.stdout_line(), format!("tick {tick}: 3 files"));
    }
    program.signal(Signal::USR1);
    let (ticks, missed) = progress(&program);
    assert!(ticks >= 3);

    // While it is stopped, ticks of another one go by.
    program.signal(Signal::STOP);
    let mut clock = Program::example("periodic");
    let clock = Program::spawn(clock.arg("0.1").stdout(Stdio::piped()));
    for _ in 0..3 {
        clock.stdout_line();
    }
    program.signal(Signal::CONT);
    // Until it has ticked again, and knows what it has missed.
    let start = Instant::now();
    let missed_meanwhile = loop {
        assert!(start.elapsed() < DEADLINE);
        program.signal(Signal::USR1);
        match progress(&program).1 - missed {
            0..20 => {}
            missed => break missed,
        }
    };
    assert!(missed_meanwhile >= 20, "{missed_meanwhile}");

    program.signal(Signal::TERM);
    let (status, stdout, stderr) = program.wait();
    assert_eq!(status.code(), Some(0), "{stderr:?}");
    // A tick that is still being written may come behind it.
    let goodbye = |line: &String| line.starts_with("goodbye after ");
    assert!(stdout.iter().any(goodbye), "{stdout:?}");
    clock.signal(Signal::INT);
    let (status, ..) = clock.wait();
    assert_eq!(status.code(), Some(0));
}

/// The ticks and the missed ones, as the tool says after SIGUSR1.
fn progress(program: &Program) -> (u64, u64) {
    loop {
        let line = program.stdout_line();
        if let Some((ticks, missed)) = line.split_once(" ticks, ") {
            let missed = missed.strip_suffix(" missed").unwrap();
            return (ticks.parse().unwrap(), missed.parse().unwrap());
        }
        assert!(line.starts_with("tick "), "{line}");
    }
}

#[test]
fn the_periodic_tool_refuses_a_period_that_is_none() {
    for period in ["never", "0", "-1", "NaN", "1e99", "0.0009"] {
        let mut command = Program::example("periodic");
        let (status, _, stderr) = Program::spawn(command.arg(period)).wait();
        assert_eq!(status.code(), Some(2), "{period}");
        assert_eq!(stderr, ["usage: periodic [SECONDS], from 0.001 on"]);
    }
}

/// A TLS client that trusts the certificate which the example prints.
fn connect_tls(program: &Program, certificate: &str) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    roots.add(certificate).unwrap();
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(client, program.connect())
}

#[test]
fn the_tls_server_answers_and_says_goodbye() {
    let program = start("tls_echo");
    let mut certificate = String::new();
    while !certificate.contains("END CERTIFICATE") {
        certificate.push_str(&program.stdout_line());
        certificate.push('\n');
    }

    let mut client = connect_tls(&program, &certificate);
    for message in ["hello", &"x".repeat(9_000)] {
        client.write_all(message.as_bytes()).unwrap();
        let mut reply = vec![0; "Got: ".len() + message.len()];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(reply, format!("Got: {message}").as_bytes());
    }
    client.conn.send_close_notify();
    client.flush().unwrap();
    // An end without a goodbye would be an error.
    assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 0);

    // Somebody who speaks no TLS ends their own connection only.
    let mut stranger = program.connect();
    stranger.write_all(b"hello\n").unwrap();
    let alert = read_to_reset(&stranger);
    assert_eq!(alert.first(), Some(&21), "an alert of TLS: {alert:?}");

    let mut open = connect_tls(&program, &certificate);
    open.write_all(b"still there?").unwrap();
    open.read_exact(&mut [0; 17]).unwrap();
    program.signal(Signal::TERM);
    assert_eq!(open.read_to_end(&mut Vec::new()).unwrap(), 0);
    program.ends_well("accepted 3, completed 2, failed 1, ");
}
