//! The loop and other threads: blocking work, wakers, the order in which things are dropped, and what is left.

use std::fs;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use futures_lite::future::{poll_once, yield_now};
use futures_lite::{FutureExt, StreamExt};
use rustix::process::{Resource, Rlimit, geteuid, setrlimit};
use rustix::thread::{Uid, set_thread_res_uid};
use smol::channel;
use tinyloop::{EventLoop, Server, TaskGroup, sleep, spawn, unblock};

use crate::support::{
    TellDrop, hold, in_a_process_of_its_own, next, run, run_on_test_clock, within_deadline,
};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn blocking_work_runs_beside_the_loop() {
    run(async || {
        let (to_worker, from_loop) = mpsc::channel();
        let (to_loop, from_worker) = channel::bounded(1);
        // The worker blocks until the loop answers it, so neither can hold up the other.
        let work = unblock(move || {
            let mut sum = 0;
            for n in 0..10 {
                to_loop.send_blocking(n).unwrap();
                sum += next(&from_loop);
            }
            (sum, thread::current().id())
        });
        let work = spawn(work);
        while let Ok(n) = from_worker.recv().await {
            to_worker.send(10 * n).unwrap();
        }
        let (sum, thread) = work.await;
        assert_eq!(sum, 450);
        assert_ne!(thread, thread::current().id());
    });
}

#[test]
fn a_hundred_pieces_of_blocking_work_all_end() {
    run(async || {
        let mut work = TaskGroup::new();
        for n in 0..100 {
            work.spawn(unblock(move || n)).await;
        }
        let mut results: Vec<i32> = work.collect().await;
        results.sort_unstable();
        assert!(results.into_iter().eq(0..100));
    });
}

#[test]
fn a_panic_in_blocking_work_reaches_whoever_awaits_it() {
    run(async || {
        let work = unblock(|| panic!("in the pool"));
        let payload = AssertUnwindSafe(work).catch_unwind().await.unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&"in the pool"));
        assert_eq!(unblock(|| 7).await, 7);
    });
}

/// From now on no thread of this process, which has to be one of a test's own, can start another.
fn have_no_more_threads() {
    if geteuid().is_root() {
        // No such limit binds root. This thread becomes another user; where there is none, root is bound, too.
        let nobody = Uid::from_raw(65534);
        set_thread_res_uid(nobody, nobody, nobody).ok();
    }
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Nproc, none).unwrap();
    assert!(thread::Builder::new().spawn(|| ()).is_err());
}

#[test]
fn without_a_thread_to_look_it_up_a_server_does_not_bind_a_name_and_says_so() {
    in_a_process_of_its_own(|| {
        let event_loop = EventLoop::new().unwrap();
        have_no_more_threads();
        let bound = event_loop.run(async { Server::bind("localhost:0").await });
        let error = bound.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert_eq!(
            error.to_string(),
            "cannot listen on localhost:0: cannot start a thread to look up the address: \
             resource temporarily unavailable"
        );
    });
}

#[test]
fn the_test_clock_runs_on_while_a_thread_is_waited_for() {
    run_on_test_clock(async || {
        let (to_worker, from_loop) = mpsc::channel();
        let (to_loop, from_worker) = channel::bounded(1);
        // A thread of one's own, of which the loop does not know.
        let worker = thread::spawn(move || to_loop.send_blocking(next::<u32>(&from_loop)));
        let work = spawn(async move { from_worker.recv().await });
        sleep(HOUR).await;
        to_worker.send(7).unwrap();
        assert_eq!(work.await, Ok(7));
        worker.join().unwrap().unwrap();
    });
}

#[test]
fn a_task_is_woken_and_awaited_from_another_thread() {
    let (to_thread, handle) = mpsc::channel();
    let (ended, has_ended) = channel::bounded(1);
    let other = thread::spawn(move || {
        let (waker, task): (Waker, smol::Task<u32>) = next(&handle);
        waker.wake();
        let result = smol::block_on(task);
        ended.send_blocking(()).unwrap();
        result
    });
    run(async move || {
        let (tell_waker, waker) = mpsc::channel();
        let mut polls = 0;
        let task = spawn(poll_fn(move |cx| {
            polls += 1;
            if polls == 1 {
                tell_waker.send(cx.waker().clone()).unwrap();
                return Poll::Pending;
            }
            Poll::Ready(polls)
        }));
        yield_now().await;
        to_thread.send((waker.try_recv().unwrap(), task)).unwrap();
        // The loop has nothing to do until the other thread wakes it.
        has_ended.recv().await.unwrap();
    });
    assert_eq!(other.join().unwrap(), 2);
}

