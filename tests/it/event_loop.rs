//! The event loop: tasks, wakers, panics, and time.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future::zip;
use futures_lite::{AsyncRead, AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt};
use smol::channel;
use tinyloop::testing::{Faults, pipe};
use tinyloop::{
    CHUNK, Connection, EventLoop, Task, TimedOut, interval, now, sleep, sleep_until, spawn,
    timeout, yield_now,
};

use crate::support::{
    DEADLINE, TellDrop, hold, panic_message, run, run_on_test_clock, within_deadline,
};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Runs `main` to its end, and counts how often it is polled.
async fn count_polls<T>(main: impl Future<Output = T>) -> (T, u32) {
    let mut main = pin!(main);
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        main.as_mut().poll(cx).map(|result| (result, polls))
    })
    .await
}

/// Starts tasks that are always ready, so that the loop is never idle.
fn spawn_restless_tasks() {
    for _ in 0..3 {
        let restless = async {
            loop {
                yield_now().await;
            }
        };
        spawn(restless).detach();
    }
}

#[test]
fn futures_need_not_be_send() {
    run(async || {
        let sum = Rc::new(Cell::new(0));
        let add = |n| {
            let sum = sum.clone();
            async move {
                yield_now().await;
                sum.set(sum.get() + n);
                sum
            }
        };
        let (first, second) = (spawn(add(1)), spawn(add(2)));
        let result: Rc<Cell<i32>> = first.await;
        second.await;
        assert_eq!(result.get(), 3);
    });
}

#[test]
fn main_is_polled_only_when_its_own_waker_fired() {
    let polls = run(async || {
        let (ping, pinged) = channel::unbounded();
        let (pong, ponged) = channel::unbounded();
        let (from_outside, outside) = channel::unbounded();
        let echo = async move {
            while let Ok(n) = pinged.recv().await {
                pong.send(n).await.unwrap();
            }
        };
        let count = async move {
            for n in 0..10_000 {
                ping.send(n).await.unwrap();
                assert_eq!(ponged.recv().await, Ok(n));
            }
            // Now the loop has nothing to do but wait for another thread, message by message.
            for n in 0..100 {
                let from_outside = from_outside.clone();
                thread::spawn(move || from_outside.send_blocking(n).unwrap());
                assert_eq!(outside.recv().await, Ok(n));
            }
        };
        spawn(echo).detach();
        count_polls(spawn(count)).await.1
    });
    assert_eq!(
        polls, 2,
        "once at the start, and once when the task had ended"
    );
}

#[test]
fn main_is_woken_by_another_thread_while_the_loop_sleeps() {
    run(async || {
        for n in 0..100 {
            let (sender, receiver) = channel::bounded(1);
            thread::spawn(move || sender.send_blocking(n).unwrap());
            assert_eq!(receiver.recv().await, Ok(n));
        }
    });
}

#[test]
fn tasks_left_over_are_dropped_before_run_returns() {
    within_deadline(|| {
        let (never_polled, first_dropped) = TellDrop::new();
        let (waiting, second_dropped) = TellDrop::new();
        let (ready, third_dropped) = TellDrop::new();
        tinyloop::run(async {
            spawn(hold(waiting)).detach();
            spawn(async move {
                let _ready = ready;
                loop {
                    yield_now().await;
                }
            })
            .detach();
            yield_now().await;
            spawn(hold(never_polled)).detach();
        });
        for dropped in [first_dropped, second_dropped, third_dropped] {
            assert_eq!(dropped.try_recv(), Ok(thread::current().id()));
        }
    });
}

