//! A byte now and then, and ten thousand timers.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use async_net::TcpStream;
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use tinyloop::{TaskGroup, sleep, timeout};

use crate::faults::form;
use crate::process::{processor_time, raise_descriptor_limit};
use crate::support::{Program, the_machine};

const ROW: &str = "slow senders";

/// How many drip on each server, and how many are silent from the start.
const EACH: usize = 100;

/// How many connections have a timer.
const TIMED: usize = 10_000;

/// Sends `bytes` bytes, `pause` apart, and checks that each is answered. Returns when the last was.
async fn drip(stream: &mut TcpStream, bytes: usize, pause: Duration) -> io::Result<Instant> {
    for n in 0..bytes {
        if n > 0 {
            sleep(pause).await;
        }
        stream.write_all(b".").await?;
        let mut reply = [0; 6];
        stream.read_exact(&mut reply).await?;
        assert_eq!(&reply, b"Got: .");
    }
    Ok(Instant::now())
}

/// By how much the server misses the idle timeout when it ends a connection that is silent since `silent`.
async fn missed_by(
    mut stream: TcpStream,
    silent: Instant,
    idle_timeout: Duration,
) -> io::Result<Duration> {
    let ended = timeout(2 * idle_timeout, stream.read(&mut [0])).await?;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    Ok(silent.elapsed().abs_diff(idle_timeout))
}

/// Lets clients drip and then fall silent, and others be silent from the start.
/// Returns by how much the worst of their ends missed the timeout.
async fn drip_and_fall_silent(
    server: SocketAddr,
    bytes: usize,
    pause: Duration,
    idle_timeout: Duration,
) -> Duration {
    let mut clients = TaskGroup::new();
    for n in 0..2 * EACH {
        let client = async move {
            let mut stream = TcpStream::connect(server).await?;
            let silent = drip(&mut stream, if n < EACH { bytes } else { 0 }, pause).await?;
            missed_by(stream, silent, idle_timeout).await
        };
        clients.spawn(client).await;
    }
    worst(clients).await
}

/// The most by which a client's end missed the timeout.
async fn worst(clients: TaskGroup<io::Result<Duration>>) -> Duration {
    let missed = clients.map(|missed| missed.expect("is ended by the timeout alone"));
    missed.fold(Duration::ZERO, Duration::max).await
}

/// A tenth is as much in the short form as in the long one.
fn assert_missed_little(missed: Duration, idle_timeout: Duration) {
    println!("{ROW}: the idle timeout of {idle_timeout:?}, missed by {missed:.2?} (at most 10 %)");
    assert!(missed <= idle_timeout / 10, "{missed:?}");
}

/// Lets clients drip, and others be silent, on a server that has no idle timeout.
async fn drip_and_stay(server: SocketAddr, bytes: usize, pause: Duration) {
    let mut clients = TaskGroup::new();
    let time = pause * (bytes - 1) as u32;
    for n in 0..2 * EACH {
        let client = async move {
            let mut stream = TcpStream::connect(server).await?;
            if n < EACH {
                drip(&mut stream, bytes, pause).await
            } else {
                sleep(time).await;
                drip(&mut stream, 1, pause).await
            }
        };
        clients.spawn(client).await;
    }
    while let Some(result) = clients.next().await {
        result.expect("stays");
    }
}

#[test]
#[ignore = "needs the machine to itself"]
fn who_sends_a_byte_now_and_then_stays_and_who_is_silent_ends_within_a_tenth_of_the_idle_timeout() {
    let _machine = the_machine();
    let pause = form(Duration::from_secs(1), Duration::from_secs(10));
    let idle_timeout = pause * 3 / 2;
    let bytes = 6;

    let seconds = idle_timeout.as_secs_f64().to_string();
    let limited = Program::start(&["-q", "-l", "127.0.0.1:0", "--idle-timeout", &seconds]);
    let unlimited = Program::start(&["-q", "-l", "127.0.0.1:0"]);
    let missed = tinyloop::run(async {
        let staying = tinyloop::spawn(drip_and_stay(unlimited.addr(), bytes, pause));
        let missed = drip_and_fall_silent(limited.addr(), bytes, pause, idle_timeout).await;
        staying.await;
        missed
    });
    println!(
        "{ROW}: {EACH} clients sent {bytes} bytes {pause:?} apart, with and without an idle timeout"
    );
    assert_missed_little(missed, idle_timeout);

    let (_, stderr) = limited.stop();
    let report = stderr.last().unwrap();
    assert!(report.contains(" timed out 200, "), "{report}");
    let (_, stderr) = unlimited.stop();
    let report = stderr.last().unwrap();
    assert!(
        report.starts_with("accepted 200, completed 200, "),
        "{report}"
    );
}

#[test]
#[ignore = "needs the machine to itself"]
fn ten_thousand_timers_cost_next_to_no_processor_time_and_fire_within_a_tenth_of_their_time() {
    let _machine = the_machine();
    // Some are for other things.
    let connections = TIMED.min(raise_descriptor_limit() - 100);
    let idle = Duration::from_secs(form(3, 10));
    let idle_timeout = 3 * idle;

    let seconds = idle_timeout.as_secs_f64().to_string();
    let program = Program::start(&["-q", "-l", "127.0.0.1:0", "--idle-timeout", &seconds]);
    let (used, missed) = tinyloop::run(async {
        let mut clients = TaskGroup::new();
        for _ in 0..connections {
            let mut stream = TcpStream::connect(program.addr()).await.expect("connects");
            let silent = drip(&mut stream, 1, Duration::ZERO)
                .await
                .expect("is answered");
            clients.spawn(missed_by(stream, silent, idle_timeout)).await;
        }
        // Nothing happens here meanwhile, either.
        let before = processor_time(program.pid());
        thread::sleep(idle);
        let used = processor_time(program.pid()) - before;
        (used, worst(clients).await)
    });
    println!("{ROW}: {connections} timers");
    println!("{ROW}: {used:.2?} of processor time in {idle:?} with nothing to do (at most 1 %)");
    assert!(used <= idle / 100, "{used:?}");
    assert_missed_little(missed, idle_timeout);

    let (_, stderr) = program.stop();
    let report = stderr.last().unwrap();
    assert!(
        report.contains(&format!(" timed out {connections}, ")),
        "{report}"
    );
}
