//! Tests of the executor alone, also under Miri: async-executor's own tests, adapted, and wakes from other threads.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Wake, Waker};
use std::thread::{self, ThreadId};

use async_task::Task;
use futures_lite::FutureExt;
use futures_lite::future::{block_on, poll_once, yield_now};

use super::Executor;

mod order;

impl Executor {
    fn start<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.spawn(future, || ())
    }

    /// Runs the ready tasks, as one turn.
    fn turn(&self) {
        let _entered = self.enter(Waker::noop().clone());
        self.begin_turn();
        while self.run_next() {}
        self.end_turn();
    }
}

/// Counts its drops, and stores the thread of the last drop.
#[derive(Clone, Default)]
struct Drops(Rc<Cell<u32>>, Rc<Cell<Option<ThreadId>>>);

struct Dropped(Drops);

impl Drops {
    fn held(&self) -> Dropped {
        Dropped(self.clone())
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        let Drops(count, thread) = &self.0;
        count.set(count.get() + 1);
        thread.set(Some(thread::current().id()));
    }
}

/// A task that holds `held`, gives its waker away at each poll and never ends.
async fn give_wakers(held: Dropped, to: mpsc::Sender<Waker>) {
    poll_fn::<(), _>(|cx| {
        to.send(cx.waker().clone()).ok();
        Poll::Pending
    })
    .await;
    drop(held);
}

#[test]
fn dropping_the_executor_drops_every_future_there_and_then() {
    let (executor, drops) = (Executor::new(), Drops::default());
    let (to, wakers) = mpsc::channel();
    let waits = executor.start(give_wakers(drops.held(), to));
    executor.turn();
    let never_ran = executor.start({
        let held = drops.held();
        async move { drop(held) }
    });
    assert_eq!(drops.0.get(), 0);
    drop(executor);
    assert_eq!(drops.0.get(), 2);
    for task in [waits, never_ran] {
        assert!(catch_unwind(AssertUnwindSafe(|| block_on(task))).is_err());
    }
    wakers.recv().unwrap().wake();
    assert_eq!(drops.0.get(), 2);
}

#[test]
fn a_result_can_be_taken_after_the_executor_is_gone_and_is_dropped_once() {
    let drops = Drops::default();
    for executor_first in [true, false] {
        let executor = Executor::new();
        let held = drops.held();
        let task = executor.start(async { held });
        executor.turn();
        let before = drops.0.get();
        if executor_first {
            drop(executor);
            assert_eq!(drops.0.get(), before);
            drop(block_on(task));
        } else {
            drop(task);
            assert_eq!(drops.0.get(), before + 1);
            drop(executor);
        }
        assert_eq!(drops.0.get(), before + 1);
    }
}

#[test]
fn a_panic_reaches_whoever_awaits_the_task_and_not_the_executor() {
    let executor = Executor::new();
    let task: Task<()> = executor.start(async { panic!("of the task") });
    executor.turn();
    let payload = block_on(AssertUnwindSafe(task).catch_unwind()).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"of the task"));
    let task = executor.start(ready(7));
    executor.turn();
    assert_eq!(block_on(task), 7);
}

#[test]
fn tasks_may_be_large_and_may_end_at_once_or_after_many_polls() {
    let executor = Executor::new();
    let large = executor.start(async {
        let mut bytes = [1_u8; 10_000];
        for byte in bytes.iter_mut().take(10) {
            *byte += 1;
            yield_now().await;
        }
        bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>()
    });
    let small = executor.start(ready(()));
    executor.turn();
    assert_eq!(block_on(large), 10_010);
    block_on(small);
}

#[test]
fn a_cancelled_task_is_dropped_at_its_turn_and_its_place_is_free() {
    let (executor, drops) = (Executor::new(), Drops::default());
    let (to, _wakers) = mpsc::channel();
    let task = executor.start(give_wakers(drops.held(), to));
    executor.turn();
    drop(task);
    assert_eq!(drops.0.get(), 0);
    executor.turn();
    assert_eq!(drops.0.get(), 1);
    assert!(executor.tasks.alive.borrow().is_empty());
}

