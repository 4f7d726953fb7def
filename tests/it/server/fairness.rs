//! A client beside others that send and read as fast as they can.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use tinyloop::Connection;

use crate::support::{DEADLINE, Served, ask, echo, next, the_machine, time};

/// The echo handler as a user may write it. For a peer that begins with `w` it only writes, with `r` it only reads.
async fn by_hand(mut connection: Connection) -> io::Result<()> {
    let mut buffer = vec![b'x'; 10_000];
    loop {
        let received = connection.read(&mut buffer).await?;
        match &buffer[..received] {
            [] => return Ok(()),
            [b'w', ..] => loop {
                connection.write_all(&buffer).await?;
            },
            [b'r', ..] => while connection.read(&mut buffer).await? > 0 {},
            chunk => connection.write_all(&[b"Got: ", chunk].concat()).await?,
        }
    }
}

/// Connections that write and read in threads until this is dropped.
struct Flood {
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    /// Begins each of the connections with the byte `first`, and waits until bytes flow on all of them.
    fn start(served: &Served, connections: usize, first: u8) -> Flood {
        let (flows, flowing) = mpsc::channel();
        let mut flood = Flood {
            streams: Vec::new(),
            threads: Vec::new(),
        };
        for _ in 0..connections {
            let stream = served.connect();
            let (mut reader, mut writer) =
                (stream.try_clone().unwrap(), stream.try_clone().unwrap());
            let flows = flows.clone();
            flood.streams.push(stream);
            flood.threads.push(thread::spawn(move || {
                let mut buffer = [0; 64 * 1024];
                while reader.read(&mut buffer).is_ok_and(|n| n > 0) {}
            }));
            flood.threads.push(thread::spawn(move || {
                let chunk = [first; 64 * 1024];
                while writer.write_all(&chunk).is_ok() {
                    flows.send(()).ok();
                }
            }));
        }
        for _ in 0..4 * connections {
            next(&flowing);
        }
        flood
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        for stream in &self.streams {
            // Fails if the server has closed the connection.
            stream.shutdown(Shutdown::Both).ok();
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// The lowest of three medians of 100 round trips, since the machine does other things too.
///
/// Each comes after a pause: a client that asks again at once would keep the server's attention.
fn round_trip(connection: &TcpStream) -> Duration {
    let (_silent, pause) = mpsc::channel::<()>();
    let start = Instant::now();
    let one = |_| {
        assert!(start.elapsed() < DEADLINE, "starves");
        pause.recv_timeout(Duration::from_millis(1)).unwrap_err();
        time(|| assert_eq!(ask(connection, "ping"), "Got: ping"))
    };
    let median = |_| {
        let mut times: Vec<Duration> = (0..100).map(one).collect();
        times.sort();
        times[times.len() / 2]
    };
    (0..3).map(median).min().unwrap()
}

/// Asks beside one and eight connections that begin with `first`.
fn assert_answers_beside_a_flood(served: Served, first: u8) {
    let _machine = the_machine();
    let connection = served.connect();
    for connections in [1, 8] {
        let flood = Flood::start(&served, connections, first);
        let median = round_trip(&connection);
        assert!(
            median < Duration::from_millis(5),
            "{median:?} beside {connections}"
        );
        drop(flood);
    }
}

#[test]
fn an_echo_client_is_answered_beside_floods() {
    assert_answers_beside_a_flood(Served::start(|server| server, echo), b'x');
}

#[test]
fn a_handler_written_by_hand_answers_beside_floods() {
    assert_answers_beside_a_flood(Served::start(|server| server, by_hand), b'x');
}

#[test]
fn a_handler_that_only_reads_leaves_the_others_their_turn() {
    assert_answers_beside_a_flood(Served::start(|server| server, by_hand), b'r');
}

#[test]
fn a_handler_that_only_writes_leaves_the_others_their_turn() {
    let _machine = the_machine();
    let served = Served::start(|server| server, by_hand);
    let connection = served.connect();
    for connections in [1, 8] {
        let streams = (0..connections).map(|_| served.connect());
        let streams: Vec<TcpStream> = streams.collect();
        let readers: Vec<_> = streams
            .iter()
            .map(|stream| {
                let mut stream = stream.try_clone().unwrap();
                stream.write_all(b"w").unwrap();
                stream.read_exact(&mut [0; 100_000]).expect("bytes flow");
                thread::spawn(move || {
                    let mut buffer = [0; 64 * 1024];
                    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
                })
            })
            .collect();
        let median = round_trip(&connection);
        assert!(
            median < Duration::from_millis(5),
            "{median:?} beside {connections}"
        );
        for stream in streams {
            stream.shutdown(Shutdown::Both).ok();
        }
        for reader in readers {
            reader.join().unwrap();
        }
    }
}
