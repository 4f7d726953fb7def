//! Who is idle, who is stalled, and from when on the time counts.

use std::future::pending;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use futures_lite::future::or;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use rustix::process::Signal;
use tinyloop::testing::{self, Faults};
use tinyloop::{CloseReason, Connection, Event, EventLoop, Server, now, sleep, spawn, timeout};

use crate::server::has_ended;
use crate::support::{
    Program, Served, ask, connect, echo, hang_up, next, read_to_end, run_on_test_clock,
    the_machine, within_deadline,
};

const IDLE: Duration = Duration::from_millis(400);

/// Serves `handler` with an idle timeout, and tells why each connection was closed, and how long it was open.
fn told<H>(handler: H) -> (Served, Receiver<(String, Duration)>)
where
    H: AsyncFn(Connection) -> io::Result<()> + Send + 'static,
{
    let (tell, told) = mpsc::channel();
    let observe = move |event: &Event<'_>| {
        if let Event::Closed {
            reason, duration, ..
        } = event
        {
            tell.send((reason.to_string(), *duration))
                .unwrap_or_default();
        }
    };
    (
        Served::start(|server| server.idle_timeout(IDLE).observe(observe), handler),
        told,
    )
}

#[test]
fn a_handler_that_computes_for_longer_than_the_idle_timeout_keeps_its_connection() {
    let _machine = the_machine();
    let served = Served::start(
        |server| server.idle_timeout(IDLE),
        async |mut connection| {
            let mut byte = [0];
            while connection.read(&mut byte).await? > 0 {
                thread::sleep(IDLE * 3 / 2);
                connection.write_all(&byte).await?;
            }
            Ok(())
        },
    );
    let client = served.connect();
    for _ in 0..3 {
        let mut reply = [0];
        (&client).write_all(b"x").unwrap();
        (&client).read_exact(&mut reply).unwrap();
        // Half of the timeout is left at least.
        thread::sleep(IDLE / 2);
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&client), b"");
    assert_eq!(served.stop().unwrap().completed, 1);
}

#[test]
fn a_client_that_came_while_the_server_was_set_up_has_its_whole_time() {
    let _machine = the_machine();
    let (tell_addr, addr) = mpsc::channel();
    let server = thread::spawn(move || {
        let event_loop = EventLoop::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        tell_addr.send(listener.local_addr().unwrap()).unwrap();
        thread::sleep(2 * IDLE);
        event_loop.run(async {
            let (end, ended) = smol::channel::bounded::<()>(1);
            thread::sleep(2 * IDLE);
            let server = Server::from_listener(listener)?
                .idle_timeout(IDLE)
                .observe(move |event| {
                    if let Event::Closed { duration, .. } = event {
                        assert!(*duration < 2 * IDLE, "{duration:?}");
                        end.close();
                    }
                })
                .shutdown_on(async move { ended.recv().await.unwrap_or_default() });
            server.serve(echo).await
        })
    });
    let client = connect(addr.recv().unwrap());
    // Answered, it is there; then it has half of its time to speak.
    assert_eq!(ask(&client, "x"), "Got: x");
    thread::sleep(IDLE / 2);
    assert_eq!(ask(&client, "y"), "Got: y");
    assert_eq!(hang_up(client), b"");
    let report = within_deadline(|| server.join().unwrap()).unwrap();
    assert_eq!((report.completed, report.timed_out), (1, 0));
}

#[test]
fn a_transfer_under_way_is_not_idle_though_a_read_waits_beside_it() {
    let served = Served::start(
        |server| {
            server
                .idle_timeout(Duration::from_millis(200))
                .socket_buffers(50_000)
        },
        async |connection| {
            let connection = Rc::new(connection);
            let read = async {
                let mut end = [0; 10];
                while (&*connection).read(&mut end).await? > 0 {}
                io::Result::Ok(())
            };
            let write = async { (&*connection).write_all(&vec![b'x'; 3_000_000]).await };
            // When all is written the handler returns, and only a read that fails before that counts.
            or(read, write).await
        },
    );
    let client = served.connect();
    let mut piece = vec![0; 500_000];
    for _ in 0..3 {
        // Longer than the idle timeout, with a write that waits all the while.
        thread::sleep(Duration::from_millis(300));
        (&client).read_exact(&mut piece).unwrap();
    }
    let total = 3 * piece.len() + read_to_end(&client).len();
    assert_eq!(total, 3_000_000);
    drop(client);
    assert_eq!(served.stop().unwrap().completed, 1);
}