#[test]
fn a_task_runs_on_its_own_executor_only() {
    let (one, other) = (Executor::new(), Executor::new());
    let polls = Rc::new(Cell::new(0));
    let (to, wakers) = mpsc::channel();
    let counted = polls.clone();
    let task = one.start(async move {
        poll_fn::<(), _>(|cx| {
            counted.set(counted.get() + 1);
            to.send(cx.waker().clone()).unwrap();
            Poll::Pending
        })
        .await;
    });
    other.turn();
    assert_eq!(polls.get(), 0);
    one.turn();
    assert_eq!(polls.get(), 1);
    // Woken while the other executor runs on this thread.
    let waker = wakers.recv().unwrap();
    let wakes = other.start(async move { waker.wake() });
    other.turn();
    block_on(wakes);
    assert_eq!(polls.get(), 1);
    one.turn();
    assert_eq!(polls.get(), 2);
    drop(task);
}

struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_wake_wakes_the_thread_if_it_sleeps_or_comes_from_another() {
    let executor = Executor::new();
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    let count = || wakes.0.load(Ordering::Relaxed);
    let (to, wakers) = mpsc::channel();
    let task = executor.start(give_wakers(Drops::default().held(), to));
    let _entered = executor.enter(Waker::from(wakes.clone()));
    assert!(executor.poll_ready().is_ready(), "the task is new");
    executor.begin_turn();
    assert!(executor.run_next());
    let waker = wakers.recv().unwrap();

    waker.wake_by_ref();
    assert_eq!(count(), 0, "it is awake");
    assert!(executor.run_next());
    assert!(executor.poll_ready().is_pending());
    waker.wake_by_ref();
    assert_eq!(count(), 1, "it sleeps");
    assert!(executor.poll_ready().is_ready());
    assert!(executor.run_next());
    thread::scope(|scope| {
        scope.spawn(|| waker.wake_by_ref());
    });
    assert_eq!(count(), 2, "another thread has woken the task");
    assert_eq!(executor.end_turn(), 0, "it has not arrived");
    assert!(executor.poll_ready().is_ready());
    drop(task);
}

#[test]
fn the_end_drops_every_future_on_its_thread_whatever_other_threads_do() {
    let (rounds, threads, tasks) = if cfg!(miri) {
        (3, 2, 12)
    } else {
        (20, 8, 2_000)
    };
    for _ in 0..rounds {
        let (executor, drops) = (Executor::new(), Drops::default());
        let (to, wakers) = mpsc::channel();
        for n in 0..tasks {
            let task = executor.start(give_wakers(drops.held(), to.clone()));
            match n % 3 {
                0 => drop(task),
                _ => task.detach(),
            }
        }
        executor.turn();
        let wakers: Vec<Waker> = wakers.try_iter().collect();
        let is_over = AtomicBool::new(false);
        let started = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..threads {
                let (wakers, is_over, started) = (wakers.clone(), &is_over, &started);
                scope.spawn(move || {
                    started.fetch_add(1, Ordering::Relaxed);
                    while !is_over.load(Ordering::Relaxed) {
                        wakers.iter().for_each(Waker::wake_by_ref);
                    }
                    // Also after the end. This may drop the last reference to a task.
                    wakers.into_iter().for_each(Waker::wake);
                });
            }
            while started.load(Ordering::Relaxed) < threads {
                executor.turn();
            }
            drop(wakers);
            drop(executor);
            let dropped = (drops.0.get(), drops.1.get());
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(dropped, (tasks, Some(thread::current().id())));
        });
        assert_eq!(drops.0.get(), tasks);
    }
}

#[test]
fn a_sleeping_thread_is_woken_whenever_another_thread_wakes_a_task() {
    let rounds = if cfg!(miri) { 30 } else { 3_000 };
    let executor = Executor::new();
    let (to, wakers) = mpsc::channel::<Waker>();
    let other = thread::spawn(move || wakers.into_iter().for_each(Waker::wake));
    let mut polls = 0;
    let task = executor.start(poll_fn(move |cx| {
        polls += 1;
        if polls == rounds {
            return Poll::Ready(polls);
        }
        to.send(cx.waker().clone()).unwrap();
        Poll::Pending
    }));
    let thread = block_on(poll_fn(|cx| Poll::Ready(cx.waker().clone())));
    let _entered = executor.enter(thread);
    while !task.is_finished() {
        block_on(poll_fn(|_| executor.poll_ready()));
        executor.begin_turn();
        while executor.run_next() {}
    }
    other.join().unwrap();
}

