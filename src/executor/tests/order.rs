//! Tests of the order in which tasks run.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use async_task::Task;

use super::super::{Executor, go_last};

/// Tasks that write a letter into a common log at each poll.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<String>>);

impl Log {
    /// A task that calls `after` at the end of each poll, and ends with the eighth poll.
    fn task(&self, executor: &Executor, name: char, after: impl Fn(&Waker) + 'static) -> Task<()> {
        let (log, mut polls) = (self.0.clone(), 0);
        executor.start(poll_fn(move |cx| {
            log.borrow_mut().push(name);
            polls += 1;
            if polls == 8 {
                return Poll::Ready(());
            }
            after(cx.waker());
            Poll::Pending
        }))
    }

    fn assert(&self, polls: &str) {
        assert_eq!(*self.0.borrow(), polls.replace(' ', ""));
    }
}

#[test]
fn those_that_go_on_and_on_take_turns_with_those_that_go_last() {
    let (executor, log) = (Executor::new(), Log::default());
    let _tasks = [
        log.task(&executor, 'x', go_last),
        log.task(&executor, 'a', Waker::wake_by_ref),
        log.task(&executor, 'y', go_last),
        log.task(&executor, 'b', Waker::wake_by_ref),
    ];
    executor.turn();
    // Each of the other tasks is polled four times first.
    log.assert("xayb ababab xyab xyab xyab xyab xyxyxy");
}

#[test]
fn those_that_go_last_have_their_share_of_each_turn() {
    let (executor, log) = (Executor::new(), Log::default());
    let _tasks = ['x', 'y'].map(|name| log.task(&executor, name, go_last));
    // Each turn brings a new task, and ends after a single poll.
    for _ in 0..40 {
        log.task(&executor, 'n', |_| ()).detach();
        let _entered = executor.enter(Waker::noop().clone());
        executor.begin_turn();
        executor.run_next();
        executor.end_turn();
    }
    let polls = log.0.borrow();
    let counts = ['x', 'y'].map(|name| polls.matches(name).count());
    assert!(counts.iter().all(|&count| count >= 4), "{polls}");
}

#[test]
fn who_goes_last_goes_on_at_once_if_nobody_else_is_ready() {
    let (executor, log) = (Executor::new(), Log::default());
    let _task = log.task(&executor, 'x', go_last);
    executor.turn();
    log.assert("xxxxxxxx");
}

#[test]
fn two_tasks_that_wake_each_other_do_not_hold_up_those_that_go_last() {
    let (executor, log) = (Executor::new(), Log::default());
    let wakers: [Rc<Cell<Option<Waker>>>; 2] = Default::default();
    let wake_other = |own: usize| {
        let wakers = wakers.clone();
        move |waker: &Waker| {
            wakers[own].set(Some(waker.clone()));
            wakers[1 - own].take().into_iter().for_each(Waker::wake);
        }
    };
    let _tasks = [
        log.task(&executor, 'x', go_last),
        log.task(&executor, 'a', wake_other(0)),
        log.task(&executor, 'b', wake_other(1)),
    ];
    executor.turn();
    log.assert("x ab aba xb xa xb xa xb xa xb aba");
}

#[test]
fn what_a_look_makes_ready_runs_before_those_that_go_last() {
    let (executor, log) = (Executor::new(), Log::default());
    let event = Rc::new(Cell::new(None::<Waker>));
    let waits = {
        let event = event.clone();
        move |waker: &Waker| event.set(Some(waker.clone()))
    };
    let _tasks = [
        log.task(&executor, 'x', go_last),
        log.task(&executor, 'y', go_last),
        log.task(&executor, 'a', Waker::wake_by_ref),
        log.task(&executor, 'e', waits),
    ];
    let _entered = executor.enter(Waker::noop().clone());
    for polls in [5, 3, 3] {
        executor.begin_turn();
        for _ in 0..polls {
            assert!(executor.run_next());
        }
        executor.end_turn();
        event.take().into_iter().for_each(Waker::wake);
    }
    log.assert("xyaea aex aey");
}

#[test]
fn it_is_known_whether_somebody_goes_last() {
    let (executor, log) = (Executor::new(), Log::default());
    let _task = log.task(&executor, 'x', go_last);
    let _entered = executor.enter(Waker::noop().clone());
    assert!(!executor.somebody_goes_last(), "the task has not run yet");
    for _ in 0..7 {
        executor.begin_turn();
        assert!(!executor.somebody_goes_last(), "its share of the turn");
        executor.run_next();
        assert!(executor.somebody_goes_last());
        executor.end_turn();
    }
    executor.begin_turn();
    executor.run_next();
    assert!(!executor.somebody_goes_last(), "the task has ended");
    log.assert("xxxxxxxx");
}