#[test]
fn what_needs_a_loop_says_so_outside_one() {
    let cases: [(&str, fn()); 6] = [
        ("spawn", || drop(spawn(async {}))),
        ("sleep", || drop(sleep(SECOND))),
        ("sleep_until", || drop(sleep_until(Instant::now()))),
        ("sleep", || drop(timeout(SECOND, async {}))),
        ("sleep", || drop(interval(SECOND))),
        ("now", || _ = now()),
    ];
    for (name, call) in cases {
        let message = format!("tinyloop::{name} was called outside a running event loop");
        assert_eq!(panic_message(call), message);
    }
    // After a loop, too.
    run(async || {});
    assert!(panic_message(|| spawn(async {})).contains("outside a running event loop"));
}

#[test]
fn a_loop_inside_a_loop_is_refused_and_harms_neither() {
    within_deadline(|| {
        let other = EventLoop::new().unwrap();
        tinyloop::run(async {
            for message in [
                panic_message(|| tinyloop::run(async {})),
                panic_message(|| other.run(async {})),
            ] {
                assert!(message.contains("cannot run inside another"), "{message}");
            }
            assert_eq!(spawn(async { 7 }).await, 7);
        });
        assert_eq!(other.run(async { spawn(async { 8 }).await }), 8);
    });
}

#[test]
fn a_loop_can_run_again_and_leftover_tasks_go_on() {
    within_deadline(|| {
        let event_loop = EventLoop::new().unwrap();
        let steps = Rc::new(RefCell::new(Vec::new()));
        let (go, may_go) = channel::unbounded();
        let task = event_loop.spawn({
            let steps = steps.clone();
            async move {
                while let Ok(step) = may_go.recv().await {
                    steps.borrow_mut().push(step);
                }
                sleep(MILLISECOND).await;
                "done"
            }
        });
        for step in 1..=3 {
            event_loop.run(async {
                go.send(step).await.unwrap();
                while steps.borrow().last() != Some(&step) {
                    yield_now().await;
                }
            });
        }
        drop(go);
        assert_eq!(event_loop.run(task), "done");
        assert_eq!(*steps.borrow(), [1, 2, 3]);
    });
}

#[test]
fn a_panic_in_a_task_reaches_whoever_awaits_it_and_nobody_else() {
    run(async || {
        let bystander = spawn(async {
            sleep(MILLISECOND).await;
            "unharmed"
        });
        spawn(async { panic!("detached") }).detach();
        let dropped = spawn(async { panic!("not awaited") });
        let awaited = spawn(async {
            yield_now().await;
            panic!("awaited")
        });
        let payload = AssertUnwindSafe(awaited).catch_unwind().await.unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&"awaited"));
        drop(dropped);
        assert_eq!(bystander.await, "unharmed");
    });
}

#[test]
fn a_panic_in_main_leaves_the_thread_able_to_run_another_loop() {
    within_deadline(|| {
        let (waiting, dropped) = TellDrop::new();
        let message = panic_message(|| {
            tinyloop::run(async {
                spawn(hold(waiting)).detach();
                yield_now().await;
                panic!("main is over")
            })
        });
        assert_eq!(message, "main is over");
        assert!(dropped.try_recv().is_ok(), "its tasks are gone");
        let after = async {
            sleep(MILLISECOND).await;
            spawn(async { 7 }).await
        };
        assert_eq!(tinyloop::run(after), 7);
    });
}

#[test]
fn a_panic_in_main_leaves_its_loop_able_to_run_again() {
    within_deadline(|| {
        let event_loop = EventLoop::new().unwrap();
        let task = event_loop.spawn(async {
            sleep(MILLISECOND).await;
            7
        });
        panic_message(|| event_loop.run(async { panic!("main is over") }));
        assert_eq!(event_loop.run(task), 7);
    });
}

#[test]
fn dropping_or_cancelling_a_task_drops_its_future() {
    run(async || {
        let (held, dropped) = TellDrop::new();
        let task = spawn(hold(held));
        yield_now().await;
        drop(task);
        while dropped.try_recv().is_err() {
            yield_now().await;
        }

        let (held, dropped) = TellDrop::new();
        let task = spawn(hold(held));
        yield_now().await;
        assert_eq!(task.cancel().await, None);
        assert!(dropped.try_recv().is_ok(), "cancel waits for the drop");
    });
}

