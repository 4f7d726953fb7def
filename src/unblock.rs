//! Blocking work, on threads beside the loop.

use smol::Task;

use crate::event_loop;
use crate::time::Timers;

/// Runs blocking work on a thread of smol's pool, beside the event loop, like asyncio's `to_thread`.
///
/// Dropping the [`Task`] cancels work that has not begun. Work that has begun continues. A panic of the work goes to
/// the code that awaits the task. On a [test clock](crate::EventLoop::with_test_clock), time stands still while the
/// work runs, so a [`timeout`](crate::timeout) around it does not fire.
///
/// The process has one pool. It starts a thread when all of its threads are busy, or when more than five pieces of work
/// wait for each idle thread. It has at most 500 threads (the environment variable `BLOCKING_MAX_THREADS` changes this,
/// up to 10,000). A thread ends after half a second without work.
///
/// **If the system refuses a thread** (a container's process limit, `ulimit -u`), the call tries again on the calling
/// thread, without a pause, until a thread can be started. Meanwhile the loop stands still, uses 100 % of a CPU, and a
/// [`timeout`](crate::timeout) around the call does not fire. The same holds for all parts of smol that use the pool:
/// files, processes, stdin and the look-up of host names. [`Server::bind`](crate::Server::bind) and
/// [`Connection::connect`](crate::Connection::connect) check for a thread first, and return an error.
///
/// ```
/// # tinyloop::run(async {
/// let entries = tinyloop::unblock(|| std::fs::read_dir("/").map(Iterator::count)).await;
/// assert!(entries.is_ok());
/// # });
/// ```
#[track_caller]
pub fn unblock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Task<T> {
    let task = smol::unblock(work);
    match Timers::hold_test_clock() {
        None => task,
        // A task of the loop must get the result before the clock may jump again.
        Some(hold) => event_loop::spawn(async move {
            let result = task.await;
            drop(hold);
            result
        }),
    }
}
