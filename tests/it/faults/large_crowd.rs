//! More idle connections than one process may have descriptors, on twelve workers.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustix::process::{Pid, Signal};

use crate::faults::{assert_time, form};
use crate::process::{descriptors, field, processor_time, raise_descriptor_limit, resident_bytes};
use crate::support::{DEADLINE, Program, ask, test_alone, the_machine, time};
use crate::workers::children;

const ROW: &str = "large crowd";

const WORKERS: usize = 12;

/// What an idle connection may cost a worker, in bytes of memory. Where they are few, what a worker has once counts.
const MOST_EACH: usize = 1024;

/// In the environment of a process of clients: the server's address, their own, and how many they are.
const CLIENTS: &str = "TINYLOOP_TEST_CLIENTS";

#[test]
#[ignore = "needs the machine to itself"]
fn two_hundred_thousand_idle_connections_on_twelve_workers_cost_little_and_delay_nobody() {
    fn test_of<F: FnOnce()>(_: &F) -> Command {
        test_alone::<F>()
    }
    let be_clients = || {
        let clients = env::var(CLIENTS).unwrap();
        let mut words = clients.split(' ');
        let mut word = || words.next().unwrap();
        let (server, own) = (word().parse().unwrap(), word().parse().unwrap());
        hold_connections(server, own, word().parse().unwrap());
    };
    if env::var_os(CLIENTS).is_some() {
        return be_clients();
    }

    let _machine = the_machine();
    // Some are for other things, and no worker gets exactly its share.
    let connections = form(12_000, 200_000).min(WORKERS * (raise_descriptor_limit() - 2_000));
    let most = (connections + WORKERS * 1_500).to_string();
    let server = Program::start(&[
        "-q",
        "--listen",
        "127.0.0.1:0",
        "--workers",
        &WORKERS.to_string(),
        "--max-connections",
        &most,
    ]);
    let workers: Vec<Pid> = children(server.pid()).into_iter().collect();
    let sum = |of: fn(Pid) -> usize| workers.iter().map(|&worker| of(worker)).sum::<usize>();
    let open = || sum(|worker| descriptors(worker).len());
    let probe = server.connect();
    assert_eq!(ask(&probe, "x"), "Got: x");
    let (resident, opened, kernel) = (sum(resident_bytes), open(), Kernel::look());

    let start = Instant::now();
    let clients: Vec<Program> = (1..=WORKERS)
        .map(|number| {
            let own = Ipv4Addr::new(127, 0, 2, number as u8);
            let share = connections * number / WORKERS - connections * (number - 1) / WORKERS;
            let mut command = test_of(&be_clients);
            command.env(CLIENTS, format!("{} {own} {share}", server.addr()));
            Program::spawn(command.stdout(Stdio::piped()))
        })
        .collect();
    for process in &clients {
        while !process.stdout_line().ends_with("all") {}
    }
    let took = start.elapsed();
    println!("{ROW}: {connections} connections on {WORKERS} workers, opened in {took:.1?}");
    assert_eq!(open() - opened, connections);
    let each = sum(resident_bytes).saturating_sub(resident) / connections;
    let bound = MOST_EACH * form(2, 1);
    println!("{ROW}: {each} bytes of a worker's memory each (at most {bound})");
    assert!(each <= bound);
    let now = Kernel::look();
    let ends = now.sockets - kernel.sockets;
    let slabs = now.slabs.saturating_sub(kernel.slabs) / connections;
    println!(
        "{ROW}: {ends} more sockets in use, {} pages of buffers",
        now.pages
    );
    println!("{ROW}: {slabs} bytes of the kernel's slabs for each, both ends together");

    let pids = || workers.iter().copied().chain([server.pid()]);
    let before: Vec<Duration> = pids().map(processor_time).collect();
    thread::sleep(Duration::from_secs(5));
    let used = pids().map(processor_time).zip(before);
    let used: Duration = used.map(|(now, before)| now - before).sum();
    println!("{ROW}: {used:.1?} of processor time in 5 s, by all workers and their parent");

    let mut times: Vec<Duration> = (0..form(2_000, 20_000))
        .map(|_| time(|| assert_eq!(ask(&probe, "x"), "Got: x")))
        .collect();
    times.sort();
    let row = format!("{ROW}: {} round trips beside them, p99", times.len());
    assert_time(
        &row,
        times[times.len() * 99 / 100],
        Duration::from_millis(1),
    );

    let start = Instant::now();
    drop(clients);
    while open() > opened {
        assert!(start.elapsed() < DEADLINE, "{} are left", open() - opened);
        thread::sleep(Duration::from_millis(10));
    }
    println!("{ROW}: closed after {:.1?}", start.elapsed());
    drop(probe);
    server.signal(Signal::TERM);
    server.ends_well(&format!("accepted {}, ", connections + 1));
}

/// Opens connections, asks once on each, says so, and keeps them until this process is killed.
fn hold_connections(server: SocketAddr, own: Ipv4Addr, count: usize) {
    raise_descriptor_limit();
    let mut connections = Vec::with_capacity(count);
    for number in 1..=count {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        // One address has not ports enough for all. The system finds a free one slowly when half of them are taken.
        let port = 10_000 + u16::try_from(number).unwrap();
        bind(&socket, &SocketAddrV4::new(own, port)).unwrap();
        connect(&socket, &server).unwrap();
        let stream = TcpStream::from(socket);
        // So that no port has to rest.
        set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        assert_eq!(ask(&stream, "x"), "Got: x");
        connections.push(stream);
        if number % 1000 == 0 {
            println!("{number}");
        }
    }
    println!("all");
    loop {
        thread::park();
    }
}

/// What the kernel holds for sockets.
struct Kernel {
    /// Of TCP, in use.
    sockets: usize,
    /// Of socket buffers.
    pages: usize,
    /// Of all slabs, in bytes. Nothing, if this user may not read it.
    slabs: usize,
}

impl Kernel {
    fn look() -> Kernel {
        let statistics = fs::read_to_string("/proc/net/sockstat").unwrap();
        let (_, tcp) = statistics.split_once("TCP:").unwrap();
        let slabs = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
        // Two lines of titles; then the name, the objects in use, all objects, and the bytes of one.
        let bytes = slabs.lines().skip(2).map(|line| {
            let mut numbers = line
                .split_whitespace()
                .skip(2)
                .map(|word| word.parse::<usize>());
            let mut number = || numbers.next().unwrap().unwrap();
            number() * number()
        });
        Kernel {
            sockets: field(tcp, "inuse"),
            pages: field(tcp, "mem"),
            slabs: bytes.sum(),
        }
    }
}
