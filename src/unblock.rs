//! Blocking work, on threads beside the loop.

use smol::Task;

use crate::event_loop;
use crate::time::Timers;

/// Runs blocking work on a thread of smol's pool, beside the event loop. As asyncio's `to_thread`.
///
/// Dropping the [`Task`] cancels work that has not begun; work that has begun goes on. A panic of the work reaches
/// whoever awaits it. On a [test clock](crate::EventLoop::with_test_clock) time stands still while the work runs: a
/// [`timeout`](crate::timeout) around it does not fire.
///
/// The pool is one for the process. It starts a thread when all of its threads are busy, or when more than five pieces
/// of work wait for each idle one; it has at most 500 threads (the environment variable `BLOCKING_MAX_THREADS`, up to
/// 10,000), and a thread ends when it had nothing to do for half a second.
///
/// **If the system refuses a thread** (a container's limit on processes, `ulimit -u`), the call tries again on the
/// calling thread, without a pause and until there is a thread. So the loop stands still with its CPU at 100 %, and a
/// [`timeout`](crate::timeout) around the call does not fire. The same holds for all of smol that uses the pool: files,
/// processes, stdin, and names of hosts. [`Server::bind`](crate::Server::bind) and
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
        // A task of the loop gets the result before the clock may jump again.
        Some(hold) => event_loop::spawn(async move {
            let result = task.await;
            drop(hold);
            result
        }),
    }
}
