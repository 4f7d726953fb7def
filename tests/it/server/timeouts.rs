//! Connections that are idle, and peers that stop reading.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use tinyloop::{CloseReason, Connection, Event, Server};

use crate::server::{has_ended, is_silent_for};
use crate::support::{DEADLINE, Program, Served, ask, echo, next, read_to_end, the_machine, time};

const TIMEOUT: Duration = Duration::from_millis(500);

/// Tries until a time is within a tenth of [`TIMEOUT`], as it has to be on a machine that has time for us.
fn assert_takes_the_timeout(measure: impl Fn() -> Duration) {
    let off = |time: Duration| time.abs_diff(TIMEOUT);
    let times = [(); 3].map(|()| measure());
    let nearest = times.into_iter().min_by_key(|&time| off(time)).unwrap();
    assert!(off(nearest) <= TIMEOUT / 10, "{times:?}");
}

#[test]
fn a_silent_connection_ends_after_the_idle_timeout() {
    let _machine = the_machine();
    let served = Served::start(|server| server.idle_timeout(TIMEOUT), echo);
    assert_takes_the_timeout(|| time(|| assert!(has_ended(&served.connect()))));
    assert_takes_the_timeout(|| {
        let connection = served.connect();
        assert_eq!(ask(&connection, "hello"), "Got: hello");
        time(|| assert!(has_ended(&connection)))
    });
    let report = served.stop().unwrap();
    assert_eq!((report.accepted, report.timed_out), (6, 6));
}

#[test]
fn a_connection_that_speaks_now_and_then_is_not_idle() {
    let _machine = the_machine();
    let served = Served::start(|server| server.idle_timeout(TIMEOUT), echo);
    let connection = served.connect();
    for _ in 0..4 {
        assert_eq!(ask(&connection, "now"), "Got: now");
        assert!(is_silent_for(&connection, TIMEOUT * 3 / 4));
    }
    let silent = time(|| assert!(has_ended(&connection)));
    assert!(silent <= TIMEOUT, "{silent:?}");
    assert_eq!(served.stop().unwrap().timed_out, 1);
}

#[test]
fn what_times_out_after_the_handler_is_not_the_handlers() {
    let handler = async |mut connection: Connection| {
        connection.read(&mut [0]).await?;
        io::Result::Ok(())
    };
    let (closed, is_closed) = mpsc::channel();
    let tell = move |event: &Event<'_>| {
        if let Event::Closed { reason, .. } = event {
            closed.send(reason.to_string()).unwrap();
        }
    };
    let configure = |server: Server| server.idle_timeout(TIMEOUT / 10).observe(tell);
    let served = Served::start(configure, handler);
    let mut connection = served.connect();
    // One byte stays unread, so the server waits for our end, which does not come.
    connection.write_all(b"ab").unwrap();
    assert_eq!(next(&is_closed), CloseReason::Completed.to_string());
    served.stop().unwrap();
}

#[test]
fn there_is_no_idle_timeout_by_default() {
    let program = Program::start(&["-l", "127.0.0.1:0"]);
    let connection = program.connect();
    assert!(is_silent_for(&connection, 2 * TIMEOUT));
    assert_eq!(ask(&connection, "still here"), "Got: still here");
    program.stop();
}

#[test]
fn the_program_has_an_idle_timeout() {
    let program = Program::start(&["-l", "127.0.0.1:0", "--idle-timeout", "0.5"]);
    assert!(has_ended(&program.connect()));
    let (_, stderr) = program.stop();
    assert!(stderr[0].contains("timed out 1, "), "{stderr:?}");
}

