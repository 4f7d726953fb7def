//! What outlives its loop, and what a loop takes with it: threads, sleeps, groups, destructors, and forked processes.

#![expect(
    clippy::async_yields_async,
    reason = "futures that outlive their loop are what this file is about"
)]

use std::cell::RefCell;
use std::future::pending;
use std::net::TcpStream;
use std::panic::AssertUnwindSafe;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use fork::Fork;
use futures_lite::future::{poll_once, yield_now};
use futures_lite::{FutureExt, StreamExt};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use smol::channel;
use tinyloop::{
    Event, EventLoop, Server, TaskGroup, interval, now, sleep, sleep_until, spawn, timeout,
};

use crate::support::{
    DEADLINE, TellDrop, connect, hold, in_a_process_of_its_own, next, panic_message, read_to_reset,
    run, within_deadline,
};

const MILLISECOND: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Calls `call` when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Starts a task on `event_loop` that ends with it, and calls `call` then.
fn call_at_the_end_of(event_loop: &EventLoop, call: impl FnMut() + 'static) {
    event_loop.spawn(hold(OnDrop(call))).detach();
}

// The loop and its thread.

thread_local! {
    static LOOP: RefCell<Option<EventLoop>> = const { RefCell::new(None) };
}

/// Runs `start` on a loop that ends with its thread, after all other thread-locals: it has registered first.
fn in_a_loop_that_ends_with_its_thread<T: Send + 'static>(
    start: impl AsyncFnOnce() -> T + Send + 'static,
) -> T {
    within_deadline(|| {
        let thread = thread::spawn(|| {
            LOOP.with_borrow_mut(|slot| slot.insert(EventLoop::new().unwrap()).run(start()))
        });
        thread.join().unwrap()
    })
}

#[test]
fn a_loop_with_an_open_connection_may_end_with_its_thread() {
    in_a_process_of_its_own(|| {
        let client: TcpStream = in_a_loop_that_ends_with_its_thread(async || {
            let (connected, is_connected) = channel::bounded(1);
            let server = Server::bind("127.0.0.1:0").await.unwrap();
            let addr = server.local_addrs()[0].tcp().unwrap();
            let serving = server
                .idle_timeout(HOUR)
                .observe(move |event| {
                    if matches!(event, Event::Connected { .. }) {
                        connected.try_send(()).unwrap();
                    }
                })
                .serve(async |connection| tinyloop::echo(connection, b"").await);
            spawn(serving).detach();
            let client = connect(addr);
            is_connected.recv().await.unwrap();
            client
        });
        assert_eq!(read_to_reset(&client), b"", "the connection has ended");
    });
}

#[test]
fn destructors_may_use_a_loop_that_ends_with_its_thread() {
    in_a_process_of_its_own(|| {
        let (used, is_used) = mpsc::channel();
        in_a_loop_that_ends_with_its_thread(async move || {
            let use_loop = move || {
                drop((now(), sleep(HOUR), spawn(async {})));
                used.send(()).unwrap();
            };
            spawn(hold(OnDrop(use_loop))).detach();
            yield_now().await;
        });
        next(&is_used);
    });
}

// Sleeps.

#[test]
fn a_sleep_goes_on_in_a_later_run_and_in_another_loop() {
    within_deadline(|| {
        let first = EventLoop::new().unwrap();
        let (mut polled, unpolled, mut ticks) = first.run(async {
            let mut polled = sleep(MILLISECOND);
            poll_once(&mut polled).await;
            (polled, sleep(MILLISECOND), interval(MILLISECOND))
        });
        first.run(async {
            (&mut polled).await;
            ticks.next().await.unwrap();
        });
        first.run(async {
            polled.reset(now() + 5 * MILLISECOND);
            // On a busy machine their time may have come already.
            poll_once(&mut polled).await;
            poll_once(ticks.next()).await;
        });
        // Both while the first is there and when it is gone.
        let second = EventLoop::new().unwrap();
        second.run(async {
            let start = Instant::now();
            let deadline = polled.deadline();
            polled.await;
            assert!(Instant::now() >= deadline && start.elapsed() < DEADLINE);
            unpolled.await;
            ticks.next().await.unwrap();
        });
        drop((first, second));
        tinyloop::run(async {
            ticks.next().await.unwrap();
            ticks.next().await.unwrap();
        });
    });
}

