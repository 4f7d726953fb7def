//! Task groups: the order of results, the limit, cancelling, and panics.

use std::cell::Cell;
use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use futures_lite::future::{poll_once, yield_now};
use futures_lite::{FutureExt, StreamExt};
use smol::channel;
use tinyloop::{TaskGroup, now, sleep, timeout};

use crate::support::{TellDrop, hold, panic_message, run, run_on_test_clock, within_deadline};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn results_come_in_the_order_of_completion() {
    run_on_test_clock(async || {
        let mut group = TaskGroup::new();
        for seconds in [5, 1, 4, 2, 3] {
            let nap = async move {
                sleep(seconds * SECOND).await;
                seconds
            };
            group.spawn(nap).await;
        }
        assert_eq!(group.running(), 5);
        let start = now();
        for seconds in 1..=5 {
            assert_eq!(group.next().await, Some(seconds));
            assert_eq!(now() - start, seconds * SECOND, "as soon as it is there");
        }
        assert_eq!(group.next().await, None);
    });
}

#[test]
fn results_that_nobody_took_in_time_keep_their_order() {
    run_on_test_clock(async || {
        let mut group = TaskGroup::new();
        for seconds in [2, 3, 1] {
            group
                .spawn(async move {
                    sleep(seconds * SECOND).await;
                    seconds
                })
                .await;
        }
        sleep(10 * SECOND).await;
        assert_eq!(group.running(), 0);
        let order: Vec<u32> = group.collect().await;
        assert_eq!(order, [1, 2, 3]);
    });
}

#[test]
fn an_empty_group_ends_and_goes_on_after_another_task() {
    run(async || {
        let mut group = TaskGroup::default();
        assert_eq!(group.next().await, None);
        for n in 0..3 {
            group.spawn(async move { n }).await;
            assert_eq!(group.next().await, Some(n));
            assert_eq!(group.next().await, None);
        }
    });
}

#[test]
fn at_the_limit_a_spawn_waits_for_the_next_task_to_end() {
    run_on_test_clock(async || {
        let (running, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let mut group = TaskGroup::new().limit(3);
        let start = now();
        for n in 0..9 {
            let (running, most) = (running.clone(), most.clone());
            let work = async move {
                running.set(running.get() + 1);
                most.set(most.get().max(running.get()));
                sleep(SECOND).await;
                running.set(running.get() - 1);
            };
            group.spawn(work).await;
            assert!(group.running() <= 3);
            assert_eq!(now() - start, (n / 3) * SECOND, "three in each second");
        }
        assert_eq!(
            group.count().await,
            9,
            "no result is lost while a spawn waits"
        );
        assert_eq!(most.get(), 3);
        assert_eq!(now() - start, 3 * SECOND);
    });
}

#[test]
fn a_spawn_that_is_given_up_at_the_limit_starts_nothing() {
    run_on_test_clock(async || {
        let mut group = TaskGroup::new().limit(1);
        group.spawn(sleep(10 * SECOND)).await;
        let (held, dropped) = TellDrop::new();
        assert!(timeout(SECOND, group.spawn(hold(held))).await.is_err());
        assert!(dropped.try_recv().is_ok());
        assert_eq!(group.running(), 1);
        assert_eq!(group.count().await, 1);
    });
}

#[test]
fn a_limit_of_zero_is_refused() {
    assert_eq!(
        panic_message(|| TaskGroup::<()>::new().limit(0)),
        "a group that may run no task would wait forever"
    );
}

#[test]
fn a_task_of_a_group_is_started_inside_a_loop_only() {
    let message = panic_message(|| smol::block_on(TaskGroup::new().spawn(async {})));
    assert_eq!(
        message,
        "tinyloop::TaskGroup::spawn was called outside a running event loop"
    );
}

#[test]
fn cancel_returns_when_the_futures_are_dropped_and_keeps_what_had_finished() {
    run_on_test_clock(async || {
        let mut group = TaskGroup::new();
        let mut drops = Vec::new();
        for n in 0..100 {
            let (held, dropped) = TellDrop::new();
            drops.push(dropped);
            group
                .spawn(async move {
                    let _held = held;
                    sleep(n * SECOND).await;
                    n
                })
                .await;
        }
        sleep(49 * SECOND + SECOND / 2).await;
        // And one that has not been polled.
        let (held, dropped) = TellDrop::new();
        drops.push(dropped);
        group
            .spawn(async move {
                hold(held).await;
                0
            })
            .await;
        group.cancel().await;
        for dropped in drops {
            assert!(dropped.try_recv().is_ok());
        }
        assert_eq!(group.running(), 0);
        for n in 0..50 {
            assert_eq!(group.next().await, Some(n));
        }
        assert_eq!(group.next().await, None);

        group.spawn(async { 7 }).await;
        assert_eq!(group.next().await, Some(7), "it can be used again");
    });
}

#[test]
fn a_cancelled_group_has_room_again() {
    run(async || {
        let mut group = TaskGroup::new().limit(2);
        group.spawn(pending::<()>()).await;
        group.spawn(pending()).await;
        group.cancel().await;
        group.spawn(async {}).await;
        group.spawn(pending()).await;
        assert_eq!(group.next().await, Some(()));
        assert_eq!(group.running(), 1);
    });
}

#[test]
fn dropping_a_group_cancels_its_tasks() {
    run(async || {
        let mut group = TaskGroup::new();
        let mut drops = Vec::new();
        for _ in 0..10 {
            let (held, dropped) = TellDrop::new();
            group.spawn(hold(held)).await;
            drops.push(dropped);
        }
        drop(group);
        // A cancelled task is dropped by the loop.
        for dropped in drops {
            while dropped.try_recv().is_err() {
                yield_now().await;
            }
        }
    });
}

#[test]
fn a_panic_reaches_whoever_takes_the_result_and_the_others_go_on() {
    run_on_test_clock(async || {
        let mut group = TaskGroup::new();
        for seconds in 1..=3 {
            group
                .spawn(async move {
                    sleep(seconds * SECOND).await;
                    assert_ne!(seconds, 2, "the second panics");
                    seconds
                })
                .await;
        }
        assert_eq!(group.next().await, Some(1));
        let taken = AssertUnwindSafe(group.next()).catch_unwind().await;
        let message = taken.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("the second panics"), "{message}");
        assert_eq!(group.next().await, Some(3));
        assert_eq!(group.next().await, None);
    });
}

