//! Handlers that panic, and handlers whose state panics when it is dropped.

use std::future::pending;
use std::io;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use tinyloop::testing::{Connector, Faults, server};
use tinyloop::{Connection, OnPanic, Report, Server, sleep, spawn};

use crate::faults::form;
use crate::server::has_ended;
use crate::support::{Served, ask, in_a_process_of_its_own, run_on_test_clock};

const ROW: &str = "drop panics";

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("while it was dropped");
    }
}

/// Answers, until it is told to panic, or to return with something that panics then.
async fn answer_or_panic(mut connection: Connection) -> io::Result<()> {
    let mut buffer = [0; 100];
    loop {
        let received = connection.read(&mut buffer).await?;
        match &buffer[..received] {
            b"" => return Ok(()),
            b"panic" => panic!("told to"),
            b"drop" => {
                let _bomb = Bomb;
                return Ok(());
            }
            chunk => connection.write_all(&[b"Got: ", chunk].concat()).await?,
        }
    }
}

#[test]
fn one_of_ten_connections_panics_and_all_others_are_answered() {
    let rounds = form(20, 1000);
    // With room for the ten of one round alone: the next would wait for a place that is not given back.
    let served = Served::start(|server| server.max_connections(10), answer_or_panic);
    for round in 0..rounds {
        let mut connections: Vec<_> = (0..10).map(|_| served.connect()).collect();
        let panics = connections.swap_remove(round % 10);
        let how: &[u8] = if round % 2 == 0 { b"panic" } else { b"drop" };
        io::Write::write_all(&mut &panics, how).unwrap();
        assert!(has_ended(&panics));
        for connection in &connections {
            assert_eq!(ask(connection, "still here"), "Got: still here");
        }
    }
    let report = served.stop().unwrap();
    println!("{ROW}: {report}");
    let rounds = rounds as u64;
    assert_eq!((report.accepted, report.panicked), (10 * rounds, rounds));
    assert_eq!(report.completed + report.aborted, 9 * rounds);
}

/// Holds a bomb, if it is told to, and never ends.
async fn hold(mut connection: Connection) -> io::Result<()> {
    let mut first = [0];
    connection.read_exact(&mut first).await?;
    let _bomb = (first == *b"!").then(|| Bomb);
    connection.write_all(b".").await?;
    pending().await
}

/// Ten clients of a server with the handler [`hold`], of whom one lets it hold a bomb.
async fn ten_clients(connector: &Connector) -> Vec<Connection> {
    let mut clients = Vec::new();
    for n in 0..10 {
        let mut client = connector.connect(Faults::none()).unwrap();
        let first = if n == 3 { b"!" } else { b"." };
        client.write_all(first).await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        clients.push(client);
    }
    clients
}

/// Cancels ten connections, at the end of a drain, of which one panics meanwhile.
async fn cancel_ten(configure: impl FnOnce(Server) -> Server) -> io::Result<Report> {
    let (server, connector) = server();
    let (shutdown, shut_down) = smol::channel::bounded::<()>(1);
    let serving = configure(server)
        .drain(Duration::from_secs(5))
        .shutdown_on(async move { shut_down.recv().await.unwrap_or_default() })
        .serve(hold);
    let serving = spawn(serving);
    let mut clients = ten_clients(&connector).await;
    drop(shutdown);
    let report = serving.await;
    for client in &mut clients {
        assert_eq!(
            client.read(&mut [0]).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
    }
    report
}

#[test]
fn a_cancelled_handler_whose_state_panics_is_counted_and_the_others_are_cancelled_as_ever() {
    in_a_process_of_its_own(|| {
        let report = run_on_test_clock(async || cancel_ten(|server| server).await.unwrap());
        assert_eq!((report.panicked, report.aborted), (1, 9), "{report}");
    });
}

#[test]
fn a_panic_of_a_cancelled_handlers_state_comes_out_of_serve_if_that_is_asked_for() {
    in_a_process_of_its_own(|| {
        run_on_test_clock(async || {
            let cancelled = cancel_ten(|server| server.on_panic(OnPanic::Propagate));
            let payload = AssertUnwindSafe(cancelled).catch_unwind().await;
            let payload = payload.expect_err("the panic goes on");
            assert_eq!(payload.downcast_ref(), Some(&"while it was dropped"));
        });
    });
}

#[test]
fn a_server_that_is_dropped_survives_the_panics_of_its_handlers_state() {
    in_a_process_of_its_own(|| {
        run_on_test_clock(async || {
            let (server, connector) = server();
            let serving = spawn(server.serve(hold));
            let mut clients = ten_clients(&connector).await;
            serving.cancel().await;
            for client in &mut clients {
                assert_eq!(
                    client.read(&mut [0]).await.unwrap_err().kind(),
                    io::ErrorKind::ConnectionReset
                );
            }
            // And the loop goes on.
            sleep(Duration::from_secs(1)).await;
        });
    });
}

#[test]
fn a_loop_that_is_dropped_survives_the_panics_of_its_handlers_state() {
    in_a_process_of_its_own(|| {
        run_on_test_clock(async || {
            let (server, connector) = server();
            spawn(server.serve(hold)).detach();
            drop(ten_clients(&connector).await);
        });
    });
}

#[test]
fn a_handler_that_owns_what_panics_in_its_drop_may_be_dropped_with_connections_open() {
    in_a_process_of_its_own(|| {
        run_on_test_clock(async || {
            let (server, connector) = server();
            let bomb = Bomb;
            let serving = spawn(server.serve(async move |connection| {
                let _bomb = &bomb;
                hold(connection).await
            }));
            let clients = ten_clients(&connector).await;
            serving.cancel().await;
            sleep(Duration::from_secs(1)).await;
            drop(clients);
        });
    });
}

#[test]
fn a_plain_task_that_is_cancelled_may_hold_what_panics_in_its_drop() {
    in_a_process_of_its_own(|| {
        run_on_test_clock(async || {
            let bomb = Bomb;
            let task = spawn(async move {
                let _bomb = bomb;
                pending::<()>().await;
            });
            sleep(Duration::from_secs(1)).await;
            task.cancel().await;
        });
    });
}