#[test]
fn a_timeout_that_was_begun_in_one_loop_ends_in_another() {
    within_deadline(|| {
        let mut waiting = Box::pin(tinyloop::run(async {
            let mut waiting = Box::pin(timeout(5 * MILLISECOND, pending::<()>()));
            assert!(poll_once(&mut waiting).await.is_none());
            waiting
        }));
        assert!(tinyloop::run(&mut waiting).is_err());
    });
}

/// Tells whether it was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn whoever_waits_for_a_sleep_is_woken_when_its_loop_ends() {
    within_deadline(|| {
        // Such as a set of futures, which polls those only that were woken, always with the same waker.
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let mut nap = tinyloop::run(async {
            let mut nap = sleep(MILLISECOND);
            assert!(nap.poll(&mut context).is_pending());
            nap
        });
        assert!(woken.0.swap(false, Ordering::SeqCst));
        tinyloop::run(async {
            if nap.poll(&mut context).is_pending() {
                sleep_until(nap.deadline()).await;
                yield_now().await;
                assert!(woken.0.load(Ordering::SeqCst), "it waits in this loop");
                assert!(nap.poll(&mut context).is_ready());
            }
        });
    });
}

#[test]
fn a_sleep_that_no_loop_would_end_says_so() {
    within_deadline(|| {
        let message = "tinyloop: a sleep was awaited outside a running event loop";
        let event_loop = EventLoop::new().unwrap();
        let (polled, unpolled, mut ticks) = event_loop.run(async {
            let mut polled = sleep(HOUR);
            assert!(poll_once(&mut polled).await.is_none());
            (polled, sleep(Duration::ZERO), interval(HOUR))
        });
        assert_eq!(panic_message(|| smol::block_on(polled)), message);
        assert_eq!(panic_message(|| smol::block_on(unpolled)), message);
        let mut tick = || smol::block_on(ticks.next());
        assert_eq!(panic_message(AssertUnwindSafe(&mut tick)), message);
        drop(event_loop);
        assert_eq!(panic_message(AssertUnwindSafe(&mut tick)), message);
    });
}

#[test]
fn a_sleep_that_goes_from_one_clock_to_another_says_so() {
    within_deadline(|| {
        let message = "tinyloop: a sleep of one event loop was awaited in another, and one of them has a test clock";
        let with_test_clock = || EventLoop::with_test_clock().unwrap();
        let first = with_test_clock();
        let nap = || first.run(async { sleep(HOUR) });
        for other in [with_test_clock(), EventLoop::new().unwrap()] {
            assert_eq!(panic_message(|| other.run(nap())), message);
        }
        let nap = tinyloop::run(async { sleep(HOUR) });
        assert_eq!(panic_message(|| first.run(nap)), message);
        first.run(async { first_hour().await });
    });

    async fn first_hour() {
        let start = now();
        sleep(HOUR).await;
        assert_eq!(now() - start, HOUR);
    }
}

// Groups.

/// A group with a limit of two, both of whose tasks went with their loop.
fn group_without_its_loop() -> TaskGroup<u32> {
    tinyloop::run(async {
        let mut group = TaskGroup::new().limit(2);
        for _ in 0..2 {
            group.spawn(pending()).await;
        }
        yield_now().await;
        group
    })
}

const DROPPED: &str = "a task of the group was dropped with its event loop";

/// What the next result's panic says.
async fn next_panic(group: &mut TaskGroup<u32>) -> &'static str {
    let next = AssertUnwindSafe(group.next()).catch_unwind().await;
    next.unwrap_err().downcast_ref::<&str>().unwrap()
}

#[test]
fn a_group_says_of_each_task_that_went_with_its_loop() {
    within_deadline(|| {
        let mut group = group_without_its_loop();
        assert_eq!(group.running(), 0);
        tinyloop::run(async {
            assert_eq!(next_panic(&mut group).await, DROPPED);
            group.spawn(async { 7 }).await;
            assert_eq!(next_panic(&mut group).await, DROPPED);
            assert_eq!(group.next().await, Some(7));
            assert_eq!(group.next().await, None);
        });
        // And outside a loop.
        let mut group = group_without_its_loop();
        for _ in 0..2 {
            assert_eq!(smol::block_on(next_panic(&mut group)), DROPPED);
        }
        assert_eq!(smol::block_on(group.next()), None);
    });
}