#[test]
fn a_handle_may_outlive_its_loop() {
    within_deadline(|| {
        let (held, dropped) = TellDrop::new();
        let (finished, cancelled, only_dropped) = tinyloop::run(async {
            let finished = spawn(async { 7 });
            while !finished.is_finished() {
                yield_now().await;
            }
            (finished, spawn(hold(held)), spawn(pending::<()>()))
        });
        assert!(dropped.try_recv().is_ok());
        assert_eq!(smol::block_on(finished), 7);
        assert_eq!(smol::block_on(cancelled.fallible()), None);
        drop(only_dropped);

        let event_loop = EventLoop::new().unwrap();
        let (held, dropped) = TellDrop::new();
        let never_run = event_loop.spawn(hold(held));
        drop(event_loop);
        assert!(dropped.try_recv().is_ok());
        drop(never_run);
    });
}

#[test]
fn a_loop_may_outlive_its_handles() {
    within_deadline(|| {
        let event_loop = EventLoop::new().unwrap();
        let (held, dropped) = TellDrop::new();
        drop(event_loop.spawn(hold(held)));
        event_loop.run(yield_now());
        assert!(dropped.try_recv().is_ok());
        drop(event_loop);
    });
}

#[test]
fn wakers_work_on_other_threads_and_after_the_loop_is_gone() {
    within_deadline(|| {
        let (to_thread, wakers) = mpsc::channel();
        let (is_gone, gone) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            // One is woken at once, and all are kept until the loop is gone.
            let kept: Vec<_> = wakers
                .iter()
                .inspect(std::task::Waker::wake_by_ref)
                .collect();
            gone.recv().unwrap_err();
            for waker in kept {
                waker.wake_by_ref();
                drop(waker.clone());
                waker.wake();
            }
        });

        /// Pending once, until the waker that it gives away is used.
        async fn wait_for_thread(to_thread: mpsc::Sender<std::task::Waker>) {
            let mut to_thread = Some(to_thread);
            poll_fn(|cx| match to_thread.take() {
                Some(to_thread) => {
                    to_thread.send(cx.waker().clone()).unwrap();
                    Poll::Pending
                }
                None => Poll::Ready(()),
            })
            .await;
        }

        let (held, dropped) = TellDrop::new();
        tinyloop::run(async move {
            wait_for_thread(to_thread.clone()).await;
            spawn(wait_for_thread(to_thread.clone())).await;
            let (is_woken, woken) = channel::bounded(1);
            let left = spawn(async move {
                wait_for_thread(to_thread).await;
                is_woken.send(()).await.unwrap();
                hold(held).await;
            });
            left.detach();
            woken.recv().await.unwrap();
        });
        assert_eq!(
            dropped.try_recv(),
            Ok(thread::current().id()),
            "however long its waker lives, a task ends with its loop and on its thread"
        );
        drop(is_gone);
        thread.join().unwrap();
    });
}

#[test]
fn a_task_that_is_always_ready_starves_neither_timers_nor_sockets() {
    run(async || {
        spawn_restless_tasks();
        sleep(MILLISECOND).await;
        let listener = async_net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let client = spawn(async move {
            let mut stream = async_net::TcpStream::connect(addr).await?;
            stream.write_all(b"hello").await?;
            io::Result::Ok(stream)
        });
        let (mut accepted, _) = listener.accept().await.unwrap();
        let mut message = [0; 5];
        accepted.read_exact(&mut message).await.unwrap();
        assert_eq!(&message, b"hello");
        client.await.unwrap();
    });
}

