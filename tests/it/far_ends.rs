//! The far ends of numbers: each public function that takes a duration, a count or a size, with the least and the
//! greatest, on both clocks.

use std::future::{pending, ready};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future::{poll_once, yield_now};
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use smol::channel;
use tinyloop::testing::{self, Faults, pipe};
use tinyloop::{
    Connection, EventLoop, Report, Server, TaskGroup, TimedOut, interval, now, on_slow_poll, sleep,
    sleep_until, spawn, timeout,
};

use crate::support::{Served, ask, echo, run_on_test_clock, within_deadline};

const NANOSECOND: Duration = Duration::from_nanos(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// As far as the clock can be told: the system's instants are whole seconds in 64 bits, with a sign.
const INSTANTS: Duration = Duration::from_secs(i64::MAX as u64);

/// Runs `main` on a loop with each clock.
fn on_both_clocks(main: impl AsyncFn() + Send + Sync + 'static) {
    within_deadline(move || {
        for event_loop in [EventLoop::new(), EventLoop::with_test_clock()] {
            event_loop.unwrap().run(main());
        }
    });
}

/// Those that are never over, from a century on.
fn never() -> impl Iterator<Item = Duration> {
    let nearest = [100 * YEAR + SECOND, 1000 * YEAR, INSTANTS - 1000 * YEAR];
    let farthest = [INSTANTS, Duration::MAX - NANOSECOND, Duration::MAX];
    nearest.into_iter().chain(farthest)
}

#[test]
fn time_may_be_as_short_as_it_gets() {
    on_both_clocks(async || {
        for duration in [Duration::ZERO, NANOSECOND] {
            let start = now();
            sleep(duration).await;
            sleep_until(start + duration).await;
            assert!(now() - start >= duration);
            let expected = [Ok(()), Err(TimedOut)];
            assert_eq!(timeout(duration, ready(())).await, expected[0]);
            assert_eq!(timeout(duration, pending()).await, expected[1]);
        }
        let mut ticks = interval(NANOSECOND);
        let first = ticks.next().await.unwrap();
        assert!(ticks.next().await.unwrap() > first);
    });
}

#[test]
fn what_takes_more_than_a_century_never_ends_and_holds_nothing_up() {
    on_both_clocks(async || {
        for duration in never() {
            let mut nap = spawn(sleep(duration));
            let mut until = spawn(sleep_until(nap_deadline(duration)));
            let mut ticks = interval(duration);
            let waiting = timeout(duration, pending::<()>());
            let mut waiting = Box::pin(waiting);
            let start = now();
            for _ in 0..3 {
                assert!(poll_once(&mut nap).await.is_none());
                assert!(poll_once(&mut until).await.is_none());
                assert!(poll_once(ticks.next()).await.is_none());
                assert!(poll_once(&mut waiting).await.is_none());
                sleep(MILLISECOND).await;
            }
            let over = now() - start;
            assert!(over >= 3 * MILLISECOND && over < HOUR, "{over:?}");
            assert_eq!(ticks.missed(), 0);
            assert_eq!(timeout(duration, sleep(MILLISECOND)).await, Ok(()));
        }
    });

    fn nap_deadline(duration: Duration) -> Instant {
        sleep(duration).deadline()
    }
}

#[test]
fn a_sleep_of_a_century_ends_on_the_test_clock_as_often_as_one_likes() {
    run_on_test_clock(async || {
        for _ in 0..1000 {
            let start = now();
            sleep(100 * YEAR).await;
            assert_eq!(now() - start, 100 * YEAR);
        }
        let mut ticks = interval(100 * YEAR);
        for _ in 0..3 {
            ticks.next().await.unwrap();
        }
        assert_eq!(ticks.missed(), 0);
    });
}

#[test]
fn a_loop_with_a_sleep_of_a_century_wakes_up_for_others() {
    within_deadline(|| {
        tinyloop::run(async {
            let century = spawn(sleep(100 * YEAR - SECOND));
            yield_now().await;
            sleep(MILLISECOND).await;
            // The alarm has been set for the century, and is set for the earlier one.
            smol::Timer::after(MILLISECOND).await;
            sleep(MILLISECOND).await;
            drop(century);
        });
    });
}

#[test]
fn an_interval_counts_more_missed_ticks_than_fit_into_32_bits_once_and_bursts_never() {
    run_on_test_clock(async || {
        let start = now();
        let mut ticks = interval(NANOSECOND);
        sleep(5 * SECOND).await;
        assert_eq!(ticks.next().await, Some(start + NANOSECOND));
        assert_eq!(ticks.missed(), 5_000_000_000 - 1);
        assert_eq!(ticks.next().await, Some(start + 5 * SECOND + NANOSECOND));
        assert_eq!(ticks.missed(), 5_000_000_000 - 1);
        assert_eq!(now(), start + 5 * SECOND + NANOSECOND);
        // More than fit into 64 bits.
        for _ in 0..6 {
            sleep(100 * YEAR).await;
        }
        ticks.next().await.unwrap();
        assert_eq!(ticks.missed(), u64::MAX);
        let due = ticks.next().await.unwrap();
        assert_eq!(due, start + 5 * SECOND + 600 * YEAR + 2 * NANOSECOND);
    });
}

#[test]
fn a_slow_poll_may_be_any() {
    on_both_clocks(async || {
        for threshold in [Duration::ZERO, NANOSECOND].into_iter().chain(never()) {
            let (tell, told) = channel::unbounded();
            on_slow_poll(threshold, move |_| {
                tell.try_send(()).ok();
            });
            spawn(async { yield_now().await }).await;
            assert_eq!(threshold <= NANOSECOND, told.try_recv().is_ok());
        }
    });
}

#[test]
fn a_group_may_have_any_limit_but_none() {
    on_both_clocks(async || {
        for limit in [1, usize::MAX - 1, usize::MAX] {
            let mut group = TaskGroup::new().limit(limit);
            for n in 0..3 {
                group.spawn(async move { n }).await;
            }
            let results: Vec<u32> = group.collect().await;
            assert_eq!(results, [0, 1, 2]);
        }
    });
}

/// Lets real time pass, and with it the chance to jump for a test clock.
async fn nothing_happens() {
    // Of smol's own a test clock does not know.
    smol::unblock(|| thread::sleep(2 * MILLISECOND)).await;
}

#[test]
fn the_test_clock_does_not_jump_to_what_never_comes() {
    run_on_test_clock(async || {
        for duration in never() {
            let start = now();
            let nap = spawn(sleep(duration));
            nothing_happens().await;
            assert!(!nap.is_finished());
            assert_eq!(now(), start);
        }
    });
}

/// Serves one connection as `configure` says. It is asked for an answer, too long to be sent before it is read, and is
/// silent for a while both before it reads that and after; then, while the server drains, it asks again. Returns how
/// the server saw it.
async fn serve_one(configure: impl FnOnce(Server) -> Server) -> Report {
    let answer = async |mut connection: Connection| {
        while connection.read(&mut [0]).await? > 0 {
            connection.write_all(&vec![0; ANSWER]).await?;
        }
        Ok(())
    };
    let (server, connector) = testing::server();
    let (end, ended) = channel::bounded::<()>(1);
    let shutdown = async move {
        ended.recv().await.ok();
    };
    let serving = spawn(configure(server).shutdown_on(shutdown).serve(answer));
    let mut peer = connector.connect(Faults::none()).unwrap();
    let talk = async {
        peer.write_all(b"?").await?;
        nothing_happens().await;
        peer.read_exact(&mut vec![0; ANSWER]).await?;
        nothing_happens().await;
        drop(end);
        nothing_happens().await;
        peer.write_all(b"?").await?;
        peer.read_exact(&mut vec![0; ANSWER]).await?;
        peer.close().await
    };
    // The server cuts it if it is told to.
    talk.await.ok();
    drop(peer);
    serving.await.unwrap()
}

/// More than a pipe holds.
const ANSWER: usize = 100_000;

#[test]
fn a_server_may_have_any_limits() {
    on_both_clocks(async || {
        let with_drain = |server: Server| server.drain(Duration::MAX);
        for duration in [Duration::ZERO, NANOSECOND] {
            let report = serve_one(|server| with_drain(server).idle_timeout(duration)).await;
            assert_eq!((report.accepted, report.timed_out), (1, 1));
            let report = serve_one(|server| with_drain(server).stall_timeout(duration)).await;
            assert_eq!((report.accepted, report.timed_out), (1, 1));
            let report = serve_one(|server| server.drain(duration)).await;
            assert_eq!((report.accepted, report.aborted), (1, 1));
        }
        for duration in never() {
            let limits = |server: Server| server.idle_timeout(duration).stall_timeout(duration);
            let report = serve_one(|server| limits(server).drain(duration)).await;
            assert_eq!((report.accepted, report.completed), (1, 1), "{duration:?}");
        }
        for count in [1, usize::MAX - 1, usize::MAX] {
            let report = serve_one(|server| with_drain(server).max_connections(count)).await;
            assert_eq!((report.accepted, report.completed), (1, 1));
        }
    });
}

#[test]
fn a_socket_may_have_buffers_of_any_size() {
    for bytes in [0, 1, i32::MAX as usize - 1, i32::MAX as usize] {
        let served = Served::start(move |server| server.socket_buffers(bytes), echo);
        let client = served.connect();
        assert_eq!(ask(&client, "hello"), "Got: hello");
        drop(client);
        served.stop().unwrap();
    }
}

#[test]
fn a_connection_may_fail_at_any_call() {
    on_both_clocks(async || {
        for calls in [0, 1, u64::MAX - 1, u64::MAX] {
            let kind = io::ErrorKind::ConnectionReset;
            let (mut connection, mut peer) = pipe(Faults::none().fail_after(calls, kind));
            peer.write_all(b"x").await.unwrap();
            for call in 0..2 {
                let result = match call {
                    0 => connection.read_exact(&mut [0]).await,
                    _ => connection.write_all(b"y").await,
                };
                let expected = if call < calls { Ok(()) } else { Err(kind) };
                assert_eq!(result.map_err(|error| error.kind()), expected);
            }
        }
    });
}