#[test]
fn a_server_that_was_stopped_hears_first_what_its_clients_said_meanwhile() {
    // So long that a busy machine cuts nobody before the server is stopped.
    let program = Program::start(&["-l", "127.0.0.1:0", "--idle-timeout", "4"]);
    let clients: Vec<_> = (0..1500).map(|_| program.connect()).collect();
    for mut client in &clients {
        client.write_all(b"before").unwrap();
    }
    for mut client in &clients {
        let mut reply = [0; 11];
        client.read_exact(&mut reply).expect("is answered");
        assert_eq!(&reply, b"Got: before");
    }
    program.signal(Signal::STOP);
    for mut client in &clients {
        client.write_all(b"meanwhile").unwrap();
    }
    thread::sleep(Duration::from_millis(4500));
    program.signal(Signal::CONT);
    for mut client in &clients {
        let mut reply = [0; 14];
        client.read_exact(&mut reply).expect("is answered");
        assert_eq!(&reply, b"Got: meanwhile");
    }
    program.stop();
}

#[test]
fn a_handler_that_answers_its_idle_timeout_has_completed() {
    let (served, told) = told(async |mut connection| {
        let mut line = [0; 100];
        let error = connection.read(&mut line).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        connection.write_all(b"bye\n").await
    });
    let client = served.connect();
    assert_eq!(read_to_end(&client), b"bye\n");
    drop(client);
    assert_eq!(next(&told).0, "completed");
    served.stop().unwrap();
}

#[test]
fn a_connection_is_idle_too_while_its_handler_waits_for_something_else() {
    let _machine = the_machine();
    let (served, told) = told(async |mut connection| {
        connection.read(&mut [0]).await?;
        pending().await
    });
    for half_closed in [false, true] {
        let client = served.connect();
        (&client).write_all(b"!").unwrap();
        if half_closed {
            client.shutdown(Shutdown::Write).unwrap();
        }
        let (reason, duration) = next(&told);
        assert_eq!(reason, "timed out");
        assert!((IDLE..IDLE * 2).contains(&duration), "{duration:?}");
        assert!(has_ended(&client));
    }
    served.stop().unwrap();
}

#[test]
fn a_push_to_a_silent_peer_keeps_its_connection() {
    let (served, told) = told(async |mut connection| {
        for _ in 0..10 {
            sleep(IDLE / 2).await;
            connection.write_all(b"!").await?;
        }
        Ok(())
    });
    let client = served.connect();
    assert_eq!(read_to_end(&client), b"!!!!!!!!!!");
    drop(client);
    assert_eq!(next(&told).0, "completed");
    served.stop().unwrap();
}

#[test]
fn every_timeout_is_exact_on_the_test_clock() {
    run_on_test_clock(async || {
        const HOUR: Duration = Duration::from_secs(3600);
        let (server, connector) = testing::server();
        let (tell, told) = mpsc::channel();
        let serving = server
            .idle_timeout(HOUR)
            .observe(move |event| {
                if let Event::Closed {
                    reason: CloseReason::TimedOut,
                    duration,
                    ..
                } = event
                {
                    tell.send(*duration).unwrap();
                }
            })
            .shutdown_on(sleep(10 * HOUR))
            .serve(async |connection| {
                let connection = Rc::new(connection);
                let reader = connection.clone();
                let reading = spawn(async move { (&*reader).read(&mut [0]).await });
                // Writes beside the read that waits, and then waits for something else.
                sleep(HOUR / 2).await;
                (&*connection).write_all(b"!").await?;
                reading.await.map(|_| ())
            });
        let serving = spawn(serving);
        let start = now();
        let mut peer = connector.connect(Faults::none()).unwrap();
        peer.read_exact(&mut [0]).await.unwrap();
        assert!(peer.read(&mut [0]).await.is_err());
        assert_eq!(now() - start, HOUR / 2 + HOUR);
        serving.await.unwrap();
        assert_eq!(told.try_recv(), Ok(HOUR / 2 + HOUR));
    });
}

#[test]
fn a_write_that_was_given_up_keeps_no_connection_for_ever() {
    run_on_test_clock(async || {
        let (server, connector) = testing::server();
        let server = server.idle_timeout(IDLE).shutdown_on(sleep(100 * IDLE));
        let serving = spawn(server.serve(async |mut connection| {
            let endless = async { while connection.write(&[b'x'; 4096]).await.is_ok() {} };
            assert!(timeout(IDLE / 2, endless).await.is_err());
            connection.read(&mut [0]).await.map(drop)
        }));
        let mut peer = connector.connect(Faults::none()).unwrap();
        sleep(IDLE).await;
        let start = now();
        // Takes all that there is, and more never comes.
        assert!(peer.read_to_end(&mut Vec::new()).await.is_err());
        assert!(now() - start <= 2 * IDLE, "{:?}", now() - start);
        assert_eq!(serving.await.unwrap().timed_out, 1);
    });
}

#[test]
fn who_connects_to_a_server_in_memory_that_is_dropped_hears_of_it() {
    run_on_test_clock(async || {
        let (server, connector) = testing::server();
        let mut waiting = connector.connect(Faults::none()).unwrap();
        drop(server);
        assert!(waiting.read(&mut [0]).await.is_err());
        let refused = connector.connect(Faults::none()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}