#[test]
fn a_transfer_has_its_share_beside_tasks_that_are_always_ready() {
    run(async || {
        spawn_restless_tasks();
        let (connection, peer) = pipe(Faults::none());
        let echo = spawn(async move { tinyloop::echo(connection, b"").await });
        let sent = vec![b'x'; 1_000_000];
        let mut received = vec![0; sent.len()];
        let (mut reader, mut writer) = (&peer, &peer);
        let (read, written) = zip(reader.read_exact(&mut received), writer.write_all(&sent)).await;
        read.and(written).unwrap();
        assert!(received == sent);
        drop((peer, echo));
    });
}

#[test]
fn a_connection_that_has_had_its_burst_goes_after_those_that_become_ready() {
    // On the test clock, whose turns are counted in polls, so that all of this is one turn.
    run_on_test_clock(async || {
        let log = Rc::new(RefCell::new(Vec::new()));
        let (event, happens) = channel::bounded(1);
        let mut tasks = vec![spawn({
            let log = log.clone();
            async move {
                happens.recv().await.unwrap();
                log.borrow_mut().push("woken");
            }
        })];
        for is_last in [false, false, true] {
            let (mut connection, mut peer) = pipe(Faults::none());
            let mut burst = vec![0; 64 * 1024];
            peer.write_all(&burst).await.unwrap();
            let (log, event) = (log.clone(), event.clone());
            tasks.push(spawn(async move {
                connection.read_exact(&mut burst).await.unwrap();
                log.borrow_mut().push("burst");
                if is_last {
                    event.try_send(()).unwrap();
                }
                assert_eq!(connection.read(&mut burst).await.unwrap(), 0);
                log.borrow_mut().push("goes on");
            }));
        }
        for task in tasks {
            task.await;
        }
        let bursts = ["burst"; 3].into_iter();
        let rest = ["woken", "goes on", "goes on", "goes on"];
        assert_eq!(*log.borrow(), bursts.chain(rest).collect::<Vec<_>>());
    });
}

