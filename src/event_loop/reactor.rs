//! The start of smol's reactor, and whether this process is the one that has its thread.

use std::io;
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::OnceLock;
use std::thread;

use futures_lite::future::yield_now;

/// The process in which the reactor was started.
static PROCESS: OnceLock<u32> = OnceLock::new();

/// Starts smol's reactor and its thread, once in a process.
///
/// They start by themselves on first use, but panic when the system refuses. So we first see whether as many
/// descriptors (its epoll, eventfd and timerfd, and one to spare) and a thread can be had.
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

/// An error if the system lets this process have no further thread.
pub(crate) fn check_threads() -> io::Result<()> {
    thread::Builder::new().spawn(|| ())?.join().ok();
    Ok(())
}

/// An error in a process that was forked after the start: there the reactor would be waited for forever.
pub(super) fn check_process() -> io::Result<()> {
    match PROCESS.get() {
        Some(&started_in) if started_in != process::id() => Err(io::Error::other(
            "this process was forked from one that has run an event loop: \
             the thread of smol's reactor stayed there",
        )),
        _ => Ok(()),
    }
}
