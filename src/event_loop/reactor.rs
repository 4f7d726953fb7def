//! Starts smol's reactor, and checks whether the reactor's thread belongs to this process.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future::yield_now;

/// The longest wait for the system to forget a thread that has ended.
const THREAD_END_MAX: Duration = Duration::from_millis(100);

/// The process in which the reactor was started.
static PROCESS: OnceLock<u32> = OnceLock::new();

/// Starts smol's reactor and its thread, once in a process.
///
/// The reactor starts by itself on first use, but panics if the system refuses. So this first checks that there are
/// enough file descriptors (its epoll, eventfd and timerfd, and a spare one), and that a thread can be started.
pub(super) fn start() -> io::Result<()> {
    check_process()?;
    if PROCESS.get().is_none() {
        let descriptors = (UnixStream::pair()?, UnixStream::pair()?);
        check_threads()?;
        drop(descriptors);
        smol::block_on(yield_now());
        PROCESS.get_or_init(process::id);
    }
    Ok(())
}

/// Returns an error if this process cannot start another thread.
pub(crate) fn check_threads() -> io::Result<()> {
    let trial = thread::Builder::new().spawn(|| fs::read_link("/proc/thread-self"))?;
    // For a moment after its end, Linux still counts a thread among those that this user may have.
    if let Ok(Ok(entry)) = trial.join() {
        let (entry, start) = (Path::new("/proc").join(entry), Instant::now());
        while entry.exists() && start.elapsed() < THREAD_END_MAX {
            thread::yield_now();
        }
    }
    Ok(())
}

/// Returns an error in a process that was forked after the start: a wait for the reactor would never end there.
pub(super) fn check_process() -> io::Result<()> {
    match PROCESS.get() {
        Some(&started_in) if started_in != process::id() => Err(io::Error::other(
            "this process was forked from one that has run an event loop: \
             the thread of smol's reactor stayed there",
        )),
        _ => Ok(()),
    }
}