#[test]
fn a_connection_that_goes_last_gets_nothing_by_asking_again() {
    run(async || {
        let (stream, mut peer) = async_net::unix::UnixStream::pair().unwrap();
        peer.write_all(&[b'x'; 150_000]).await.unwrap();
        let mut connection = Connection::from(stream);
        let (mut chunk, mut in_each_poll) = ([0; 10_000], Vec::new());
        poll_fn(|cx| {
            let mut received = 0;
            for _ in 0..100 {
                if let Poll::Ready(n) = Pin::new(&mut connection).poll_read(cx, &mut chunk) {
                    received += n.unwrap();
                }
            }
            in_each_poll.push(received);
            match in_each_poll.iter().sum::<usize>() {
                150_000 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
        // A burst ends with the chunk that reaches 64 KiB.
        assert_eq!(in_each_poll, [70_000, 70_000, 10_000]);
    });
}

#[test]
fn a_connection_that_waits_between_its_messages_never_goes_last() {
    // On the test clock, whose turns are counted in polls.
    run_on_test_clock(async || {
        let polls = Rc::new(Cell::new(0));
        let counted = polls.clone();
        spawn(async move {
            loop {
                counted.set(counted.get() + 1);
                yield_now().await;
            }
        })
        .detach();
        let (connection, mut peer) = pipe(Faults::none());
        let echo = spawn(async move { tinyloop::echo(connection, b"").await });
        let mut message = vec![b'x'; CHUNK];
        let mut polls_meanwhile = Vec::new();
        for _ in 0..40 {
            let before = polls.get();
            peer.write_all(&message).await.unwrap();
            peer.read_exact(&mut message).await.unwrap();
            polls_meanwhile.push(polls.get() - before);
        }
        // Whoever goes last beside a task that is always ready waits for the next turn, 16 polls later.
        let most = polls_meanwhile.iter().max();
        assert!(most < Some(&16), "{polls_meanwhile:?}");
        drop(echo);
    });
}

#[test]
fn those_that_go_last_go_on_in_the_next_run() {
    within_deadline(|| {
        let event_loop = EventLoop::with_test_clock().unwrap();
        let bursts = Rc::new(Cell::new(0));
        let tasks = event_loop.run(async {
            let mut tasks = Vec::new();
            for _ in 0..20 {
                let (mut connection, mut peer) = pipe(Faults::none());
                let mut burst = vec![0; 64 * 1024];
                peer.write_all(&burst).await.unwrap();
                let bursts = bursts.clone();
                tasks.push(spawn(async move {
                    connection.read_exact(&mut burst).await.unwrap();
                    bursts.set(bursts.get() + 1);
                    connection.read(&mut burst).await.unwrap()
                }));
            }
            while bursts.get() == 0 {
                yield_now().await;
            }
            tasks
        });
        assert!(!tasks.iter().all(Task::is_finished));
        event_loop.run(async {
            for task in tasks {
                assert_eq!(task.await, 0);
            }
        });
    });
}

#[test]
fn loops_on_several_threads_do_not_disturb_each_other() {
    let threads: Vec<_> = (0..4)
        .map(|n| {
            thread::spawn(move || {
                run(async move || {
                    let mut sum = 0;
                    for _ in 0..20 {
                        sum += spawn(async move {
                            sleep(MILLISECOND).await;
                            n
                        })
                        .await;
                    }
                    sum
                })
            })
        })
        .collect();
    for (n, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), 20 * n);
    }
}

#[test]
fn sleeps_end_in_the_order_of_their_deadlines_and_never_early() {
    run(async || {
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks = [30, 10, 20, 0].map(|milliseconds| {
            let order = order.clone();
            spawn(async move {
                let start = Instant::now();
                sleep(milliseconds * MILLISECOND).await;
                order.borrow_mut().push(milliseconds);
                assert!(start.elapsed() >= milliseconds * MILLISECOND);
            })
        });
        for task in tasks {
            task.await;
        }
        assert_eq!(*order.borrow(), [0, 10, 20, 30]);
    });
}

#[test]
fn a_long_sleep_holds_up_no_short_one() {
    run(async || {
        let long = spawn(sleep(HOUR));
        // The loop waits meanwhile, for an hour at most, and is woken from outside.
        smol::Timer::after(MILLISECOND).await;
        sleep(MILLISECOND).await;
        drop(long);
        sleep(MILLISECOND).await;
    });
}

#[test]
fn a_timeout_gives_the_result_or_says_that_time_is_over() {
    run_on_test_clock(async || {
        let start = now();
        assert_eq!(timeout(2 * HOUR, sleep(HOUR)).await, Ok(()));
        assert_eq!(now() - start, HOUR);
        assert_eq!(timeout(HOUR, sleep(2 * HOUR)).await, Err(TimedOut));
        assert_eq!(now() - start, 2 * HOUR);
        assert_eq!(timeout(HOUR, sleep(HOUR)).await, Ok(()), "both at once");
        assert_eq!(timeout(Duration::ZERO, async { 7 }).await, Ok(7));
        assert_eq!(timeout(SECOND, sleep(Duration::MAX)).await, Err(TimedOut));
        assert_eq!(timeout(Duration::MAX, sleep(SECOND)).await, Ok(()));

        let (held, dropped) = TellDrop::new();
        assert_eq!(timeout(SECOND, hold(held)).await, Err(TimedOut));
        assert!(dropped.try_recv().is_ok(), "the future is dropped");
    });
    let error = io::Error::from(TimedOut);
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(error.to_string(), "timed out");
}

#[test]
fn an_interval_ticks_on_a_grid_and_counts_what_was_missed() {
    run_on_test_clock(async || {
        let start = now();
        let mut ticks = interval(SECOND);
        for n in 1..=3 {
            assert_eq!(ticks.next().await, Some(start + n * SECOND));
            assert_eq!(now(), start + n * SECOND);
        }
        // The ticks at 4, 5, 6 and 7 seconds are due meanwhile: one is given, three are missed.
        sleep(Duration::from_millis(4500)).await;
        assert_eq!(ticks.next().await, Some(start + 4 * SECOND));
        assert_eq!(now(), start + Duration::from_millis(7500));
        assert_eq!(ticks.missed(), 3);
        assert_eq!(ticks.next().await, Some(start + 8 * SECOND));
        assert_eq!(ticks.missed(), 3);
    });
    let message = run(async || panic_message(|| interval(Duration::ZERO)));
    assert_eq!(message, "the period of an interval must not be zero");
}

#[test]
fn an_hour_passes_in_no_time_on_the_test_clock() {
    let real_start = Instant::now();
    run_on_test_clock(async || {
        let start = now();
        let one = spawn(sleep(HOUR));
        let two = spawn(async {
            for _ in 0..120 {
                sleep(60 * SECOND).await;
            }
        });
        one.await;
        assert_eq!(now() - start, HOUR);
        two.await;
        assert_eq!(now() - start, 2 * HOUR);
    });
    assert!(real_start.elapsed() < DEADLINE);
}

#[test]
fn the_test_clock_stands_still_while_a_task_can_run() {
    run_on_test_clock(async || {
        let start = now();
        let alarm = spawn(sleep(SECOND));
        for _ in 0..10_000 {
            yield_now().await;
        }
        assert_eq!(now(), start);
        assert!(!alarm.is_finished());
    });
}

#[test]
fn a_loop_ends_whole_while_eight_threads_wake_its_thousands_of_tasks() {
    within_deadline(|| {
        let event_loop = EventLoop::new().unwrap();
        let token = Rc::new(());
        let (to, wakers) = mpsc::channel();
        for _ in 0..4000 {
            let (to, held) = (to.clone(), token.clone());
            let give_wakers = async move {
                poll_fn::<(), _>(|cx| {
                    to.send(cx.waker().clone()).ok();
                    Poll::Pending
                })
                .await;
                drop(held);
            };
            event_loop.spawn(give_wakers).detach();
        }
        event_loop.run(yield_now());
        let wakers: Vec<Waker> = wakers.try_iter().collect();
        assert_eq!(wakers.len(), 4000);
        let is_gone = AtomicBool::new(false);
        let (wakes, woken) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..8 {
                let (wakers, wakes, is_gone) = (wakers.clone(), wakes.clone(), &is_gone);
                scope.spawn(move || {
                    wakes.send(()).unwrap();
                    while !is_gone.load(Ordering::Relaxed) {
                        wakers.iter().for_each(Waker::wake_by_ref);
                    }
                });
            }
            woken.iter().take(8).for_each(drop);
            event_loop.run(yield_now());
            drop(event_loop);
            let held = Rc::strong_count(&token);
            is_gone.store(true, Ordering::Relaxed);
            assert_eq!(held, 1);
        });
    });
}

#[test]
fn a_task_that_yields_and_a_connection_that_has_had_its_burst_take_turns() {
    run_on_test_clock(async || {
        let (lines, received) = channel::unbounded();
        let (connection, mut peer) = pipe(Faults::none());
        let most_waiting = Rc::new(Cell::new(0));
        let most = most_waiting.clone();
        // As in a chat: one task takes lines in, another writes them to somebody who reads all the time.
        let listen = spawn(async move {
            let mut connection = connection;
            while let Ok(line) = received.recv().await {
                most.set(most.get().max(received.len()));
                connection.write_all(line).await.unwrap();
            }
        });
        let read = spawn(async move {
            let mut text = String::new();
            peer.read_to_string(&mut text).await.unwrap();
            text.len()
        });
        for _ in 0..5000 {
            lines.send(b"hello\n").await.unwrap();
            yield_now().await;
        }
        drop(lines);
        listen.await;
        assert_eq!(read.await, 30_000);
        assert!(most_waiting.get() <= 2, "{} lines", most_waiting.get());
    });
}