/// A future that gives its waker away at each poll, and never ends.
async fn give_wakers<T>(to: mpsc::Sender<Option<Waker>>, held: T) {
    poll_fn::<(), _>(|cx| {
        to.send(Some(cx.waker().clone())).ok();
        Poll::Pending
    })
    .await;
    drop(held);
}

#[test]
fn loop_handle_and_waker_may_be_dropped_in_any_order() {
    for order in ["lhw", "lwh", "hlw", "hwl", "wlh", "whl"] {
        within_deadline(move || {
            let event_loop = EventLoop::new().unwrap();
            let (held, dropped) = TellDrop::new();
            let (to, wakers) = mpsc::channel();
            let task = event_loop.spawn(give_wakers(to, held));
            event_loop.run(yield_now());
            let waker = wakers.try_recv().unwrap();

            let (mut event_loop, mut task, mut waker) = (Some(event_loop), Some(task), waker);
            for part in order.chars() {
                match part {
                    'l' => {
                        drop(event_loop.take());
                        assert!(dropped.try_recv().is_ok(), "{order}");
                    }
                    'h' => {
                        drop(task.take());
                        if let Some(event_loop) = &event_loop {
                            event_loop.run(yield_now());
                        }
                    }
                    _ => waker.take().unwrap().wake(),
                }
            }
            assert!(dropped.try_recv().is_err(), "{order}: dropped once");
        });
    }
}

#[test]
fn threads_may_wake_and_drop_wakers_while_the_loop_goes_away() {
    within_deadline(|| {
        let (senders, threads): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| {
                let (to_thread, wakers) = mpsc::channel::<Option<Waker>>();
                let wake_all = move || {
                    let mut kept = Vec::new();
                    for (n, waker) in wakers.iter().map_while(|waker| waker).enumerate() {
                        waker.wake_by_ref();
                        match n % 4 {
                            0 => drop(waker),
                            1 => waker.wake(),
                            _ => kept.push(waker.clone()),
                        }
                        if n % 500 == 0 {
                            kept.drain(..).for_each(Waker::wake);
                        }
                    }
                };
                (to_thread, thread::spawn(wake_all))
            })
            .unzip();
        for _ in 0..300 {
            let (held, dropped) = TellDrop::new();
            let held = Rc::new(held);
            tinyloop::run(async {
                for to_thread in &senders {
                    spawn(give_wakers(to_thread.clone(), held.clone())).detach();
                }
                drop(held);
                for _ in 0..10 {
                    yield_now().await;
                }
            });
            assert_eq!(dropped.try_recv(), Ok(thread::current().id()));
        }
        for to_thread in senders {
            to_thread.send(None).unwrap();
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn ten_thousand_loops_leave_nothing_behind() {
    in_a_process_of_its_own(|| {
        within_deadline(|| {
            let token = Rc::new(());
            let run_once = || {
                let event_loop = EventLoop::new().unwrap();
                let finished = event_loop.spawn(async {});
                event_loop.spawn(hold(token.clone())).detach();
                let held = token.clone();
                event_loop.run(async {
                    finished.await;
                    let waiting = spawn(async move {
                        sleep(HOUR).await;
                        drop(held);
                    });
                    assert!(poll_once(waiting).await.is_none());
                    spawn(sleep(HOUR)).detach();
                    yield_now().await;
                    spawn(hold(token.clone())).detach();
                });
            };
            run_once();
            let before = (descriptors(), threads());
            for _ in 0..10_000 {
                run_once();
            }
            assert_eq!((descriptors(), threads()), before);
            assert_eq!(Rc::strong_count(&token), 1);
        });
    });
}
