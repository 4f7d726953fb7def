//! How connections end: who gets the whole reply, and who learns that it is not whole.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{self, AddressFamily, SocketType};
use rustix::thread::sched_getcpu;
use tinyloop::testing::{Faults, server};
use tinyloop::{Connection, Event, Server, sleep_until, spawn};

use crate::process::stay_on;
use crate::server::{has_ended, is_silent_for};
use crate::support::{
    DEADLINE, Program, Served, ask, connect, echo, hold, next, read_to_end, read_to_reset,
    run_on_test_clock,
};

/// More than fits into the buffers of a connection whose client has small ones.
const REPLY: usize = 3_000_000;

/// A client that leaves most of a reply in the server's kernel.
fn with_small_buffer(addr: SocketAddr) -> TcpStream {
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    set_socket_recv_buffer_size(&socket, 4096).unwrap();
    net::connect(&socket, &addr).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Reads to the end, or to an error: a `piece` every 20 ms at most. Calls `meanwhile` after each.
fn read_slowly(
    mut stream: &TcpStream,
    piece: usize,
    mut meanwhile: impl FnMut(usize),
) -> io::Result<usize> {
    let (mut total, mut buffer) = (0, vec![0; piece]);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            n => total += n,
        }
        meanwhile(total);
        thread::sleep(Duration::from_millis(20));
    }
}

/// Serves `handler`, and tells why each connection was closed.
fn reasons<H>(
    configure: impl FnOnce(Server) -> Server + Send + 'static,
    handler: H,
) -> (Served, Receiver<String>)
where
    H: AsyncFn(Connection) -> io::Result<()> + Send + 'static,
{
    let (tell, told) = mpsc::channel();
    let observe = move |event: &Event<'_>| {
        if let Event::Closed { reason, .. } = event {
            tell.send(reason.to_string()).unwrap_or_default();
        }
    };
    (
        Served::start(move |server| configure(server).observe(observe), handler),
        told,
    )
}

async fn reply_to_a_line(mut connection: Connection) -> io::Result<()> {
    connection.read(&mut [0; 100]).await?;
    connection.write_all(&vec![b'x'; REPLY]).await
}

#[test]
fn who_reads_on_after_the_idle_timeout_gets_the_rest_and_then_a_reset() {
    // It fits into the server's kernel, and not into the client's.
    const REPLY: usize = 60_000;
    let (served, closed) = reasons(
        |server| server.idle_timeout(Duration::from_millis(100)),
        async |mut connection| {
            connection.write_all(&[b'x'; REPLY]).await?;
            connection.read(&mut [0]).await.map(drop)
        },
    );
    let client = with_small_buffer(served.addr);
    assert_eq!(next(&closed), "timed out");
    // Longer than the peer of a handler that has failed would have.
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(read_to_reset(&client).len(), REPLY);
    assert_eq!(served.stop().unwrap().timed_out, 1);
}

#[test]
fn the_peer_of_a_handler_that_fails_after_it_has_closed_its_half_has_a_second() {
    // More than the receive buffer of a peer, and less than this and the send buffer together.
    const REPLY: usize = 75_000;
    const HOUR: Duration = Duration::from_secs(3600);
    let millis = Duration::from_millis;
    let reply_and_fail = async |mut connection: Connection| {
        connection.write_all(&[b'x'; REPLY]).await?;
        connection.close().await?;
        // The idle timeout is over, or the input has ended.
        connection.read(&mut [0]).await?;
        Err(io::Error::other("no request"))
    };
    run_on_test_clock(async move || {
        for (closes_at, reads_at, gets_all) in [
            (None, HOUR + millis(500), true),
            (None, HOUR + millis(1500), false),
            (Some(HOUR + millis(200)), HOUR + millis(500), true),
            (Some(millis(0)), millis(500), true),
            (Some(millis(0)), millis(1500), false),
        ] {
            let (server, connector) = server();
            let serving = spawn(server.idle_timeout(HOUR).serve(reply_and_fail));
            let mut client = connector.connect(Faults::none()).unwrap();
            let start = tinyloop::now();
            if let Some(time) = closes_at {
                sleep_until(start + time).await;
                client.close().await.unwrap();
            }
            sleep_until(start + reads_at).await;
            let mut reply = Vec::new();
            let read = client.read_to_end(&mut reply).await;
            let case = format!("{closes_at:?} {reads_at:?}: {read:?}");
            assert_eq!(read.is_ok(), gets_all, "{case}");
            assert_eq!(reply.len() == REPLY, gets_all, "{case}");
            drop(serving);
        }
    });
}