#[test]
fn a_destructor_may_wake_spawn_and_cancel() {
    struct Act(Option<Box<dyn FnOnce()>>);
    impl Drop for Act {
        fn drop(&mut self) {
            self.0.take().unwrap()();
        }
    }
    let (executor, drops) = (Rc::new(Executor::new()), Drops::default());
    let (to, wakers) = mpsc::channel();
    let mut others: Vec<Task<()>> = (0..3)
        .map(|_| executor.start(give_wakers(drops.held(), to.clone())))
        .collect();
    let act = |others: Vec<Task<()>>| {
        let (weak, wakers) = (
            Rc::downgrade(&executor),
            wakers.try_iter().collect::<Vec<_>>(),
        );
        Act(Some(Box::new(move || {
            wakers.into_iter().for_each(Waker::wake);
            drop(others);
            if let Some(executor) = weak.upgrade() {
                executor.start(ready(())).detach();
            }
        })))
    };
    executor.turn();
    // Once while the executor runs, with two of three others, and once at its end.
    for others in [others.split_off(1), others] {
        let act = act(others);
        let task = executor.start(async move {
            pending::<()>().await;
            drop(act);
        });
        executor.turn();
        if drops.0.get() == 0 {
            drop(task);
            executor.turn();
            assert_eq!(drops.0.get(), 2);
        } else {
            task.detach();
        }
    }
    drop(executor);
    assert_eq!(drops.0.get(), 3);
}

#[test]
fn an_executor_may_run_within_a_task_of_another() {
    let (outer, inner) = (Executor::new(), Rc::new(Executor::new()));
    let task = outer.start(async move {
        yield_now().await;
        let task = inner.start(async {
            yield_now().await;
            7
        });
        inner.turn();
        yield_now().await;
        task.await
    });
    outer.turn();
    outer.turn();
    assert_eq!(block_on(task), 7);
}

#[test]
fn one_task_may_await_thousands() {
    let tasks = if cfg!(miri) { 50 } else { 50_000 };
    let executor = Executor::new();
    let tasks: Vec<Task<usize>> = (0..tasks).map(|n| executor.start(ready(n))).collect();
    let all = executor.start(async {
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await, n);
        }
    });
    executor.turn();
    block_on(all);
    assert!(executor.tasks.alive.borrow().is_empty());
}

#[test]
fn the_end_waits_for_a_task_that_another_thread_is_about_to_queue() {
    struct Tell(mpsc::Sender<()>);
    impl Drop for Tell {
        fn drop(&mut self) {
            self.0.send(()).unwrap();
        }
    }
    let (executor, drops) = (Executor::new(), Drops::default());
    let (to, wakers) = mpsc::channel();
    let (is_marked, marked) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let (own, may_go) = (thread::current().id(), Mutex::new(may_go));
    // At this call the task is marked as queued, but it is not in a queue yet.
    let woken = move || {
        if thread::current().id() != own {
            is_marked.send(()).unwrap();
            may_go.lock().unwrap().recv().unwrap();
        }
    };
    let task = give_wakers(drops.held(), to);
    executor.spawn(task, woken).detach();
    let tell = Tell(go);
    let holds = async move {
        pending::<()>().await;
        drop(tell);
    };
    executor.start(holds).detach();
    executor.turn();
    let waker = wakers.recv().unwrap();
    let other = thread::spawn(move || waker.wake());
    marked.recv().unwrap();
    drop(executor);
    assert_eq!(drops.0.get(), 1);
    other.join().unwrap();
}

#[test]
fn an_executor_may_end_with_its_thread() {
    thread_local! {
        static EXECUTOR: RefCell<Option<Executor>> = const { RefCell::new(None) };
    }
    struct Tell(mpsc::Sender<ThreadId>);
    impl Drop for Tell {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap();
        }
    }
    let (to, dropped) = mpsc::channel();
    let thread = thread::spawn(|| {
        let executor = Executor::new();
        let tell = Tell(to);
        let holds = async move {
            pending::<()>().await;
            drop(tell);
        };
        executor.start(holds).detach();
        executor.turn();
        assert!(block_on(poll_once(pending::<()>())).is_none());
        EXECUTOR.set(Some(executor));
        thread::current().id()
    });
    assert_eq!(thread.join().unwrap(), dropped.recv().unwrap());
}