#[test]
fn a_panic_that_nobody_takes_harms_nobody() {
    run(async || {
        let mut group = TaskGroup::new();
        group.spawn(async { panic!("is not taken") }).await;
        while group.running() > 0 {
            yield_now().await;
        }
        group.spawn(async {}).await;
        group.cancel().await;
        drop(group);
    });
}

#[test]
fn nothing_is_held_for_a_task_that_is_finished_and_taken() {
    run(async || {
        // Held by the future and then by the result.
        let token = Rc::new(());
        let mut group = TaskGroup::new();
        for _ in 0..1000 {
            let (held, dropped) = TellDrop::new();
            let part_of_result = token.clone();
            let task = async move {
                yield_now().await;
                drop(held);
                part_of_result
            };
            group.spawn(task).await;
            assert_eq!(Rc::strong_count(&token), 2);
            drop(group.next().await.unwrap());
            assert!(dropped.try_recv().is_ok());
            assert_eq!(Rc::strong_count(&token), 1);
        }
    });
}

#[test]
fn a_task_may_start_more_in_another_group_and_whoever_waits_is_woken() {
    run(async || {
        let (sender, receiver) = channel::unbounded();
        let mut outer = TaskGroup::new().limit(2);
        for n in 0..10 {
            let sender = sender.clone();
            outer
                .spawn(async move {
                    let mut inner = TaskGroup::new().limit(3);
                    for m in 0..10 {
                        let sender = sender.clone();
                        inner
                            .spawn(async move {
                                yield_now().await;
                                sender.send(10 * n + m).await.unwrap();
                            })
                            .await;
                    }
                    inner.count().await
                })
                .await;
        }
        assert_eq!(outer.fold(0, |sum, count| sum + count).await, 100);
        drop(sender);
        let mut numbers: Vec<i32> = receiver.collect().await;
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..100));
    });
}

#[test]
fn whoever_waits_for_the_next_result_may_give_up_and_wait_again() {
    run_on_test_clock(async || {
        let mut group = TaskGroup::new();
        group.spawn(sleep(10 * SECOND)).await;
        for _ in 0..5 {
            assert!(timeout(SECOND, group.next()).await.is_err());
        }
        assert!(poll_once(group.next()).await.is_none());
        assert_eq!(group.next().await, Some(()));
    });
}

#[test]
fn the_group_of_a_loop_that_is_gone_can_be_dropped() {
    within_deadline(|| {
        let (held, dropped) = TellDrop::new();
        let group = tinyloop::run(async move {
            let mut group = TaskGroup::new();
            group.spawn(hold(held)).await;
            yield_now().await;
            group
        });
        assert!(dropped.try_recv().is_ok());
        drop(group);
    });
}
