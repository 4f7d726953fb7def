//! Connections that a tool makes: to where, within what time, and with what options.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::pin::pin;
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use rustix::net::sockopt;
use tinyloop::testing::{Faults, for_each_seed, server_at};
use tinyloop::{Address, Connection, Endpoint, Event, EventLoop, Server, sleep, spawn, timeout};

use crate::support::{
    DEADLINE, TempDir, in_a_process_of_its_own, panic_message, run, run_on_test_clock,
};

/// Sends `hello` on a new connection to `endpoint`, and reads the reply to its end.
async fn ask(endpoint: &str) -> io::Result<Vec<u8>> {
    let mut connection = Connection::connect(endpoint).await?;
    connection.write_all(b"hello").await?;
    connection.close().await?;
    let mut reply = Vec::new();
    connection.read_to_end(&mut reply).await?;
    Ok(reply)
}

#[test]
fn a_connection_goes_to_whatever_a_server_binds() {
    let directory = TempDir::new("connect");
    let path = format!("unix:{}", directory.path("socket").display());
    run(async move || {
        for written in [
            "127.0.0.1:0",
            "[::1]:0",
            "0",
            ":0",
            "localhost:0",
            path.as_str(),
        ] {
            let server = Server::bind(written).await.unwrap();
            let addr = server.local_addrs()[0].clone();
            let serving =
                spawn(server.serve(async |connection| tinyloop::echo(connection, b"> ").await));
            let port = addr.tcp().map(|addr| addr.port().to_string());
            let endpoint = match &port {
                Some(port) => format!("{}{port}", written.strip_suffix('0').unwrap()),
                None => written.to_owned(),
            };
            assert_eq!(ask(&endpoint).await.unwrap(), b"> hello", "{endpoint}");
            let connection = Connection::connect(&addr).await;
            // Nobody connects to all interfaces, but the system takes it for this machine.
            let connection = connection.unwrap_or_else(|error| panic!("{addr}: {error}"));
            assert_eq!(connection.peer_addr(), addr);
            drop(serving);
        }
    });
}

#[test]
fn a_connection_that_cannot_be_made_says_to_where_and_why() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = taken.local_addr().unwrap();
    drop(taken);
    run(async move || {
        let cannot = async |endpoint: &str| Connection::connect(endpoint).await.unwrap_err();
        let error = cannot(&refused.to_string()).await;
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            error.to_string(),
            format!("cannot connect to {refused}: connection refused")
        );
        let error = cannot("unix:/nowhere/at/all").await;
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let words = "cannot connect to unix:/nowhere/at/all: no such file or directory";
        assert_eq!(error.to_string(), words);
        let error = cannot("no-such-name.invalid:80").await;
        assert!(
            error
                .to_string()
                .starts_with("cannot connect to no-such-name.invalid:80: "),
            "{error}"
        );
        for text in ["", "host", "127.0.0.1:65536"] {
            let error = cannot(text).await;
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("{text:?} is not an address: ")),
                "{error}"
            );
            let error = Server::bind(text).await.unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("{text:?} is not an address: ")),
                "{error}"
            );
        }
    });
}

#[test]
fn the_addresses_of_a_name_are_tried_in_turn() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let deaf = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 77), addr.port()));
    run(async move || {
        let connection = Connection::connect(&[deaf, addr][..]).await.unwrap();
        assert_eq!(connection.peer_addr(), Address::Tcp(addr));
        assert_eq!(
            Address::Tcp(listener.accept().unwrap().1),
            connection.local_addr()
        );
        let error = Connection::connect(Endpoint::Ip(Vec::new()))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    });
}

/// A listener whose queue is full, so that the kernel answers no further connection. With what fills the queue.
fn full() -> (TcpListener, Vec<std::net::TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut fill = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
        fill.push(stream);
    }
    (listener, fill)
}

#[test]
fn a_connect_without_a_limit_waits_also_on_a_test_clock() {
    let (listener, _fill) = full();
    let addr = listener.local_addr().unwrap();
    run_on_test_clock(async move || {
        let mut connecting = pin!(Connection::connect(addr));
        assert!(future::poll_once(&mut connecting).await.is_none());
        // Now there is room, and the kernel tries again after a second.
        listener.accept().unwrap();
        let start = tinyloop::now();
        connecting.await.unwrap();
        assert_eq!(tinyloop::now(), start);
    });
}