#[test]
fn a_group_has_room_again_when_its_tasks_went_with_their_loop() {
    within_deadline(|| {
        let mut group = group_without_its_loop();
        run_two_more(&mut group);
        assert_eq!(group.running(), 0);
    });

    fn run_two_more(group: &mut TaskGroup<u32>) {
        tinyloop::run(async {
            for n in 0..2 {
                group.spawn(async move { n }).await;
            }
            while group.running() > 0 {
                yield_now().await;
            }
        });
    }
}

#[test]
fn no_task_of_a_cancelled_group_runs_wherever_its_loop_is() {
    within_deadline(|| {
        let mut group = group_without_its_loop();
        smol::block_on(group.cancel());
        assert_eq!(group.running(), 0);
        assert_eq!(smol::block_on(group.next()), None);
        tinyloop::run(async {
            group.spawn(async { 7 }).await;
            assert_eq!(group.next().await, Some(7));
            assert_eq!(group.next().await, None);
        });
    });
}

#[test]
fn a_cancel_that_is_given_up_goes_on_and_loses_no_result() {
    run(async || {
        let mut group = TaskGroup::new().limit(3);
        let (held, dropped) = TellDrop::new();
        group.spawn(async { 1 }).await;
        group.spawn(hold_for_ever(held)).await;
        while group.running() > 1 {
            yield_now().await;
        }
        assert!(poll_once(group.cancel()).await.is_none());
        group.spawn(async { 2 }).await;
        while dropped.try_recv().is_err() {
            yield_now().await;
        }
        group.spawn(async { 3 }).await;
        let results: Vec<u32> = group.collect().await;
        assert_eq!(results, [1, 2, 3]);
    });

    async fn hold_for_ever(held: TellDrop) -> u32 {
        hold(held).await;
        0
    }
}

#[test]
fn whoever_waits_for_a_group_is_woken_when_its_loop_ends() {
    within_deadline(|| {
        let first = EventLoop::new().unwrap();
        let mut group = first.run(async {
            let mut group = TaskGroup::new();
            group.spawn(pending()).await;
            group
        });
        tinyloop::run(async {
            let waiting = spawn(async move { next_panic(&mut group).await });
            yield_now().await;
            drop(first);
            assert_eq!(waiting.await, DROPPED);
        });
    });
}

// Destructors of what is dropped with its loop.

/// Uses the loop: what is spawned is dropped and does not run.
fn use_the_loop(tell: &mpsc::Sender<&'static str>) {
    let start = now();
    assert!(sleep(HOUR).deadline() >= start + HOUR);
    let (dropped, ran) = (tell.clone(), tell.clone());
    spawn(hold(OnDrop(move || dropped.send("a spawned one").unwrap()))).detach();
    spawn(async move { ran.send("runs").unwrap() }).detach();
    let mut group = TaskGroup::new();
    let dropped = tell.clone();
    let member = hold(OnDrop(move || dropped.send("one of a group").unwrap()));
    assert!(smol::block_on(poll_once(group.spawn(member))).is_some());
    tell.send("a task").unwrap();
}

#[test]
fn destructors_may_use_the_loop_that_drops_them() {
    within_deadline(|| {
        let (tell, told) = mpsc::channel();
        let tell = &tell;
        let start = |event_loop: &EventLoop| {
            let tell = tell.clone();
            call_at_the_end_of(event_loop, move || use_the_loop(&tell));
        };
        let see_that_all_are_dropped = || {
            let mut told: Vec<_> = told.try_iter().collect();
            told.sort_unstable();
            assert_eq!(told, ["a spawned one", "a task", "one of a group"]);
            let message = panic_message(|| spawn(async {}));
            assert!(message.contains("outside a running event loop"));
        };

        let never_run = EventLoop::new().unwrap();
        start(&never_run);
        drop(never_run);
        see_that_all_are_dropped();

        let has_run = EventLoop::new().unwrap();
        start(&has_run);
        has_run.run(yield_now());
        drop(has_run);
        see_that_all_are_dropped();

        let message = panic_message(|| {
            let event_loop = EventLoop::new().unwrap();
            start(&event_loop);
            event_loop.run(async { panic!("main is over") })
        });
        assert_eq!(message, "main is over");
        see_that_all_are_dropped();
    });
}

