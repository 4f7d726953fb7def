//! Connections that come and go, by the hundred thousand.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::faults::form;
use crate::monitor::ask_monitor;
use crate::process::{descriptors, resident_bytes};
use crate::server::backpressure::unless_blocked;
use crate::support::{self, DEADLINE, Program, ask, hang_up, the_machine};

/// How much a program's memory may grow after the first tenth, however many connections follow: some pages more for its
/// allocator and its stacks.
const SLACK: usize = 64 * 1024;

/// A program with a monitor, and an old connection beside those that come and go.
struct Churn {
    row: &'static str,
    program: Program,
    monitor: SocketAddr,
    old: TcpStream,
    held_at_first: Held,
}

/// What a connection that leaks would leave behind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Held {
    descriptors: usize,
    tasks: usize,
}

impl Churn {
    fn start(row: &'static str) -> Churn {
        let program = Program::start(&["-q", "-l", "127.0.0.1:0", "--monitor", "0"]);
        let line = program.stdout_line();
        let monitor = line.strip_prefix("monitor on ").unwrap().parse().unwrap();
        let mut churn = Churn {
            row,
            monitor,
            old: program.connect(),
            program,
            held_at_first: Held::default(),
        };
        assert_eq!(ask(&churn.old, "x"), "Got: x");
        churn.held_at_first = churn.held();
        churn
    }

    fn held(&self) -> Held {
        let descriptors = descriptors(self.program.pid()).len();
        let tasks = ask_monitor(self.monitor, "ps");
        Held {
            descriptors,
            // Under a line with the columns' names.
            tasks: tasks.lines().count() - 1,
        }
    }

    /// Lets `count` connections come and go, each by a call of `next`. Returns the report, after looking what is left.
    fn run(self, count: usize, mut next: impl FnMut(SocketAddr)) -> String {
        let (row, start) = (self.row, Instant::now());
        let resident: Vec<usize> = (0..10)
            .map(|_| {
                for _ in 0..count / 10 {
                    next(self.program.addr());
                }
                resident_bytes(self.program.pid())
            })
            .collect();
        let per_second = count as f64 / start.elapsed().as_secs_f64();
        println!("{row}: {count} connections, {per_second:.0} a second");
        println!("{row}: bytes in memory after each tenth: {resident:?}");
        let most = resident.iter().max().unwrap();
        assert!(*most <= resident[0] + SLACK, "{resident:?}");

        // Closes the last connections.
        drop(next);
        let (start, mut held) = (Instant::now(), self.held());
        while held != self.held_at_first && start.elapsed() < DEADLINE {
            thread::sleep(Duration::from_millis(1));
            held = self.held();
        }
        println!("{row}: {held:?} in the end, with a connection from before");
        assert_eq!(held, self.held_at_first);
        assert_eq!(ask(&self.old, "x"), "Got: x");
        // Until the server has closed it, too: else it might have to drain.
        assert_eq!(hang_up(self.old), b"");
        let (_, stderr) = self.program.stop();
        println!("{row}: {stderr:?}");
        assert_eq!(stderr.len(), 1, "nothing but the report: {stderr:?}");
        stderr[0].clone()
    }
}

/// Connects from an address that is used once in a long time.
///
/// The port of a connection that was closed rests for a minute. A million connections in a row would use up one host's
/// ports, and the kernel's search for a free one would take longer and longer.
struct Sources {
    host: u8,
    port: u16,
}

impl Sources {
    fn connect(&mut self, addr: SocketAddr) -> TcpStream {
        loop {
            // Below the ports that the kernel gives to those who do not ask for one.
            self.port += 1;
            if self.port == 32_000 {
                (self.host, self.port) = (self.host % 250 + 1, 10_000);
            }
            let socket = socket_with(
                AddressFamily::INET,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            );
            let socket = socket.unwrap();
            let own_addr = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, self.host), self.port);
            match bind(&socket, &own_addr) {
                Err(Errno::ADDRINUSE) => {}
                bound => {
                    bound.unwrap();
                    connect(&socket, &addr).unwrap();
                    return TcpStream::from(socket);
                }
            }
        }
    }
}

#[test]
#[ignore = "needs the machine to itself"]
fn a_million_connections_leave_nothing_behind() {
    /// How many are open at once, so that the server always has something to do.
    const OPEN: usize = 16;
    let _machine = the_machine();
    let count = form(50_000, 1_000_000);
    let mut sources = Sources {
        host: 1,
        port: 10_000,
    };
    let mut open = VecDeque::new();
    let report = Churn::start("churn").run(count, move |addr| {
        let mut stream = sources.connect(addr);
        stream.write_all(b"x").unwrap();
        open.push_back(stream);
        if open.len() == OPEN {
            let mut answer = [0; 6];
            let mut oldest = open.pop_front().unwrap();
            oldest.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"Got: x");
        }
    });
    assert!(report.starts_with(&format!("accepted {}, completed ", count + 1)));
    assert!(report.contains(", panicked 0, "));
}

/// Lets the server begin an answer that the client has no room for, and resets the connection.
fn reset_in_the_middle(mut stream: TcpStream, least: usize) {
    let chunk = [b'x'; 64 * 1024];
    // So little room that most of the answer stays with the server.
    set_socket_recv_buffer_size(&stream, 4 * 1024).unwrap();
    stream.set_nonblocking(true).unwrap();
    let (mut sent, mut blocked) = (0, 0);
    while sent < least && blocked < 100 {
        match unless_blocked(stream.write(&chunk)).unwrap() {
            0 => {
                blocked += 1;
                thread::yield_now();
            }
            written => (sent, blocked) = (sent + written, 0),
        }
    }
    stream.set_nonblocking(false).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

#[test]
#[ignore = "needs the machine to itself"]
fn a_hundred_thousand_resets_in_the_middle_of_writes_leave_nothing_behind() {
    let _machine = the_machine();
    let count = form(5_000, 100_000);
    let mut resets = 0;
    let report = Churn::start("resets").run(count, |addr| {
        // The server has written all it got, and the kernel sends it; or now and then, as that needs megabytes, the
        // kernel takes no more and the server waits in a write.
        let least = if resets % 50 == 0 {
            usize::MAX
        } else {
            64 * 1024
        };
        reset_in_the_middle(support::connect(addr), least);
        resets += 1;
    });
    let expected = format!(
        "accepted {}, completed 1, failed {count}, panicked 0, ",
        count + 1
    );
    assert!(report.starts_with(&expected), "{report}");
}
