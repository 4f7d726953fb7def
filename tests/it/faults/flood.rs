//! An old connection beside floods: of bytes, of clients that never read, of connections; and a burst of connects.

use std::io::{Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Signal, getpid};

use crate::faults::{assert_time, form};
use crate::process::{on_another_processor, raise_descriptor_limit, resident_bytes, stop};
use crate::server::backpressure::{BUFFERS, CLIENTS, MOST_EACH, connect_many, unless_blocked};
use crate::support::{DEADLINE, Program, Served, ask, echo, the_machine};

/// A program on a processor of its own.
fn start_apart() -> Program {
    on_another_processor(|| Program::start(&["-q", "-l", "127.0.0.1:0"]))
}

/// Connections that write as fast as they can, and read what comes back.
struct Streams {
    streams: Vec<TcpStream>,
    /// Whose turn it is.
    next: usize,
    buffer: Vec<u8>,
}

impl Streams {
    /// Waits until megabytes have gone through each of them.
    fn start(program: &Program, connections: usize) -> Streams {
        let begin = |_| {
            let stream = program.connect();
            stream.set_nonblocking(true).unwrap();
            stream
        };
        let mut streams = Streams {
            streams: (0..connections).map(begin).collect(),
            next: 0,
            buffer: vec![b'x'; 64 * 1024],
        };
        let start = Instant::now();
        let mut moved = vec![0; connections];
        while moved.iter().any(|&bytes| bytes < 4 * 1024 * 1024) {
            assert!(start.elapsed() < DEADLINE, "flows: {moved:?}");
            let turn = streams.next;
            moved[turn] += streams.push();
        }
        streams
    }

    /// Writes and reads on the next of the connections, without waiting. Returns how many bytes went through.
    fn push(&mut self) -> usize {
        let mut stream = &self.streams[self.next];
        self.next = (self.next + 1) % self.streams.len();
        let written = unless_blocked(stream.write(&self.buffer)).unwrap();
        written + unless_blocked(stream.read(&mut self.buffer)).unwrap()
    }
}

/// A client that asks again and again, each time after a pause: one that asks again at once would keep the server's
/// attention.
///
/// It never waits. So one thread can disturb the server and ask it in turns, which it has to: a prober in a thread of
/// its own would wait until the disturbing one leaves the processor, and the figures would be the scheduler's.
struct Prober {
    stream: TcpStream,
    asked: Option<Instant>,
    next: Instant,
    /// How long each answer took.
    times: Vec<Duration>,
}

const QUESTION: &[u8] = b"ping";
const ANSWER: &[u8] = b"Got: ping";

/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_millis(1);

impl Prober {
    fn new(stream: TcpStream) -> Prober {
        stream.set_nonblocking(true).unwrap();
        Prober {
            stream,
            asked: None,
            next: Instant::now(),
            times: Vec::new(),
        }
    }

    /// Asks if it is time to, or looks for the answer.
    fn poll(&mut self) {
        let now = Instant::now();
        let Some(asked) = self.asked else {
            if now >= self.next {
                self.stream.write_all(QUESTION).unwrap();
                self.asked = Some(now);
            }
            return;
        };
        let mut answer = [0; ANSWER.len()];
        match unless_blocked(self.stream.read(&mut answer)).unwrap() {
            0 => assert!(now - asked < DEADLINE, "starves"),
            length => {
                // So few bytes come in one piece.
                assert_eq!(&answer[..length], ANSWER);
                let now = Instant::now();
                self.times.push(now - asked);
                (self.asked, self.next) = (None, now + PAUSE);
            }
        }
    }

    /// How long the answers took so far, in ascending order.
    fn take_times(&mut self) -> Vec<Duration> {
        let mut times = mem::take(&mut self.times);
        times.sort();
        times
    }
}

fn median(times: &[Duration]) -> Duration {
    times[times.len() / 2]
}

/// What 99 in a hundred answers took at most.
fn percentile_99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100]
}

/// Prints the 99th percentile of each of several runs, and asserts that their median is within `bound`; in the short
/// form, which runs on machines that do other things too, that the least is. Those things add to a tail and take
/// nothing away, while a server that lets its clients wait does so in each run.
fn assert_tail(row: &str, prober: &mut Prober, bound: Duration, mut disturb: impl FnMut()) {
    let run = |_| {
        let start = Instant::now();
        while prober.times.len() < form(500, 2_000) {
            assert!(start.elapsed() < DEADLINE, "{row}: starves");
            disturb();
            prober.poll();
        }
        let times = prober.take_times();
        let (middle, tail) = (median(&times), percentile_99(&times));
        println!(
            "{row}: {} answers, p50 {middle:.2?}, p99 {tail:.2?}",
            times.len()
        );
        tail
    };
    let mut tails: Vec<Duration> = (0..form(3, 7)).map(run).collect();
    tails.sort();
    let (name, tail) = form(("least p99", tails[0]), ("median p99", median(&tails)));
    assert_time(&format!("{row}: {name}"), tail, bound);
}