#[test]
fn a_peer_that_does_not_read_ends_after_the_stall_timeout_and_the_others_do_not_notice() {
    let _machine = the_machine();
    let (tell_stalled, stalled) = mpsc::channel();
    let write_on = async move |mut connection: Connection| {
        let mut last_write = Instant::now();
        loop {
            if let Err(error) = connection.write(&[b'x'; 4096]).await {
                tell_stalled.send(last_write.elapsed()).unwrap();
                return Err(error);
            }
            last_write = Instant::now();
        }
    };
    let served = Served::start(|server| server.stall_timeout(TIMEOUT), write_on);
    let other = served.connect();
    assert_takes_the_timeout(|| {
        let _silent = served.connect();
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            (&other).read_exact(&mut [0; 10_000]).expect("goes on");
            if let Ok(stalled) = stalled.try_recv() {
                return stalled;
            }
        }
        panic!("the connection that does not read has not ended");
    });
    drop(other);
    // Its handler ends too, before there is no time left for it.
    next(&stalled);
    let report = served.stop().unwrap();
    assert_eq!((report.failed, report.timed_out), (1, 3), "{report}");
}

#[test]
fn an_echo_client_that_never_reads_ends() {
    let program = Program::start(&["-l", "127.0.0.1:0", "--stall-timeout", "0.5"]);
    let mut stalled = program.connect();
    while stalled.write_all(&[b'x'; 64 * 1024]).is_ok() {}
    assert_eq!(ask(&program.connect(), "next"), "Got: next");
    let (_, stderr) = program.stop();
    let report = stderr.last().unwrap();
    assert!(report.contains("timed out 1, "), "{report}");
}

#[test]
fn the_stall_timeout_does_not_last_twice_its_time_when_the_send_buffer_grows() {
    const STALL: Duration = Duration::from_secs(2);
    let _machine = the_machine();
    let (tell, told) = mpsc::channel();
    let observe = move |event: &Event<'_>| {
        if let Event::Closed { duration, .. } = event {
            tell.send(*duration).unwrap_or_default();
        }
    };
    let served = Served::start(|server| server.stall_timeout(STALL).observe(observe), echo);
    // They write and never read, until they are cut.
    let clients: Vec<_> = (0..8).map(|_| served.connect()).collect();
    let flood = |mut client: TcpStream| {
        thread::spawn(move || while client.write_all(&[b'x'; 6000]).is_ok() {})
    };
    let floods: Vec<_> = clients.into_iter().map(flood).collect();
    let longest = floods.iter().map(|_| next(&told)).max().unwrap();
    // A quarter more, and the time in which the buffers fill.
    assert!((STALL..STALL * 7 / 4).contains(&longest), "{longest:?}");
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    served.stop().unwrap();
}

#[test]
fn a_peer_that_takes_one_step_of_its_window_within_the_stall_timeout_is_served() {
    let _machine = the_machine();
    const STALL: Duration = Duration::from_secs(1);
    const STEP: usize = 300_000;
    let served = Served::start(
        |server| server.stall_timeout(STALL),
        async |mut connection| connection.write_all(&vec![b'x'; 6_000_000]).await,
    );
    let slow = served.connect();
    let (_silent, pause) = mpsc::channel::<()>();
    for _ in 0..8 {
        pause.recv_timeout(STALL * 7 / 10).unwrap_err();
        (&slow).read_exact(&mut [0; STEP]).expect("goes on");
    }
    assert_eq!(read_to_end(&slow).len(), 6_000_000 - 8 * STEP);
    assert_eq!(served.stop().unwrap().timed_out, 0);
}

#[test]
fn a_peer_that_reads_slowly_has_not_stopped_reading() {
    let _machine = the_machine();
    let served = Served::start(
        |server| server.stall_timeout(TIMEOUT),
        async |mut connection| connection.write_all(&vec![b'x'; 8_000_000]).await,
    );
    let slow = served.connect();
    let (_silent, pause) = mpsc::channel::<()>();
    for _ in 0..30 {
        // Long before a third of the server's buffer is free, which is when the system tells it of room.
        (&slow).read_exact(&mut [0; 32_000]).expect("goes on");
        pause.recv_timeout(TIMEOUT / 10).unwrap_err();
    }
    assert_eq!(read_to_end(&slow).len(), 8_000_000 - 30 * 32_000);
    assert_eq!(served.stop().unwrap().timed_out, 0);
}
