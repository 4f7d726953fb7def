//! Handlers that panic or fail, and peers that break off.

use std::io;
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use rustix::net::sockopt::set_socket_linger;
use tinyloop::{Connection, OnPanic, Server};

use crate::process::processor_time;
use crate::server::{has_ended, observed};
use crate::support::{Program, Served, ask, connect, exchange, next, within_deadline};

/// Answers, and panics or fails when it is told to.
async fn obey(mut connection: Connection) -> io::Result<()> {
    let mut buffer = [0; 100];
    loop {
        let received = connection.read(&mut buffer).await?;
        match &buffer[..received] {
            b"" => return Ok(()),
            b"panic" => panic!("told to"),
            b"fail" => return Err(io::Error::other("told to")),
            chunk => connection.write_all(&[b"Got: ", chunk].concat()).await?,
        }
    }
}

/// Tells one of ten connections to do so, ten times, on a server which has room for ten. All others are answered.
fn tell_one_of_ten(served: &Served, to: &str) {
    for _ in 0..10 {
        let mut connections: Vec<_> = (0..10).map(|_| served.connect()).collect();
        let ended = connections.swap_remove(3);
        io::Write::write_all(&mut &ended, to.as_bytes()).unwrap();
        assert!(has_ended(&ended));
        for connection in &connections {
            assert_eq!(ask(connection, "still here"), "Got: still here");
        }
    }
}

#[test]
fn a_panicking_handler_ends_its_own_connection_only() {
    let served = Served::start(|server| server.max_connections(10), obey);
    tell_one_of_ten(&served, "panic");
    let report = served.stop().unwrap();
    assert_eq!((report.accepted, report.panicked), (100, 10));
    assert_eq!(report.completed + report.aborted, 90);
}

#[test]
fn a_failing_handler_ends_its_own_connection_only() {
    let (served, events) = observed(|server| server.max_connections(10), obey);
    tell_one_of_ten(&served, "fail");
    let report = served.stop().unwrap();
    assert_eq!((report.accepted, report.failed), (100, 10));
    let failed = events
        .try_iter()
        .filter(|line| line.contains(": failed: told to, bytes in 4, bytes out 0"));
    assert_eq!(failed.count(), 10);
}

#[test]
fn a_handlers_panic_comes_out_of_serve_if_that_is_asked_for() {
    let (tell_addr, addr) = mpsc::channel();
    let thread = thread::spawn(move || {
        tinyloop::run(async {
            let server = Server::bind("127.0.0.1:0")
                .await?
                .on_panic(OnPanic::Propagate);
            tell_addr
                .send(server.local_addrs()[0].tcp().unwrap())
                .unwrap();
            server.serve(obey).await
        })
    });
    let addr = next(&addr);
    let (other, panics) = (connect(addr), connect(addr));
    assert_eq!(ask(&other, "first"), "Got: first");
    io::Write::write_all(&mut &panics, b"panic").unwrap();
    assert!(has_ended(&panics));
    drop(panics);
    assert!(has_ended(&other));
    let payload = within_deadline(|| thread.join().unwrap_err());
    assert_eq!(payload.downcast_ref(), Some(&"told to"));
}

#[test]
fn an_end_and_then_a_reset_during_a_write_end_their_own_connection_only() {
    const PEERS: usize = 20;
    // A byte asks for a kilobyte. So all of a peer's input, with its end, is here long before its reply is sent.
    let prefix = "p".repeat(1024);
    let args = ["-q", "-l", "127.0.0.1:0", "--framing", "line", "--prefix"];
    let program = Program::start(&[&args[..], &[&prefix]].concat());
    let bystander = program.connect();
    let still_here = || exchange(&bystander, b".\n", format!("{prefix}.\n").as_bytes());
    for _ in 0..PEERS {
        let peer = program.connect();
        io::Write::write_all(&mut &peer, &[b'\n'; 10_000]).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        io::Read::read_exact(&mut &peer, &mut [0; 1024]).unwrap();
        still_here();
        set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
        drop(peer);
        still_here();
    }
    let before = processor_time(program.pid());
    let pause = Duration::from_millis(500);
    thread::sleep(pause);
    let used = processor_time(program.pid()) - before;
    assert!(used < pause / 10, "{used:?} of {pause:?}");

    drop(bystander);
    let (_, stderr) = program.stop();
    let counts = format!("accepted {}, completed 1, failed {PEERS}, ", PEERS + 1);
    // Before it may stand that the server drains: the signal can come before the bystander's end.
    assert!(stderr.last().unwrap().starts_with(&counts), "{stderr:?}");
}