#[test]
fn an_address_that_does_not_answer_leaves_the_next_its_share_of_the_time() {
    let (silent, _fill) = full();
    let silent = silent.local_addr().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    run(async move || {
        let limit = Duration::from_millis(600);
        let start = Instant::now();
        let error = Connection::connect_timeout(silent, limit)
            .await
            .unwrap_err();
        let text = format!("cannot connect to {silent}: timed out");
        assert_eq!(error.to_string(), text);
        // What a main function that returns the error prints.
        let printed = format!("{error:?}");
        assert_eq!(
            printed,
            format!("Custom {{ kind: TimedOut, error: {text:?} }}")
        );
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= limit);
        let start = Instant::now();
        let connected = Connection::connect_timeout(&[silent, addr][..], limit).await;
        assert_eq!(connected.unwrap().peer_addr(), Address::Tcp(addr));
        assert!(start.elapsed() < limit, "{:?}", start.elapsed());
    });
}

#[test]
fn a_connection_that_we_make_has_the_options_of_one_that_a_server_accepts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    run(async move || {
        let connection = Connection::connect(addr).await.unwrap();
        let socket = connection.as_fd().unwrap();
        assert!(sockopt::tcp_nodelay(socket).unwrap());
        assert!(sockopt::socket_oobinline(socket).unwrap());
        connection.set_stall_timeout(Some(Duration::from_secs(2)));
        assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), 6000);
        connection.set_stall_timeout(None);
        assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), 0);
    });
}

#[test]
fn a_full_queue_of_a_unix_socket_is_waited_for() {
    let directory = TempDir::new("full-queue");
    let path = directory.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    run(async move || {
        let endpoint = format!("unix:{}", path.display());
        let _first = Connection::connect(&endpoint).await.unwrap();
        let second = spawn(async move { Connection::connect(&endpoint).await });
        let waits = timeout(Duration::from_millis(50), async {
            while !second.is_finished() {
                sleep(Duration::from_millis(1)).await
            }
        });
        assert!(waits.await.is_err(), "the queue holds one");
        listener.accept().unwrap();
        second.await.unwrap();
    });
}

#[test]
fn a_full_queue_in_memory_is_waited_for() {
    run_on_test_clock(async || {
        let second = Duration::from_secs(1);
        let server = server_at("busy:80", Faults::none());
        let mut waiting = Vec::new();
        let full = loop {
            match Connection::connect_timeout("busy:80", second).await {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut);
        assert_eq!(waiting.len(), 4097, "the backlog, and one more");
        let _serving = spawn(server.serve(async |_| Ok(())));
        Connection::connect("busy:80").await.unwrap();
    });
}

#[test]
fn an_idle_connection_that_we_made_ends_after_its_own_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    run(async move || {
        let connection = Connection::connect(addr).await.unwrap();
        let _silent = listener.accept().unwrap();
        let limit = Duration::from_millis(50);
        for _ in 0..2 {
            connection.set_idle_timeout(Some(limit));
            let start = Instant::now();
            let error = (&connection).read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(start.elapsed() >= limit);
        }
        connection.set_idle_timeout(None);
        let read = timeout(2 * limit, (&connection).read(&mut [0])).await;
        assert!(read.is_err(), "no timeout is left");
    });
}

#[test]
fn a_write_to_a_peer_that_never_reads_ends_after_the_connections_own_stall_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    run(async move || {
        let connection = Connection::connect(addr).await.unwrap();
        let _deaf = listener.accept().unwrap();
        connection.set_stall_timeout(Some(Duration::from_millis(100)));
        let error = (&connection)
            .write_all(&vec![0; 100_000_000])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "the peer stopped reading");
    });
}

#[test]
fn a_timeout_of_a_servers_connection_stands_in_place_of_the_servers() {
    run_on_test_clock(async || {
        const HOUR: Duration = Duration::from_secs(3600);
        for (of_server, own, expected) in [(24 * HOUR, Some(HOUR), Some(HOUR)), (HOUR, None, None)]
        {
            let (server, connector) = tinyloop::testing::server();
            let (tell, told) = smol::channel::unbounded();
            let serving = spawn(server.idle_timeout(of_server).serve(
                async move |mut connection: Connection| {
                    connection.read_exact(&mut [0]).await?;
                    // The handler's task has a timer by now, if the server has a timeout.
                    sleep(HOUR / 2).await;
                    connection.set_idle_timeout(own);
                    let start = tinyloop::now();
                    let result = connection
                        .read(&mut [0])
                        .await
                        .map_err(|error| error.kind());
                    tell.send((result, tinyloop::now() - start)).await.ok();
                    Ok(())
                },
            ));
            let mut client = connector.connect(Faults::none()).unwrap();
            client.write_all(b"x").await.unwrap();
            let result = timeout(100 * HOUR, told.recv()).await.map(Result::unwrap);
            match expected {
                Some(time) => assert_eq!(result, Ok((Err(io::ErrorKind::TimedOut), time))),
                None => assert!(result.is_err(), "{result:?}"),
            }
            drop(serving);
        }
    });
}

