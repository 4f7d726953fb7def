//! The examples that speak HTTP and WebSocket, with clients that are not ours.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Program, has_ipv6, read_to_end};

/// Runs an example that listens.
fn start(example: &str) -> Program {
    Program::start_command(Program::example(example).arg("127.0.0.1:0"))
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

fn curl(program: &Program, arguments: &[&str], path: &str) -> String {
    let url = format!("http://{}{path}", program.addr());
    let output = run(Command::new("curl")
        .args(["-sS", "--max-time", "20"])
        .args(arguments)
        .arg(url));
    String::from_utf8(output.stdout).unwrap()
}

/// Sends a request on a connection that is kept alive, and returns the reply's head and body.
fn request(stream: &TcpStream, path: &str, body: &str) -> (String, String) {
    let length = body.len();
    write!(
        &*stream,
        "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(
            reader.read_line(&mut head).unwrap() > 0,
            "ends in the head: {head:?}"
        );
    }
    let length = head.to_lowercase();
    let length = length
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn the_http_server_keeps_a_connection_alive_and_closes_idle_ones_when_it_ends() {
    let program = start("http");
    let client = program.connect();
    for text in ["hello", "good morning", ""] {
        let (head, body) = request(&client, "/echo", text);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(body, text);
    }
    program.signal(Signal::TERM);
    assert_eq!(read_to_end(&client), b"");
    program.ends_well("accepted 1, completed 1, ");
}

#[test]
fn the_http_client_gets_a_body_as_it_comes_from_the_http_server() {
    let program = start("http");
    let url = format!("http://{}/ticks", program.addr());
    let client = Program::spawn(
        Program::example("http_client")
            .arg(url)
            .stdout(Stdio::piped()),
    );
    let first = client.stdout_line();
    assert!(first.starts_with("Instant"), "{first}");
    // The body is under way, and the server finishes it.
    program.signal(Signal::TERM);
    let (status, lines, _) = client.wait();
    assert!(status.success());
    assert_eq!(lines.len(), 9);
    program.ends_well("accepted 1, completed 1, ");
}

#[test]
fn the_http_client_knows_ipv6_addresses_and_sends_nothing_that_should_be_encrypted() {
    if !has_ipv6() {
        return;
    }
    let program = Program::start_command(Program::example("http").arg("[::1]:0"));
    let output = run(Program::example("http_client").arg(format!("http://{}/", program.addr())));
    assert_eq!(output.stdout, b"hello\n");
    for scheme in ["https://", ""] {
        let url = format!("{scheme}{}/", program.addr());
        let output = Program::example("http_client").arg(url).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    program.signal(Signal::TERM);
    program.ends_well("accepted 1, completed 1, ");
}

#[test]
#[ignore = "needs curl"]
fn curl_gets_what_the_http_server_has_in_both_versions() {
    let program = start("http");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        assert_eq!(curl(&program, &[version], "/"), "hello\n");
        let body = "x".repeat(100_000);
        assert_eq!(curl(&program, &[version, "-d", &body], "/echo"), body);
        assert_eq!(curl(&program, &[version], "/ticks").lines().count(), 10);
        let version = curl(
            &program,
            &[version, "-w", "%{http_version}", "-o", "/dev/null"],
            "/",
        );
        assert!(["1.1", "2"].contains(&version.as_str()), "{version}");
    }
    let (_, stderr) = program.stop();
    assert!(
        stderr[0].starts_with("accepted 8, completed 8, "),
        "{stderr:?}"
    );
}

#[test]
#[ignore = "needs h2load"]
fn h2load_loses_no_request_on_a_hundred_streams() {
    let program = start("http");
    for protocol in [&["-m", "10"][..], &["--h1"][..]] {
        let mut command = Command::new("h2load");
        command.args(["-n", "20000", "-c", "10"]).args(protocol);
        let output = run(command.arg(format!("http://{}/", program.addr())));
        let output = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"),
            "{output}"
        );
    }
    program.stop();
}

/// A client of Python's `websockets`: many connections at once, each with a text, a large message and a clean end.
const WEBSOCKET_CLIENT: &str = r#"
import asyncio, sys, websockets
async def client(number):
    async with websockets.connect(sys.argv[1], max_size=None, compression=None) as socket:
        for message in ["hello", "\u00fcmlaut", b"\x00\xff" * 500_000, str(number)]:
            await socket.send(message)
            assert await socket.recv() == message
        await (await socket.ping())
async def main():
    await asyncio.gather(*(client(number) for number in range(50)))
    async with websockets.connect(sys.argv[1]) as socket:
        print("open", flush=True)
        try:
            await socket.recv()
        except websockets.ConnectionClosed as closed:
            print(closed.rcvd.code, flush=True)
asyncio.run(main())
"#;

#[test]
#[ignore = "needs python3-websockets"]
fn fifty_websocket_clients_get_their_messages_back_and_the_shutdown_tells_the_one_that_stays() {
    let server = start("websocket");
    let url = format!("ws://{}", server.addr());
    let mut python = Command::new("/usr/bin/python3");
    let client = Program::spawn(
        python
            .args(["-c", WEBSOCKET_CLIENT, &url])
            .stdout(Stdio::piped()),
    );
    assert_eq!(
        client.try_stdout_line().as_deref(),
        Some("open"),
        "{:?}",
        client.printed()
    );
    server.signal(Signal::TERM);
    assert_eq!(client.stdout_line(), "1001", "going away");
    assert!(client.wait().0.success());
    server.ends_well("accepted 51, completed 51, ");
}

#[test]
fn a_websocket_handshake_by_hand_is_answered_and_one_that_never_comes_is_given_up() {
    let program = start("websocket");
    let client = program.connect();
    let handshake = "GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    (&client).write_all(handshake.as_bytes()).unwrap();
    let mut reader = BufReader::new(&client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(
            reader.read_line(&mut head).unwrap() > 0,
            "ends in the head: {head:?}"
        );
    }
    // The answer to the key of RFC 6455.
    assert!(
        head.to_lowercase()
            .contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"),
        "{head}"
    );
    // "Hello" as the RFC masks it, and as it comes back.
    (&client)
        .write_all(&[
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ])
        .unwrap();
    let mut message = [0; 7];
    reader.read_exact(&mut message).unwrap();
    assert_eq!(&message, b"\x81\x05Hello");

    let start = Instant::now();
    let silent = program.connect();
    let ended = (&silent).read(&mut [0]);
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    assert!(start.elapsed() >= Duration::from_secs(5));
}
