//! Ten thousand connections on which nothing moves.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use crate::faults::{assert_time, form};
use crate::process::{
    context_switches, on_another_processor, raise_descriptor_limit, resident_bytes,
};
use crate::support::{DEADLINE, Program, ask, the_machine, time};

const ROW: &str = "idle crowd";

const CONNECTIONS: usize = 10_000;

/// What one of them may cost the server, in bytes of memory.
const MOST_EACH: usize = 1024;

/// Waits until no thread of the program runs any more, and then for `duration`. Returns how often one ran in that time.
fn wake_ups(program: &Program, duration: Duration) -> usize {
    let count = || context_switches(program.pid());
    let (start, mut last) = (Instant::now(), count());
    loop {
        thread::sleep(Duration::from_millis(200));
        let now = count();
        if now == last {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "never rests");
        last = now;
    }
    thread::sleep(duration);
    count() - last
}

/// How long a new client takes from its connect to its answer.
fn new_client(program: &Program) -> Duration {
    let mut client = None;
    let took = time(|| {
        let connection = client.insert(program.connect());
        assert_eq!(ask(&*connection, "new"), "Got: new");
    });
    // So that no port has to rest.
    set_socket_linger(client.unwrap(), Some(Duration::ZERO)).unwrap();
    took
}

#[test]
#[ignore = "needs the machine to itself"]
fn ten_thousand_idle_connections_cost_little_memory_no_wake_up_and_no_new_client_any_time() {
    let _machine = the_machine();
    // Some are for other things, here and in the program.
    let connections = CONNECTIONS.min(raise_descriptor_limit() - 100);
    let program = on_another_processor(|| {
        Program::start(&["-q", "-l", "127.0.0.1:0", "--max-connections", "20000"])
    });
    // The first brings what is there once.
    new_client(&program);
    wake_ups(&program, Duration::ZERO);
    let before = resident_bytes(program.pid());
    let crowd: Vec<TcpStream> = (0..connections).map(|_| program.connect()).collect();
    for connection in &crowd {
        // What a server keeps after it has answered counts, too.
        assert_eq!(ask(connection, "x"), "Got: x");
    }

    let wake_ups = wake_ups(&program, Duration::from_secs(5));
    let each = (resident_bytes(program.pid()) - before) / connections;
    println!("{ROW}: {connections} connections, {each} bytes of memory each (at most {MOST_EACH})");
    println!("{ROW}: {wake_ups} wake-ups in 5 s (none)");
    assert!(each <= MOST_EACH, "{each}");
    assert_eq!(wake_ups, 0);

    let mut times: Vec<Duration> = (0..form(2_000, 20_000))
        .map(|_| new_client(&program))
        .collect();
    times.sort();
    let row = format!("{ROW}: {} new clients, p99", times.len());
    assert_time(
        &row,
        times[times.len() * 99 / 100],
        Duration::from_millis(1),
    );

    for connection in &crowd {
        assert_eq!(ask(connection, "still here"), "Got: still here");
    }
    program.stop();
}