#[test]
fn a_timeout_of_its_own_leaves_the_servers_other_one_as_it_is() {
    run_on_test_clock(async || {
        const HOUR: Duration = Duration::from_secs(3600);
        for turns_stall_off in [true, false] {
            let (server, connector) = tinyloop::testing::server();
            let (tell, told) = smol::channel::unbounded();
            let server = server.idle_timeout(HOUR).stall_timeout(HOUR);
            let serving = spawn(server.serve(async move |mut connection: Connection| {
                let start = tinyloop::now();
                let error = if turns_stall_off {
                    connection.set_stall_timeout(None);
                    connection.read(&mut [0]).await.unwrap_err()
                } else {
                    connection.set_idle_timeout(None);
                    let too_much = vec![0; 100_000_000];
                    connection.write_all(&too_much).await.unwrap_err()
                };
                tell.send((error.to_string(), tinyloop::now() - start))
                    .await
                    .ok();
                Ok(())
            }));
            let _client = connector.connect(Faults::none()).unwrap();
            let (error, time) = told.recv().await.unwrap();
            assert!((HOUR..HOUR * 5 / 4).contains(&time), "{error} {time:?}");
            drop(serving);
        }
    });
}

#[test]
fn a_shorter_timeout_holds_for_a_handler_that_waits_for_something_else_and_for_a_read_of_another_task()
 {
    run_on_test_clock(async || {
        const HOUR: Duration = Duration::from_secs(3600);
        let (server, connector) = tinyloop::testing::server();
        let live = server.live_report();
        let start = tinyloop::now();
        let serving = spawn(server.idle_timeout(24 * HOUR).serve(
            async move |connection: Connection| {
                sleep(HOUR).await;
                connection.set_idle_timeout(Some(HOUR));
                std::future::pending().await
            },
        ));
        let mut client = connector.connect(Faults::none()).unwrap();
        assert!(
            client.read(&mut [0]).await.is_err(),
            "the server has cut it"
        );
        assert!(
            tinyloop::now() - start < 3 * HOUR,
            "{:?}",
            tinyloop::now() - start
        );
        sleep(Duration::from_secs(1)).await;
        assert_eq!(live.report().timed_out, 1);
        drop(serving);

        let (connection, _peer) = tinyloop::testing::pipe(Faults::none());
        let connection = std::rc::Rc::new(connection);
        connection.set_idle_timeout(Some(24 * HOUR));
        let reader = connection.clone();
        let reading = spawn(async move { (&*reader).read(&mut [0]).await });
        sleep(HOUR).await;
        let start = tinyloop::now();
        connection.set_idle_timeout(Some(HOUR));
        assert!(reading.await.is_err());
        assert_eq!(tinyloop::now() - start, HOUR);
    });
}

#[test]
fn a_server_in_memory_is_found_by_what_names_the_same_endpoint() {
    run_on_test_clock(async || {
        for (name, to) in [("7071", "7071"), ("127.0.0.1:80", "127.0.0.1:80")] {
            let server = server_at(name, Faults::none());
            let serving =
                spawn(server.serve(async |connection| tinyloop::echo(connection, b"").await));
            assert_eq!(ask(to).await.unwrap(), b"hello", "{name}");
            serving.cancel().await;
        }
        assert!(panic_message(|| server_at("nonsense", Faults::none())).contains("nonsense"));
    });
}

#[test]
fn a_tool_that_connects_is_tested_in_memory_with_faults_from_a_seed() {
    for_each_seed(0..20, |seed| {
        EventLoop::with_test_clock().unwrap().run(async {
            let server = server_at("upstream:80", Faults::from_seed(seed));
            let serving =
                spawn(server.serve(async |connection| tinyloop::echo(connection, b"").await));
            assert_eq!(ask("upstream:80").await.unwrap(), b"hello");
            let limit = Duration::from_secs(1);
            let connection = Connection::connect_timeout(("upstream", 80), limit)
                .await
                .unwrap();
            assert_eq!(connection.local_addr(), Address::Unknown);
            assert!(connection.as_fd().is_none());
            serving.cancel().await;
            let error = Connection::connect("upstream:80").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            assert_eq!(
                error.to_string(),
                "cannot connect to upstream:80: connection refused"
            );
        });
    });
}