#[test]
#[ignore = "needs the machine to itself"]
fn an_old_connection_is_answered_within_a_millisecond_beside_floods_of_bytes() {
    let _machine = the_machine();
    let program = start_apart();
    let mut prober = Prober::new(program.connect());
    for connections in [1, 8] {
        let mut flood = Streams::start(&program, connections);
        let row = format!("flood of {connections}");
        assert_tail(&row, &mut prober, Duration::from_millis(1), || {
            flood.push();
        });
    }
    program.stop();
}

#[test]
#[ignore = "needs the machine to itself"]
fn an_old_connection_is_answered_within_two_milliseconds_beside_a_flood_of_connects() {
    let _machine = the_machine();
    let program = start_apart();
    let mut prober = Prober::new(program.connect());
    let (mut connects, start) = (0, Instant::now());
    assert_tail(
        "connect flood",
        &mut prober,
        Duration::from_millis(2),
        || {
            connect_and_reset(program.addr());
            connects += 1;
        },
    );
    let per_second = f64::from(connects) / start.elapsed().as_secs_f64();
    println!("connect flood: {connects} connects, {per_second:.0} a second");
    let (_, stderr) = program.stop();
    println!("connect flood: {}", stderr.join(", "));
}

/// Connects without waiting for the server, and closes with a reset, so that no port has to rest.
fn connect_and_reset(addr: SocketAddr) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    match rustix::net::connect(&socket, &addr) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
#[ignore = "needs ss and the machine to itself"]
fn clients_that_never_read_cost_little_disturb_nobody_and_are_closed() {
    const ROW: &str = "never reading";
    let _machine = the_machine();
    let stall_timeout = Duration::from_secs(form(2, 5));
    let before = resident_bytes(getpid());
    let served = Served::start(
        move |server| server.socket_buffers(BUFFERS).stall_timeout(stall_timeout),
        echo,
    );
    let mut prober = Prober::new(served.connect());
    let mut streams = connect_many(&served);

    let chunk = vec![b'x'; 64 * 1024];
    let (mut last_progress, mut memory) = (Instant::now(), None);
    while !streams.is_empty() {
        streams.retain(|mut stream| {
            prober.poll();
            match unless_blocked(stream.write(&chunk)) {
                Ok(0) => true,
                Ok(_) => {
                    last_progress = Instant::now();
                    true
                }
                Err(_) => false,
            }
        });
        let since = last_progress.elapsed();
        assert!(since < DEADLINE, "{} are not closed", streams.len());
        if memory.is_none() && since > stall_timeout / 4 {
            assert_eq!(streams.len(), CLIENTS, "none is closed so far");
            let resident = resident_bytes(getpid()).saturating_sub(before);
            memory = Some((resident, kernel_bytes(served.addr.port())));
        }
    }
    let closed = last_progress.elapsed();

    let (resident, kernel) = memory.expect("they block");
    assert!(kernel > CLIENTS * BUFFERS, "they are blocked: {kernel}");
    let each = (resident + kernel) / CLIENTS;
    println!("{ROW}: {each} bytes each, the kernel's share included (at most {MOST_EACH})");
    assert!(each <= MOST_EACH, "{each}: {resident} and {kernel}");

    let times = prober.take_times();
    let row = format!("{ROW}: {} answers to another, p99", times.len());
    assert_time(&row, percentile_99(&times), Duration::from_millis(2));

    println!(
        "{ROW}: all closed {closed:.1?} after the last byte (stall timeout {stall_timeout:?})"
    );
    assert!(
        closed < stall_timeout + Duration::from_secs(1),
        "{closed:?}"
    );
    drop(prober);
    let report = served.stop().unwrap();
    assert_eq!(report.timed_out, CLIENTS as u64, "{report}");
}

/// The memory that the kernel has for the server's side of the connections to `port`.
fn kernel_bytes(port: u16) -> usize {
    let filter = format!("sport = :{port}");
    let output = Command::new("ss").args(["-tmnH", &filter]).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let memory = output.split("skmem:(").skip(1);
    let fields = memory.flat_map(|memory| memory.split(')').next().unwrap().split(','));
    // Allocated for reading, for writing (w holds t), ahead, for options and in the backlog; not the limits (rb, tb).
    let bytes = |field: &str| {
        ["r", "w", "f", "o", "bl"]
            .iter()
            .find_map(|name| field.strip_prefix(name)?.parse::<usize>().ok())
    };
    fields.filter_map(bytes).sum()
}

/// The kernel sends a SYN that was not answered again after a second.
#[test]
fn connects_to_a_server_that_is_stopped_for_a_moment_wait_for_no_second_syn() {
    const CONNECTS: usize = 1_000;
    let _machine = the_machine();
    raise_descriptor_limit();
    let program = Program::start(&["-q", "-l", "127.0.0.1:0", "--max-connections", "2000"]);
    stop(program.pid());
    let mut slowest = Duration::ZERO;
    let connect = |_| {
        let start = Instant::now();
        let connection = program.connect();
        slowest = slowest.max(start.elapsed());
        connection
    };
    let connections: Vec<TcpStream> = (0..CONNECTS).map(connect).collect();
    program.signal(Signal::CONT);
    for connection in &connections {
        assert_eq!(ask(connection, "x"), "Got: x");
    }
    println!("stopped server: the slowest of {CONNECTS} connects {slowest:.2?} (less than 1 s)");
    assert!(slowest < Duration::from_millis(900), "{slowest:?}");
    program.stop();
}
