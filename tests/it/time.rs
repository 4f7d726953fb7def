//! Time: sleeps, ticks and timeouts to the nanosecond, on the clock that jumps, and what many timers cost.

use std::cell::RefCell;
use std::env;
use std::fs;
use std::future::{Future, pending, poll_fn, ready};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_lite::future::{poll_once, yield_now};
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use rustix::process::getpid;
use tinyloop::testing::{self, Faults};
use tinyloop::{Sleep, TimedOut, interval, now, sleep, sleep_until, spawn, timeout};

use crate::process::resident_bytes;
use crate::support::{
    Program, TellDrop, TempDir, hold, in_a_process_of_its_own, run, run_on_test_clock, test_alone,
};

const NANOSECOND: Duration = Duration::from_nanos(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_sleep_ends_at_its_deadline_and_not_a_nanosecond_before() {
    run_on_test_clock(async || {
        let start = now();
        for duration in [NANOSECOND, MILLISECOND, HOUR, 10_000 * HOUR] {
            let before = now();
            let nap = sleep(duration);
            assert_eq!(nap.deadline(), before + duration);
            nap.await;
            assert_eq!(now(), before + duration);
        }
        let deadline = start + 20_000 * HOUR;
        sleep_until(deadline).await;
        assert_eq!(now(), deadline);
    });
}

#[test]
fn a_deadline_that_is_over_is_ready_at_once() {
    run_on_test_clock(async || {
        sleep(HOUR).await;
        let start = now();
        assert!(poll_once(sleep_until(start - HOUR)).await.is_some());
        assert!(poll_once(sleep_until(start)).await.is_some());
        assert!(poll_once(sleep(Duration::ZERO)).await.is_some());
        assert!(poll_once(sleep(NANOSECOND)).await.is_none());
        assert_eq!(now(), start);
    });
}

#[test]
fn sleeps_with_one_deadline_end_in_the_order_in_which_they_began() {
    run_on_test_clock(async || {
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..100)
            .map(|n| {
                let order = order.clone();
                spawn(async move {
                    sleep(SECOND).await;
                    order.borrow_mut().push(n);
                })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        assert!(order.borrow().iter().copied().eq(0..100));
    });
}

#[test]
fn a_sleep_that_is_reset_waits_for_its_new_deadline() {
    run_on_test_clock(async || {
        let start = now();
        let mut nap = sleep(HOUR);
        assert!(poll_once(&mut nap).await.is_none());
        nap.reset(start + SECOND);
        (&mut nap).await;
        assert_eq!(now(), start + SECOND);
        // After it has fired, too, and to a later deadline as well as to an earlier one.
        nap.reset(start + HOUR);
        assert!(poll_once(&mut nap).await.is_none());
        nap.reset(start + 2 * HOUR);
        nap.await;
        assert_eq!(now(), start + 2 * HOUR);
    });
}

#[test]
fn a_sleep_wakes_the_task_that_polled_it_last() {
    run_on_test_clock(async || {
        let mut nap = Some(sleep(SECOND));
        let polled_here = poll_fn(|cx| {
            let nap = nap.as_mut().unwrap();
            Poll::Ready(Pin::new(nap).poll(cx).is_ready())
        });
        assert!(!polled_here.await);
        let nap = nap.take().unwrap();
        timeout(HOUR, spawn(nap)).await.expect("is woken there");
    });
}

#[test]
fn an_interval_stays_on_its_grid_and_accounts_for_every_tick_however_slow_its_consumer() {
    testing::for_each_seed(0..50, |seed| {
        run_on_test_clock(async move || {
            let mut random = fastrand::Rng::with_seed(seed);
            let period = Duration::from_nanos(random.u64(1..3_000_000_000));
            let start = now();
            let mut ticks = interval(period);
            let mut last = 0;
            for taken in 1..200 {
                let due = ticks.next().await.unwrap();
                let since_start = (due - start).as_nanos();
                assert_eq!(since_start % period.as_nanos(), 0, "on the grid");
                let number = (since_start / period.as_nanos()) as u64;
                assert!(due <= now(), "never early");
                assert!(number > last, "never twice");
                last = number;
                // What has been due by now was this tick, was taken before, or is missed.
                let due_by_now = ((now() - start).as_nanos() / period.as_nanos()) as u64;
                assert_eq!(taken + ticks.missed(), due_by_now);
                if random.bool() {
                    sleep(period.mul_f64(random.f64() * 5.0)).await;
                } else if random.bool() {
                    // To the nanosecond at which a tick is due.
                    sleep_until(start + period * random.u32(number as u32..number as u32 + 4))
                        .await;
                }
            }
        });
    });
}

#[test]
fn an_interval_without_an_end_in_sight_does_not_overflow() {
    run_on_test_clock(async || {
        let mut ticks = interval(Duration::MAX);
        assert_eq!(timeout(HOUR, ticks.next()).await, Err(TimedOut));
        let mut ticks = interval(NANOSECOND);
        ticks.next().await;
        sleep(10_000 * HOUR).await;
        let missed = (10_000 * HOUR).as_nanos() as u64 - 1;
        ticks.next().await;
        assert_eq!(ticks.missed(), missed);
    });
}

#[test]
fn a_timeouts_time_starts_with_the_call() {
    run_on_test_clock(async || {
        let start = now();
        let waiting = timeout(SECOND, pending::<()>());
        let ready_too_late = timeout(SECOND, ready(7));
        sleep(HOUR).await;
        assert_eq!(waiting.await, Err(TimedOut));
        assert_eq!(now() - start, HOUR);
        assert_eq!(ready_too_late.await, Ok(7), "what is ready wins");
    });
}

#[test]
fn a_future_that_is_ready_at_the_same_moment_as_its_timeout_wins() {
    run_on_test_clock(async || {
        assert_eq!(timeout(SECOND, sleep(SECOND)).await, Ok(()));
        // Whichever timer was set first.
        let later = async {
            yield_now().await;
            sleep_until(now() + SECOND).await;
        };
        assert_eq!(timeout(SECOND, later).await, Ok(()));
        assert_eq!(
            timeout(SECOND, sleep(SECOND + NANOSECOND)).await,
            Err(TimedOut)
        );
        assert_eq!(timeout(Duration::ZERO, ready(7)).await, Ok(7));
    });
}

#[test]
fn a_future_is_dropped_by_the_time_its_timeout_returns() {
    run_on_test_clock(async || {
        let (held, dropped) = TellDrop::new();
        assert_eq!(timeout(SECOND, hold(held)).await, Err(TimedOut));
        assert!(dropped.try_recv().is_ok());
    });
}

#[test]
fn a_timeout_becomes_an_io_error_with_a_question_mark() {
    async fn hello() -> io::Result<()> {
        Ok(timeout(SECOND, pending()).await?)
    }
    run_on_test_clock(async || {
        let error = hello().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "timed out");
        assert!(error.get_ref().unwrap().is::<TimedOut>());
    });
}

#[test]
fn an_idle_timeout_follows_the_test_clock() {
    run_on_test_clock(async || {
        let (server, connector) = testing::server();
        let serving = server
            .idle_timeout(HOUR)
            .shutdown_on(sleep(10 * HOUR))
            .serve(async |connection| tinyloop::echo(connection, b"Got: ").await);
        let serving = spawn(serving);
        let start = now();
        let mut peer = connector.connect(Faults::none()).unwrap();
        sleep(HOUR / 2).await;
        peer.write_all(b"hello").await.unwrap();
        let mut reply = Vec::new();
        let reset = peer.read_to_end(&mut reply).await.unwrap_err();
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(reply, b"Got: hello");
        assert_eq!(now() - start, HOUR / 2 + HOUR);
        drop(peer);
        let report = serving.await.unwrap();
        assert_eq!((report.timed_out, report.accepted), (1, 1));
        assert_eq!(now() - start, 10 * HOUR);
    });
}

#[test]
fn a_stall_timeout_follows_the_test_clock() {
    run_on_test_clock(async || {
        let (server, connector) = testing::server();
        let serving = server
            .stall_timeout(HOUR)
            .shutdown_on(sleep(10 * HOUR))
            .serve(async |mut connection| {
                loop {
                    connection.write_all(&[b'x'; 1000]).await?;
                }
            });
        let serving = spawn(serving);
        let start = now();
        let mut peer = connector.connect(Faults::none()).unwrap();
        sleep(HOUR / 2).await;
        peer.read_exact(&mut [0; 1000]).await.unwrap();
        let mut rest = Vec::new();
        sleep(HOUR + HOUR / 4).await;
        let reset = peer.read_to_end(&mut rest).await.unwrap_err();
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(now() - start, HOUR / 2 + HOUR + HOUR / 4);
        drop(peer);
        assert_eq!(serving.await.unwrap().timed_out, 1);
    });
}

#[test]
fn a_drain_ends_at_its_deadline_on_the_test_clock() {
    run_on_test_clock(async || {
        let (server, connector) = testing::server();
        let serving = server
            .shutdown_on(sleep(SECOND))
            .drain(HOUR)
            .serve(async |connection| {
                hold(connection).await;
                Ok(())
            });
        let start = now();
        let serving = spawn(serving);
        let _peer = connector.connect(Faults::none()).unwrap();
        let report = serving.await.unwrap();
        assert_eq!(now() - start, SECOND + HOUR);
        assert_eq!((report.accepted, report.aborted), (1, 1));
    });
}

/// `count` sleeps that are waited for, a nanosecond apart.
async fn waiting_sleeps(count: u32) -> Vec<Sleep> {
    let mut sleeps: Vec<Sleep> = (0..count).map(|n| sleep(HOUR + n * NANOSECOND)).collect();
    poll_fn(|cx| {
        let waits = |nap: &mut Sleep| Pin::new(nap).poll(cx).is_pending();
        assert!(sleeps.iter_mut().all(waits));
        Poll::Ready(())
    })
    .await;
    sleeps
}

#[test]
fn a_million_timers_end_in_order() {
    const COUNT: u32 = 1_000_000;
    run_on_test_clock(async || {
        let start = now();
        let mut sleeps = waiting_sleeps(COUNT).await;
        let mut cancelled = 0;
        sleeps.retain(|_| {
            cancelled += 1;
            cancelled % 100 == 1
        });
        for (n, nap) in (0..).step_by(100).zip(sleeps) {
            nap.await;
            assert_eq!(now() - start, HOUR + n * NANOSECOND);
        }
    });
}

#[test]
fn cancelled_timers_do_not_accumulate() {
    in_a_process_of_its_own(|| {
        run(async || {
            let mut most = 0;
            for round in 0..30 {
                let sleeps = waiting_sleeps(10_000).await;
                drop(sleeps);
                // The loop sleeps and wakes in between, as in life.
                sleep(10 * Duration::from_micros(1)).await;
                match round {
                    4 => most = resident_bytes(getpid()) + 4 * 1024 * 1024,
                    5.. => assert!(resident_bytes(getpid()) < most, "grows"),
                    _ => {}
                }
            }
        });
    });
}

/// How often the test around `F` writes when it sets so many timers: a timer of smol's is set by a write to an eventfd.
/// The calls of each look at the sockets would blur the count: now and then smol's helper thread looks instead.
fn writes<F>(timers: u32, directory: &Path) -> usize {
    let trace = directory.join(format!("{timers} timers"));
    let test = test_alone::<F>();
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qq", "-e", "trace=write"])
        .arg("-o")
        .arg(&trace)
        .arg(test.get_program())
        .args(test.get_args())
        .envs(
            test.get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .env("TIMERS", timers.to_string())
        .stdout(Stdio::piped());
    let (status, stdout, stderr) = Program::spawn(&mut strace).wait();
    assert!(status.success(), "{stdout:?} {stderr:?}");
    fs::read_to_string(trace).unwrap().lines().count()
}

#[test]
#[ignore = "needs strace"]
fn a_timer_that_is_not_the_earliest_costs_no_system_call() {
    fn compare<F: FnOnce(u32)>(take_turns: F) {
        if let Ok(timers) = env::var("TIMERS") {
            return take_turns(timers.parse().unwrap());
        }
        let directory = TempDir::new("timers");
        let without = writes::<F>(0, &directory.path(""));
        let with = writes::<F>(1000, &directory.path(""));
        // The loop wakes a few times more or less often.
        let difference = with.abs_diff(without);
        assert!(difference < 50, "{with} with timers, {without} without");
    }
    // A thousand turns of the loop, with a timer set in each of the first ones, and half of them cancelled.
    compare(|timers: u32| {
        run(async move || {
            let earliest = spawn(sleep(HOUR / 2));
            let mut waiting = Vec::new();
            for n in 0..1000 {
                if n < timers {
                    let mut nap = sleep(HOUR);
                    assert!(poll_once(&mut nap).await.is_none());
                    if n % 2 == 0 {
                        waiting.push(nap);
                    }
                }
                yield_now().await;
            }
            drop(earliest);
        });
    });
}