#[test]
fn destructors_are_on_the_clock_of_the_loop_that_drops_them() {
    within_deadline(|| {
        let event_loop = EventLoop::with_test_clock().unwrap();
        let end = event_loop.run(async {
            sleep(HOUR).await;
            now()
        });
        let (tell, told) = mpsc::channel();
        call_at_the_end_of(&event_loop, move || tell.send(now()).unwrap());
        drop(event_loop);
        assert_eq!(next(&told), end);
    });
}

#[test]
fn destructors_of_a_loop_that_is_dropped_inside_another_use_the_one_that_runs() {
    within_deadline(|| {
        let (ran, has_run) = channel::bounded(1);
        let inner = EventLoop::new().unwrap();
        call_at_the_end_of(&inner, move || {
            let ran = ran.clone();
            spawn(async move { ran.send(()).await.unwrap() }).detach();
        });
        tinyloop::run(async {
            drop(inner);
            has_run.recv().await.unwrap();
            assert_eq!(spawn(async { 7 }).await, 7);
        });
    });
}

#[test]
fn a_destructor_may_run_a_loop_of_its_own() {
    within_deadline(|| {
        let (tell, told) = mpsc::channel();
        let event_loop = EventLoop::new().unwrap();
        call_at_the_end_of(&event_loop, move || {
            let goodbye = tinyloop::run(async {
                sleep(MILLISECOND).await;
                spawn(async { "goodbye" }).await
            });
            // And is back in the loop that drops it.
            drop(spawn(async {}));
            tell.send(goodbye).unwrap();
        });
        event_loop.run(yield_now());
        drop(event_loop);
        assert_eq!(next(&told), "goodbye");
    });
}

#[test]
fn a_loop_may_be_dropped_by_a_destructor_of_another() {
    within_deadline(|| {
        let (tell, told) = mpsc::channel();
        let outer = EventLoop::new().unwrap();
        let inner = EventLoop::new().unwrap();
        let dropped = tell.clone();
        call_at_the_end_of(&inner, move || {
            drop(spawn(async {}));
            dropped.send("inner").unwrap();
        });
        let mut inner = Some(inner);
        call_at_the_end_of(&outer, move || {
            inner.take();
            drop(spawn(async {}));
            tell.send("outer").unwrap();
        });
        drop(outer);
        assert!(told.iter().eq(["inner", "outer"]));
    });
}

// Processes.

#[test]
fn a_forked_process_is_told_that_it_can_run_no_loop() {
    in_a_process_of_its_own(|| {
        within_deadline(|| {
            let message = "this process was forked from one that has run an event loop: \
                the thread of smol's reactor stayed there";
            let before = EventLoop::new().unwrap();
            before.run(async { sleep(MILLISECOND).await });
            let child = match fork::fork().unwrap() {
                Fork::Parent(child) => Pid::from_raw(child).unwrap(),
                Fork::Child => {
                    let in_run = panic_message(|| tinyloop::run(async {}));
                    let of_new = EventLoop::new().unwrap_err().to_string();
                    let in_an_old_one = panic_message(|| before.run(async {}));
                    let right = in_run == format!("cannot start the event loop: {message}")
                        && of_new == in_run
                        && in_an_old_one == message;
                    if !right {
                        eprintln!("{in_run}\n{of_new}\n{in_an_old_one}");
                        process::abort();
                    }
                    // An end that runs nothing more, and not that of a process whose only thread panics.
                    kill_process(getpid(), Signal::KILL).unwrap();
                    unreachable!();
                }
            };
            // The parent's go on.
            before.run(async { sleep(MILLISECOND).await });
            let start = Instant::now();
            let status = loop {
                if let Some((_, status)) = waitpid(Some(child), WaitOptions::NOHANG).unwrap() {
                    break status;
                }
                if start.elapsed() > DEADLINE / 2 {
                    kill_process(child, Signal::KILL).unwrap();
                    panic!("the child hangs");
                }
                thread::sleep(MILLISECOND);
            };
            let signal = status.terminating_signal();
            assert_eq!(signal, Some(Signal::KILL.as_raw()), "{status:?}");
        });
    });
}