#[test]
fn a_peer_that_takes_its_time_and_says_one_more_line_gets_the_whole_reply() {
    let (served, reasons) = reasons(|server| server, reply_to_a_line);
    let client = with_small_buffer(served.addr);
    // So that the handler has waited once.
    thread::sleep(Duration::from_millis(20));
    (&client).write_all(b"a line\n").unwrap();
    let mut said = false;
    let total = read_slowly(&client, 30_000, |total| {
        if total > REPLY / 2 && !said {
            said = true;
            (&client).write_all(b"one more\n").unwrap();
        }
    });
    assert_eq!(total.unwrap(), REPLY);
    drop(client);
    assert_eq!(next(&reasons), "completed");
    assert_eq!(
        served.stop().unwrap().bytes_in,
        7,
        "what the handler has read"
    );
}

/// A reply that fits into the kernel's buffers, so that the server sees a quiet connection.
const BUFFERS: usize = 200_000;
const FITS: usize = 250_000;

#[test]
fn a_reply_under_way_survives_the_drain_and_a_line_that_comes_too_late() {
    survives_the_drain_and_a_late_line(async |mut connection| {
        connection.end_when_draining();
        let mut line = [0; 100];
        while connection.read(&mut line).await? > 0 {
            connection.write_all(&vec![b'x'; FITS]).await?;
        }
        Ok(())
    });
}

#[test]
fn so_does_the_reply_of_a_handler_that_closes_its_half_itself() {
    survives_the_drain_and_a_late_line(async |mut connection| {
        connection.read(&mut [0; 100]).await?;
        connection.write_all(&vec![b'x'; FITS]).await?;
        connection.close().await
    });
}

/// A client asks, reads slowly all the time, and says one more line a while after the shutdown.
fn survives_the_drain_and_a_late_line(
    handler: impl AsyncFn(Connection) -> io::Result<()> + Send + 'static,
) {
    let (served, reasons) = reasons(
        |server| {
            server
                .drain(Duration::from_secs(60))
                .socket_buffers(BUFFERS)
        },
        handler,
    );
    let client = with_small_buffer(served.addr);
    (&client).write_all(b"a line\n").unwrap();
    let (mut shut_down, mut said) = (None, false);
    let total = read_slowly(&client, 2_000, |total| {
        if shut_down.is_none() && total > FITS / 10 {
            served.shut_down();
            shut_down = Some(Instant::now());
        }
        if shut_down.is_some_and(|at: Instant| at.elapsed() > Duration::from_millis(1300)) && !said
        {
            said = true;
            (&client).write_all(b"too late\n").unwrap();
        }
    });
    assert_eq!(total.unwrap(), FITS);
    assert!(said);
    drop(client);
    assert_eq!(next(&reasons), "completed");
    served.stop().unwrap();
}

#[test]
fn a_peer_that_has_not_taken_its_reply_yet_holds_no_place() {
    let served = Served::start(
        |server| server.max_connections(1).socket_buffers(BUFFERS),
        async |mut connection| {
            connection.read(&mut [0; 100]).await?;
            connection.write_all(&vec![b'x'; FITS]).await
        },
    );
    let clients = [(); 3].map(|()| {
        let client = with_small_buffer(served.addr);
        (&client).write_all(b"a line\n").unwrap();
        (&client).read_exact(&mut [0]).unwrap();
        client
    });
    for client in &clients {
        assert_eq!(read_to_end(client).len(), FITS - 1);
    }
    drop(clients);
    let report = served.stop().unwrap();
    assert_eq!((report.completed, report.peak_connections), (3, 1));
}

