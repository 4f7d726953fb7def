//! `/health` for balancers, and the lame duck before the drain.

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use rustix::process::Signal;
use smol::channel::{self, Sender};
use tinyloop::testing::{Faults, server};
use tinyloop::{Connection, Server, WhenFull, monitor, sleep, spawn, unblock};

use crate::monitor::{ask_monitor, get};
use crate::support::{
    DEADLINE, Program, ask, connect, echo, hang_up, next, read_to_end, run_on_test_clock, wait_for,
    within_deadline,
};

/// The status and the body of `GET /health`.
fn health(monitor: SocketAddr) -> (String, String) {
    let (status, _, body) = get(monitor, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    (status.replace("HTTP/1.1 ", ""), body)
}

/// Asks until the status is `status`. Returns the body.
fn health_until(monitor: SocketAddr, status: &str) -> String {
    wait_for(status, || {
        let (found, body) = health(monitor);
        (found == status).then_some(body)
    })
}

const OK: &str = "200 OK";
const UNAVAILABLE: &str = "503 Service Unavailable";

/// A server of the library's with a monitor, in a thread of its own.
struct Watched {
    addr: SocketAddr,
    monitor: SocketAddr,
    shutdown: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watched {
    /// Serves echo connections until they close. Afterwards the loop goes on until `end` is told.
    fn start(configure: impl FnOnce(Server) -> Server + Send + 'static) -> (Watched, Sender<()>) {
        let (tell, told) = mpsc::channel();
        let (shutdown, shut_down) = channel::bounded::<()>(1);
        let (end, has_ended) = channel::bounded::<()>(1);
        let thread = thread::spawn(move || {
            tinyloop::run(async {
                let monitor = monitor::serve((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let server = Server::bind("127.0.0.1:0").await.unwrap();
                let addr = server.local_addrs()[0].tcp().unwrap();
                let shut_down = async move { shut_down.recv().await.unwrap_or_default() };
                let server = configure(server).shutdown_on(shut_down).drain(DEADLINE);
                let serving = spawn(server.serve(async |mut connection| {
                    let mut byte = [0];
                    while connection.read(&mut byte).await? > 0 {}
                    Ok(())
                }));
                tell.send((addr, monitor.local_addr())).unwrap();
                serving.await.unwrap();
                has_ended.recv().await.unwrap_err();
            });
        });
        let (addr, monitor) = next(&told);
        let watched = Watched {
            addr,
            monitor,
            shutdown,
            thread,
        };
        (watched, end)
    }
}

#[test]
fn health_is_ok_while_the_server_accepts_and_names_the_drain_when_it_does_not() {
    let (watched, end) = Watched::start(|server| server);
    let Watched { addr, monitor, .. } = watched;
    assert_eq!(health_until(monitor, OK), "ok\n");
    assert_eq!(ask_monitor(monitor, "health"), "ok\n");
    // A full server lets more wait: they are welcome.
    let open = connect(addr);
    assert_eq!(health(monitor).0, OK);

    watched.shutdown.close();
    let reason = format!("server {addr} is draining\n");
    assert_eq!(health_until(monitor, UNAVAILABLE), reason);
    assert_eq!(ask_monitor(monitor, "health"), reason);
    drop(open);
    while health(monitor).1 != "no server is running\n" {}
    assert_eq!(health(monitor).0, UNAVAILABLE);
    end.close();
    within_deadline(|| watched.thread.join().unwrap());
}

#[test]
fn health_may_be_asked_with_head_and_again_on_the_same_connection() {
    let (watched, end) = Watched::start(|server| server);
    health_until(watched.monitor, OK);
    let mut stream = connect(watched.monitor);
    let head = "HEAD /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    stream.write_all(head.repeat(2).as_bytes()).unwrap();
    // As HAProxy asks unless it is told otherwise: without a host.
    stream.write_all(b"OPTIONS / HTTP/1.0\r\n\r\n").unwrap();
    let answers = String::from_utf8(read_to_end(&stream)).unwrap();
    let statuses: Vec<&str> = answers
        .lines()
        .filter(|line| line.starts_with("HTTP"))
        .collect();
    let refused = "HTTP/1.1 405 Method Not Allowed";
    assert_eq!(statuses, ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK", refused]);
    assert_eq!(answers.matches("Content-Length: 3\r\n").count(), 2);
    assert!(!answers.contains("\r\n\r\nok"), "{answers}");
    drop(end);
    watched.shutdown.close();
    within_deadline(|| watched.thread.join().unwrap());
}

#[test]
fn health_names_a_full_server_that_rejects_and_no_other() {
    for when_full in [WhenFull::Reject, WhenFull::Wait] {
        let (watched, end) =
            Watched::start(move |server| server.max_connections(2).when_full(when_full));
        let Watched { addr, monitor, .. } = watched;
        health_until(monitor, OK);
        let first = connect(addr);
        let second = connect(addr);
        match when_full {
            WhenFull::Reject => {
                let reason = format!("server {addr} is full\n");
                assert_eq!(health_until(monitor, UNAVAILABLE), reason);
            }
            WhenFull::Wait => {
                let is_full = || ask_monitor(monitor, "stats").contains("open              2\n");
                wait_for("the second connection", || is_full().then_some(()));
                assert_eq!(health(monitor).0, OK);
            }
        }
        // Nobody comes, and it is known all the same that there is room.
        drop(first);
        assert_eq!(health_until(monitor, OK), "ok\n");
        drop((second, end));
        watched.shutdown.close();
        within_deadline(|| watched.thread.join().unwrap());
    }
}

#[test]
fn health_knows_of_a_place_that_is_free_while_the_last_reply_is_under_way() {
    let (tell, told) = mpsc::channel();
    let (has_written, written) = mpsc::channel();
    let monitored = crate::monitor::Monitored::start(async move || {
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        let server = server.max_connections(1).when_full(WhenFull::Reject);
        tell.send(server.local_addrs()[0].tcp().unwrap()).unwrap();
        let handler = async move |mut connection: Connection| {
            connection.read(&mut [0]).await?;
            // More than the peer's window, and less than what the system holds for it.
            connection.write_all(&[b'x'; 200_000]).await?;
            has_written.send(()).map_err(io::Error::other)
        };
        spawn(server.serve(handler)).detach();
    });
    let mut client = connect(next(&told));
    health_until(monitored.addr, UNAVAILABLE);
    client.write_all(b"!").unwrap();
    next(&written);
    assert_eq!(health_until(monitored.addr, OK), "ok\n");
    // It has not ended: nobody has read the reply.
    assert!(monitored.ask("stats").contains("open              1\n"));
}

#[test]
fn health_names_the_task_that_has_blocked_the_loop_for_five_seconds() {
    let (unblock_loop, blocked) = mpsc::channel::<()>();
    let monitored = crate::monitor::Monitored::start(async || {
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        spawn(server.serve(echo)).detach();
        tinyloop::spawn_named("long", async move {
            // Once the monitor has seen the loop well.
            unblock(|| thread::sleep(Duration::from_millis(100))).await;
            blocked.recv().unwrap_err();
        })
        .detach();
    });
    // A test that fails ends the loop, which waits for this.
    let unblock_loop = unblock_loop;
    let start = Instant::now();
    assert_eq!(health_until(monitored.addr, OK), "ok\n");
    let reason = health_until(monitored.addr, UNAVAILABLE);
    assert!(start.elapsed() >= Duration::from_secs(5), "{reason}");
    assert!(reason.contains("(long, spawned at "), "{reason}");
    assert!(
        reason.contains(") has blocked the event loop for "),
        "{reason}"
    );
    drop(unblock_loop);
    assert_eq!(health_until(monitored.addr, OK), "ok\n");
}

#[test]
fn a_lame_duck_accepts_for_its_time_and_then_drains() {
    const DUCK: Duration = Duration::from_secs(10);
    run_on_test_clock(async || {
        let monitor = monitor::serve((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let monitor = monitor.local_addr();
        let (server, connector) = server();
        let (shutdown, shut_down) = channel::bounded::<()>(1);
        let lines = Rc::new(RefCell::new(Vec::new()));
        let observed = lines.clone();
        let server = server
            .lame_duck(DUCK)
            .drain(Duration::from_secs(5))
            .shutdown_on(async move { shut_down.recv().await.unwrap_or_default() })
            .observe(move |event| observed.borrow_mut().push(event.to_string()));
        let serving = spawn(server.serve(async |connection| {
            connection.closing().await;
            Ok(())
        }));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(health(monitor).0, OK);

        let early = connector.connect(Faults::none()).unwrap();
        let start = tinyloop::now();
        shutdown.close();
        sleep(Duration::from_millis(1)).await;
        assert!(
            health(monitor)
                .1
                .ends_with(" is about to drain (lame duck)\n")
        );
        // The last moment of it.
        sleep(DUCK - Duration::from_millis(2)).await;
        assert!(!early.is_closing());
        assert_eq!(health(monitor).0, UNAVAILABLE);
        let late = connector.connect(Faults::none()).unwrap();
        sleep(Duration::from_millis(2)).await;
        assert!(connector.connect(Faults::none()).is_err());
        drop((early, late));
        let report = serving.await.unwrap();
        assert_eq!(report.completed, 2);
        assert!(tinyloop::now() - start < DUCK + Duration::from_secs(5));
        let lines = lines.take();
        assert_eq!(
            lines[1],
            "still accepting for 10.0s (lame duck), then draining"
        );
        assert!(
            lines[3].starts_with("draining for at most 5.0s, open connections: 2"),
            "{lines:?}"
        );
    });
}

/// The program as a lame duck for so long, with a monitor.
fn program(seconds: &str) -> (Program, SocketAddr) {
    let program = Program::start(&[
        "-l",
        "127.0.0.1:0",
        "--monitor",
        "0",
        "--lame-duck",
        seconds,
    ]);
    let line = program.stdout_line();
    let monitor = line
        .strip_prefix("monitor on ")
        .expect(&line)
        .parse()
        .unwrap();
    health_until(monitor, OK);
    (program, monitor)
}

#[test]
fn the_program_accepts_as_a_lame_duck_and_says_so() {
    let (program, monitor) = program("1.5");
    let start = Instant::now();
    program.signal(Signal::TERM);
    let line = "still accepting for 1.5s (lame duck), then draining";
    assert_eq!(program.stderr_line(), line);
    let reason = format!("server {} is about to drain (lame duck)\n", program.addr());
    assert_eq!(health(monitor), (UNAVAILABLE.to_owned(), reason));
    let client = program.connect();
    assert_eq!(ask(&client, "hello"), "Got: hello");
    hang_up(client);
    program.ends_well("accepted 1, completed 1, ");
    assert!(start.elapsed() >= Duration::from_millis(1500));
}

#[test]
fn a_second_signal_ends_a_lame_duck_at_once() {
    let (program, _) = program("3600");
    program.signal(Signal::TERM);
    program.stderr_line();
    let client = program.connect();
    assert_eq!(ask(&client, "hello"), "Got: hello");
    client.shutdown(Shutdown::Write).unwrap();
    let status: ExitStatus = program.signal_until_end(Signal::TERM);
    assert_eq!(status.code(), Some(128 + 15));
}