#[test]
fn the_test_clock_stands_still_while_work_is_unblocked() {
    run_on_test_clock(async || {
        let hour = Duration::from_secs(3600);
        let start = tinyloop::now();
        for _ in 0..20 {
            let work = tinyloop::unblock(|| {
                thread::sleep(Duration::from_millis(5));
                7
            });
            assert_eq!(timeout(hour, work).await, Ok(7));
        }
        assert_eq!(tinyloop::now(), start);
        // Work that nobody waits for any more holds nothing up.
        drop(tinyloop::unblock(|| {
            thread::sleep(Duration::from_millis(5))
        }));
        sleep(hour).await;
        assert_eq!(tinyloop::now() - start, hour);
    });
}

#[test]
fn a_loop_on_a_test_clock_sleeps_while_work_is_unblocked() {
    in_a_process_of_its_own(|| {
        let cpu = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        };
        EventLoop::with_test_clock().unwrap().run(async {
            let before = cpu();
            let work = tinyloop::unblock(|| thread::sleep(Duration::from_millis(300)));
            timeout(Duration::from_millis(1), work).await.unwrap();
            assert!(
                cpu() - before < Duration::from_millis(100),
                "{:?}",
                cpu() - before
            );
        });
    });
}

#[test]
fn a_chunk_is_what_came_and_waiting_for_it_takes_no_buffer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    run(async move || {
        let connection = Connection::connect(addr).await.unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"one").unwrap();
        let first = connection.read_chunk().await.unwrap();
        peer.write_all(b"two").unwrap();
        let second = connection.read_chunk().await.unwrap();
        assert_eq!(
            (&*first, &*second),
            (&b"one"[..], &b"two"[..]),
            "the first is not overwritten"
        );
        assert_eq!(connection.bytes_in(), 6);
        drop(peer);
        assert!(connection.read_chunk().await.unwrap().is_empty());
        assert!(size_of_val(&connection.read_chunk()) <= 64);
    });
}

#[test]
fn a_server_that_is_not_told_how_many_connections_leaves_descriptors_for_others() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    in_a_process_of_its_own(|| {
        let limit = getrlimit(Resource::Nofile);
        let set = |current| {
            setrlimit(
                Resource::Nofile,
                Rlimit {
                    current: Some(current),
                    ..limit
                },
            )
        };
        set(64).unwrap();
        tinyloop::run(async {
            let server = Server::bind("127.0.0.1:0").await.unwrap();
            // The clients of this process need descriptors, too.
            set(512).unwrap();
            let addr = server.local_addrs()[0].clone();
            let (tell, told) = smol::channel::unbounded();
            let server = server.observe(move |event| {
                if let Event::LimitReached {
                    max_connections, ..
                } = event
                {
                    tell.try_send(*max_connections).unwrap();
                }
            });
            let _serving =
                spawn(server.serve(async |connection| tinyloop::echo(connection, b"").await));
            let mut clients = Vec::new();
            while told.is_empty() && clients.len() < 64 {
                let mut client = Connection::connect(&addr).await.unwrap();
                client.write_all(b"x").await.unwrap();
                timeout(Duration::from_millis(500), client.read_exact(&mut [0]))
                    .await
                    .ok();
                clients.push(client);
            }
            assert_eq!(told.recv().await, Ok(32));
        });
    });
}

#[test]
fn a_live_report_knows_how_many_connections_are_open() {
    run(async || {
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addrs()[0].clone();
        let live = server.live_report();
        assert_eq!(live.report().open(), 0);
        let serving = spawn(server.serve(async |connection| tinyloop::echo(connection, b"").await));
        let mut client = Connection::connect(&addr).await.unwrap();
        client.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        assert_eq!((live.report().accepted, live.report().open()), (1, 1));
        // It may be asked from another thread, too.
        let elsewhere = live.clone();
        assert_eq!(
            thread::spawn(move || elsewhere.report().open())
                .join()
                .unwrap(),
            1
        );
        client.close().await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        timeout(DEADLINE, async {
            while live.report().open() > 0 {
                sleep(Duration::from_millis(1)).await
            }
        })
        .await
        .unwrap();
        assert_eq!(live.report().completed, 1);
        drop(serving);
        assert_eq!(live.report().accepted, 1, "it goes on after the server");
    });
}