#[test]
fn what_a_failed_handler_wrote_arrives_and_then_a_reset() {
    let served = Served::start(
        |server| server.max_connections(1),
        async |mut connection| {
            connection.read(&mut [0; 100]).await?;
            connection.write_all(b"400\n").await?;
            Err(io::Error::other("a bad request"))
        },
    );
    for _ in 0..3 {
        let client = served.connect();
        (&client).write_all(b"nonsense\n").unwrap();
        let mut reply = [0; 4];
        (&client).read_exact(&mut reply).unwrap();
        // Its place is free at once, though it stays.
        let other = served.connect();
        (&other).write_all(b"?").unwrap();
        assert_eq!(read_to_reset(&other), b"400\n");
        assert_eq!(read_to_reset(&client), b"");
    }
    // Also for a peer that has closed its half.
    let client = served.connect();
    (&client).write_all(b"nonsense\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_reset(&client), b"400\n");
    assert_eq!(served.stop().unwrap().failed, 7);
}

#[test]
fn a_failed_handler_leaves_no_flood() {
    let served = Served::start(
        |server| server,
        async |mut connection| {
            connection.write_all(b"no").await?;
            connection.read_exact(&mut [0; 100]).await?;
            Err(io::Error::other("refused"))
        },
    );
    let mut client = served.connect();
    let start = Instant::now();
    let mut sent = 0;
    while let Ok(n) = client.write(&[b'x'; 64 * 1024]) {
        sent += n;
        assert!(start.elapsed() < DEADLINE);
    }
    assert!(
        sent < 20_000_000,
        "{sent} bytes: not much more than the kernel's buffers"
    );
    assert_eq!(
        served.stop().unwrap().bytes_in,
        100,
        "what the handler has read"
    );
}

#[test]
fn a_peer_that_is_cut_sees_no_clean_end() {
    // By the deadline of the drain.
    let write_on = async |mut connection: Connection| {
        loop {
            connection.write_all(&[b'x'; 4096]).await?;
        }
    };
    let (served, told) = reasons(|server| server, write_on);
    let client = served.connect();
    (&client).read_exact(&mut [0]).unwrap();
    served.shut_down();
    assert!(!read_to_reset(&client).is_empty());
    assert_eq!(next(&told), "aborted");
    // By the stall timeout.
    let (served, told) = reasons(
        |server| server.stall_timeout(Duration::from_millis(200)),
        write_on,
    );
    let client = served.connect();
    assert_eq!(next(&told), "timed out");
    assert!(!read_to_reset(&client).is_empty());
    served.stop().unwrap();
    // By a panic.
    let (served, told) = reasons(
        |server| server,
        async |mut connection: Connection| {
            connection.write_all(b"a part").await?;
            connection.read(&mut [0]).await?;
            panic!("in the middle")
        },
    );
    let client = served.connect();
    (&client).read_exact(&mut [0; 6]).unwrap();
    (&client).write_all(b"!").unwrap();
    assert_eq!(next(&told), "panicked");
    assert_eq!(read_to_reset(&client), b"");
    served.stop().unwrap();
}

#[test]
fn a_peer_that_does_not_take_the_end_of_its_reply_times_out() {
    let stall = Duration::from_millis(500);
    let (served, told) = reasons(
        move |server| server.stall_timeout(stall),
        async |mut connection| {
            // Fits into the kernel's buffers.
            connection.write_all(&[b'x'; 100_000]).await
        },
    );
    let client = with_small_buffer(served.addr);
    assert_eq!(next(&told), "timed out");
    assert!(read_to_reset(&client).len() < 100_000);
    served.stop().unwrap();
}

#[test]
fn a_peer_that_resets_before_it_has_the_end_of_its_reply_has_not_completed() {
    let (served, told) = reasons(
        |server| server,
        async |mut connection| connection.write_all(&[b'x'; 100_000]).await,
    );
    let client = with_small_buffer(served.addr);
    (&client).read_exact(&mut [0]).unwrap();
    // With input that it has not read, its close is a reset.
    drop(client);
    assert_eq!(next(&told), "failed: connection reset by peer");
    served.stop().unwrap();
}

#[test]
fn a_peer_that_sends_and_never_reads_ends_though_its_replies_fit_the_buffers() {
    let stall = Duration::from_millis(500);
    let (served, told) = reasons(move |server| server.stall_timeout(stall), echo);
    let mut client = with_small_buffer(served.addr);
    client.write_all(&[b'x'; 200_000]).unwrap();
    assert_eq!(next(&told), "timed out");
    served.stop().unwrap();
}

#[test]
fn the_drain_does_not_wait_for_a_peer_that_has_everything_and_stays() {
    let served = Served::start(
        |server| server.drain(Duration::from_secs(60)),
        async |mut connection| connection.write_all(b"hello").await,
    );
    let client = served.connect();
    assert_eq!(read_to_end(&client), b"hello");
    let start = Instant::now();
    assert_eq!(served.stop().unwrap().completed, 1);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn nothing_is_left_of_a_connection_whose_peer_has_closed_too() {
    run_on_test_clock(async || {
        let (server, connector) = server();
        let (shutdown, shut_down) = smol::channel::bounded(1);
        let shut_down = async move { shut_down.recv().await.unwrap_or_default() };
        let server = server.drain(DEADLINE).shutdown_on(shut_down);
        let serving = tinyloop::spawn(
            server.serve(async |mut connection| connection.write_all(b"hello").await),
        );
        let mut client = connector.connect(Faults::none()).unwrap();
        let mut reply = Vec::new();
        client.read_to_end(&mut reply).await.unwrap();
        drop(client);
        tinyloop::sleep(Duration::from_millis(1)).await;
        let start = tinyloop::now();
        shutdown.send(()).await.unwrap();
        assert_eq!(serving.await.unwrap().completed, 1);
        assert_eq!(tinyloop::now(), start, "there is nothing to drain");
    });
}

#[test]
fn a_connection_that_was_passed_on_holds_its_place_until_it_is_dropped() {
    let served = Served::start(
        |server| server.max_connections(1).drain(Duration::from_millis(200)),
        async |mut connection| {
            let mut first = [0];
            connection.read(&mut first).await?;
            let new_owner = async move {
                if first == *b"k" {
                    return hold(connection).await;
                }
                connection.write_all(b"late").await.unwrap();
            };
            tinyloop::spawn(new_owner).detach();
            Ok(())
        },
    );
    let client = served.connect();
    (&client).write_all(b"s").unwrap();
    assert_eq!(read_to_end(&client), b"late");
    let kept = served.connect();
    (&kept).write_all(b"k").unwrap();
    let waits = served.connect();
    assert!(is_silent_for(&waits, Duration::from_millis(100)));
    let report = served.stop().unwrap();
    assert_eq!((report.completed, report.aborted), (1, 1), "{report}");
    assert_eq!((report.bytes_in, report.bytes_out), (2, 4));
    assert!(has_ended(&kept));
}

#[test]
fn a_stream_can_be_taken_out_of_a_connection() {
    let served = Served::start(
        |server| {
            server
                .max_connections(1)
                .idle_timeout(Duration::from_millis(100))
        },
        async |connection| {
            let mut stream = async_net::TcpStream::try_from(connection)?;
            // The server's timeouts end with the connection.
            tinyloop::sleep(Duration::from_millis(300)).await;
            let mut byte = [0];
            stream.read_exact(&mut byte).await?;
            stream.write_all(&byte).await
        },
    );
    for _ in 0..2 {
        let mut client = served.connect();
        client.write_all(b"x").unwrap();
        assert_eq!(read_to_end(&client), b"x");
    }
    assert_eq!(served.stop().unwrap().completed, 2);
}

#[test]
fn a_stream_that_was_taken_out_may_outlive_its_handler() {
    let served = Served::start(
        |server| server,
        async |connection| {
            let mut stream = async_net::TcpStream::try_from(connection)?;
            let new_owner = async move {
                stream.read_exact(&mut [0]).await.unwrap();
                stream.write_all(b"late").await.unwrap();
            };
            tinyloop::spawn(new_owner).detach();
            Ok(())
        },
    );
    let mut client = served.connect();
    // Until the server has nothing to do with it any more.
    assert!(is_silent_for(&client, Duration::from_millis(100)));
    client.write_all(b"x").unwrap();
    assert_eq!(read_to_end(&client), b"late");
    assert_eq!(served.stop().unwrap().completed, 1);
}

#[test]
fn clients_that_wait_when_the_server_is_told_to_end_are_served_within_the_drain() {
    let served = Served::start(
        |server| server.max_connections(1).drain(Duration::from_secs(60)),
        async |mut connection| {
            let mut line = [0; 4];
            connection.read_exact(&mut line).await?;
            connection.write_all(&line).await
        },
    );
    let first = served.connect();
    let waiting = [served.connect(), served.connect()];
    for mut client in &waiting {
        client.write_all(b"wait").unwrap();
    }
    served.shut_down();
    // When the listener is closed, all of them have been taken in.
    while TcpStream::connect(served.addr).is_ok() {}
    (&first).write_all(b"done").unwrap();
    assert_eq!(read_to_end(&first), b"done");
    drop(first);
    for client in &waiting {
        assert_eq!(read_to_end(client), b"wait");
    }
    drop(waiting);
    served.stop().unwrap();
}

#[test]
fn a_client_that_comes_back_after_its_end_finds_its_place_free() {
    for places in [1, 4, 16] {
        let number = places.to_string();
        let program = Program::start(&[
            "-q",
            "-l",
            "127.0.0.1:0",
            "--max-connections",
            &number,
            "--when-full",
            "reject",
        ]);
        let clients: Vec<_> = (0..places)
            .map(|_| {
                let addr = program.addr();
                thread::spawn(move || {
                    // Otherwise, on a busy machine, the end of a connection that was closed on one processor may arrive
                    // after the beginning of the next one, which was opened on another.
                    stay_on(sched_getcpu());
                    for round in 0..100 {
                        let client = connect(addr);
                        assert_eq!(ask(&client, "x"), "Got: x");
                        if round % 2 == 0 {
                            client.shutdown(Shutdown::Write).unwrap();
                            assert_eq!(read_to_end(&client), b"");
                        }
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        let (_, stderr) = program.stop();
        let report = stderr.last().unwrap();
        assert!(
            report.contains(" rejected 0, "),
            "{places} places: {report}"
        );
    }
}

/// Reads a byte, and calls `polled` at each poll of the read.
async fn read_byte(mut connection: &Connection, polled: impl Fn()) -> io::Result<[u8; 1]> {
    let mut byte = [0];
    let mut read = connection.read(&mut byte);
    poll_fn(|cx| {
        polled();
        Pin::new(&mut read).poll(cx)
    })
    .await?;
    Ok(byte)
}

#[test]
fn a_second_reader_costs_nothing_and_is_woken_too() {
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = polls.clone();
    let served = Served::start(
        |server| server.drain(Duration::from_secs(5)),
        async move |connection| {
            let connection = Rc::new(connection);
            let read = |connection: Rc<Connection>| {
                let polls = counted.clone();
                async move {
                    let count = || _ = polls.fetch_add(1, Ordering::Relaxed);
                    let byte = read_byte(&connection, count).await?;
                    (&*connection).write_all(&byte).await
                }
            };
            let other = tinyloop::spawn(read(connection.clone()));
            read(connection).await?;
            other.await
        },
    );
    let client = served.connect();
    thread::sleep(Duration::from_millis(100));
    for byte in [b"a", b"b"] {
        let mut reply = [0];
        (&client).write_all(byte).unwrap();
        (&client).read_exact(&mut reply).unwrap();
        assert_eq!(&reply, byte);
    }
    assert_eq!(read_to_end(&client), b"");
    drop(client);
    assert_eq!(served.stop().unwrap().completed, 1);
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls < 20, "{polls} polls");
}

#[test]
fn two_readers_that_wait_do_not_wake_each_other() {
    let polls = Rc::new(Cell::new(0));
    tinyloop::run(async {
        let (near, far) = UnixStream::pair().unwrap();
        let far = async_net::unix::UnixStream::try_from(far).unwrap();
        let connection = Rc::new(Connection::from(far));
        let readers = [(); 2].map(|()| {
            let (connection, polls) = (connection.clone(), polls.clone());
            tinyloop::spawn(async move {
                let count = || polls.set(polls.get() + 1);
                read_byte(&connection, count).await.unwrap();
            })
        });
        tinyloop::sleep(Duration::from_millis(50)).await;
        (&near).write_all(b"ab").unwrap();
        for reader in readers {
            reader.await;
        }
    });
    assert!(polls.get() < 20, "{} polls", polls.get());
}
