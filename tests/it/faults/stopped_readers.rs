//! Clients that stop for half a minute and then go on.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures_lite::future::zip;
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use tinyloop::TaskGroup;

use crate::faults::{assert_time, form};
use crate::support::{DEADLINE, Program, ask, the_machine, time};

const ROW: &str = "stopped readers";

/// How many stop, and how many do not.
const HALF: usize = 100;

/// How many rounds in which no client could send a byte mean that all of them are blocked.
const QUIET_ROUNDS: usize = 20;

/// The system's own would hold eight megabytes for each client.
const BUFFERS: usize = 64 * 1024;

const PREFIX: &[u8] = b"Got: ";

/// Lines that are all different, which the clients send again and again.
const LINES: usize = 1000;
const LINE: usize = 100;

/// `LINES` lines behind `prefix`, which are all different.
fn lines(prefix: &str) -> Vec<u8> {
    let line = |n| format!("{prefix}{n:0width$}\n", width = LINE - 1);
    (0..LINES).map(line).collect::<String>().into_bytes()
}

/// A client that sends until it is blocked, and reads nothing until it goes on.
struct Stopped {
    stream: TcpStream,
    /// Its first line, so that no two clients send the same.
    first: usize,
    sent: usize,
}

impl Stopped {
    /// Sends what the system takes at this moment. Returns whether that was anything.
    fn send_some(&mut self, lines: &[u8]) -> bool {
        let start = (self.first * LINE + self.sent) % lines.len();
        match self.stream.write(&lines[start..]) {
            Ok(sent) => self.sent += sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        }
        true
    }

    /// Ends the line that it was in, half-closes and compares all that comes back. Returns how many bytes it sent.
    async fn go_on(self, lines: &[u8], framed_lines: &[u8]) -> usize {
        let start = self.first * LINE + self.sent;
        let rest = start.next_multiple_of(LINE) - start;
        let sent = self.sent + rest;

        let stream = async_net::TcpStream::try_from(self.stream).unwrap();
        let (mut sender, mut receiver) = (stream.clone(), stream);
        let send = async {
            let start = start % lines.len();
            sender.write_all(&lines[start..start + rest]).await?;
            sender.close().await
        };
        let receive = async {
            // Twice, so that every chunk of a reply is a piece of it.
            let expected = [framed_lines, framed_lines].concat();
            let mut at = self.first * (PREFIX.len() + LINE);
            let mut chunk = vec![0; 64 * 1024];
            let mut received = 0;
            loop {
                let length = receiver.read(&mut chunk).await.expect("goes on");
                if length == 0 {
                    break received;
                }
                assert!(chunk[..length] == expected[at..at + length], "{received}");
                at = (at + length) % framed_lines.len();
                received += length;
            }
        };
        let (sending, received) = zip(send, receive).await;
        sending.expect("is sent");
        assert_eq!(received, sent + sent / LINE * PREFIX.len());
        sent
    }
}

/// How long an answer takes, in the slowest of a hundred cases, while all `clients` ask in turns for `duration`.
fn p99(row: &str, clients: &[TcpStream], duration: Duration) -> Duration {
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < duration {
        for client in clients {
            times.push(time(|| {
                assert_eq!(ask(client, "still here\n"), "Got: still here\n")
            }));
        }
    }
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    println!(
        "{ROW}: {row}: {} answers, p50 {:.2?}, p99 {p99:.2?}, max {:.2?}",
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1]
    );
    p99
}

#[test]
#[ignore = "needs the machine to itself"]
fn half_of_the_clients_may_stop_and_go_on_and_the_other_half_does_not_notice() {
    let _machine = the_machine();
    let program = Program::start(&["-l", "127.0.0.1:0", "-q", "--framing", "line"]);
    let others: Vec<_> = (0..HALF).map(|_| program.connect()).collect();
    p99(
        "before",
        &others,
        form(Duration::from_secs(1), Duration::from_secs(5)),
    );

    let (lines, framed_lines) = (lines(""), lines("Got: "));
    let connect = |first| {
        let stream = program.connect();
        stream.set_nonblocking(true).unwrap();
        set_socket_send_buffer_size(&stream, BUFFERS).unwrap();
        set_socket_recv_buffer_size(&stream, BUFFERS).unwrap();
        Stopped {
            stream,
            first,
            sent: 0,
        }
    };
    let mut stopped: Vec<_> = (0..HALF).map(connect).collect();
    let mut quiet_rounds = 0;
    while quiet_rounds < QUIET_ROUNDS {
        // Of all, not up to the first that could.
        let sent = stopped.iter_mut().map(|client| client.send_some(&lines));
        let sent = sent.filter(|&sent| sent).count();
        quiet_rounds = if sent > 0 { 0 } else { quiet_rounds + 1 };
        // Meanwhile the server has its turn.
        assert_eq!(ask(&others[0], "still here\n"), "Got: still here\n");
    }

    let pause = form(Duration::from_secs(3), Duration::from_secs(30));
    let p99 = p99("meanwhile", &others, pause);
    assert_time(
        &format!("{ROW}: p99 of the others"),
        p99,
        Duration::from_millis(5),
    );

    let start = Instant::now();
    let sent: Vec<usize> = tinyloop::run(async {
        let mut all = TaskGroup::new();
        let (lines, framed_lines): (&'static _, &'static _) = (lines.leak(), framed_lines.leak());
        for client in stopped {
            all.spawn(client.go_on(lines, framed_lines)).await;
        }
        tinyloop::timeout(DEADLINE, all.collect())
            .await
            .expect("all go on")
    });
    println!(
        "{ROW}: {HALF} clients sent {} to {} bytes each, and got all of them back in {:.1?}",
        sent.iter().min().unwrap(),
        sent.iter().max().unwrap(),
        start.elapsed()
    );
    drop(others);
    let (_, stderr) = program.stop();
    let report = stderr.last().unwrap();
    assert!(
        report.starts_with("accepted 200, completed 200, "),
        "{report}"
    );
}
