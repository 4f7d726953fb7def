//! Signals as futures.
//!
//! The first use of a signal here turns its default action off (which ends the process). The action stays off when the
//! stream is dropped, because the system's handlers work like this. So keep the stream for the life of the process. If
//! the signal should only do nothing, you can drop the stream at once.

use std::fmt;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, Stream, StreamExt, ready};
use rustix::io::Errno;
use signal_hook::low_level::{pipe, unregister};
use signal_hook::{SigId, flag};
use smol::Async;

use crate::io_error;

pub use async_signal::Signal;

/// Resolves at the first SIGINT (Ctrl-C) or SIGTERM after this call. The next one of these signals exits the process at
/// once.
///
/// The signal handler itself exits. So this also works while a task blocks the loop, or after the future is dropped.
/// The exit status is 128 + the signal's number, as a shell shows it for a process that a signal has ended. No
/// destructor runs, and no buffer is flushed.
///
/// Each call starts the count again: the next signal is again a first signal, and resolves all futures of this function
/// that still wait. To do something else at the second signal, use [`signals`].
///
/// If the process ignores SIGINT, it stays ignored. A shell without job control, for example in a script, starts its
/// background jobs like this: Ctrl-C is meant for the job in the foreground.
///
/// # Errors
///
/// If no file descriptor is free.
pub fn shutdown() -> io::Result<impl Future<Output = ()>> {
    /// Whether the first signal has arrived.
    static ASKED: AtomicBool = AtomicBool::new(false);
    /// The signals whose handler exits the process at the next signal.
    static REGISTERED: Mutex<Vec<Signal>> = Mutex::new(Vec::new());

    let asking = [Signal::Int, Signal::Term]
        .into_iter()
        .filter(|&signal| signal != Signal::Int || !is_ignored(signal));
    // Registered first, so that no signal is missed.
    let mut signals = signals(asking.clone())?;
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    for signal in asking {
        if !registered.contains(&signal) {
            let number = signal as i32;
            // The order matters: the first signal must still find the flag unset.
            flag::register_conditional_shutdown(number, 128 + number, &ASKED)
                .and_then(|_| flag::register(number, &ASKED))
                .map_err(cannot_handle)?;
            registered.push(signal);
        }
    }
    ASKED.store(false, Ordering::SeqCst);
    Ok(async move {
        signals.next().await;
    })
}

/// Whether the process ignores a signal. `false` if the system does not say (only Linux does).
///
/// A program may have been started to ignore a signal: SIGHUP by `nohup`, or SIGINT as a background job of a script.
/// Then it should not handle this signal: call this before [`signals`]. [`shutdown`] does so for SIGINT.
pub fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let ignored = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal as u32 - 1) & 1 == 1)
}

/// A stream of the given signals that arrive after this call. It never ends.
///
/// Each kind of signal that has arrived is reported, even if many signals of another kind arrive: the kinds take turns.
/// If a signal arrives several times before it is taken, it is reported once. So the stream says that a signal arrived,
/// but not how often. It does not say in which order different signals arrived. A signal that the process has ignored
/// so far is reported, too.
///
/// # Errors
///
/// If no file descriptor is free, or if one of the signals cannot be handled as a future: SIGKILL and SIGSTOP, and
/// SIGILL, SIGFPE and SIGSEGV, after which a program cannot continue.
pub fn signals(signals: impl IntoIterator<Item = Signal>) -> io::Result<Signals> {
    let signals: Vec<Signal> = signals.into_iter().collect();
    Signals::new(&signals).map_err(cannot_handle)
}

fn cannot_handle(error: io::Error) -> io::Error {
    io_error::explain("cannot handle signals", error)
}

/// The stream of [`signals`].
#[must_use = "streams do nothing unless they are polled"]
pub struct Signals {
    watched: Vec<Watched>,
    /// The index of the signal to check first.
    next: usize,
    /// The handlers write here, which wakes the stream. A full socket wakes it, too.
    writer: UnixStream,
    wake: Async<UnixStream>,
}

impl Signals {
    fn new(signals: &[Signal]) -> io::Result<Signals> {
        if signals.iter().any(is_forbidden) {
            return Err(Errno::INVAL.into());
        }
        let (reader, writer) = UnixStream::pair()?;
        let mut stream = Signals {
            watched: Vec::new(),
            next: 0,
            writer,
            wake: Async::new(reader)?,
        };
        for &signal in signals {
            if stream.watched.iter().all(|other| other.signal != signal) {
                stream.watched.push(Watched::new(signal, &stream.writer)?);
            }
        }
        Ok(stream)
    }

    /// Takes the next signal that has arrived.
    fn take_arrived(&mut self) -> Option<Signal> {
        let count = self.watched.len();
        (0..count).find_map(|_| {
            let watched = &self.watched[self.next];
            self.next = (self.next + 1) % count;
            let arrived = watched.arrived.swap(false, Ordering::SeqCst);
            arrived.then_some(watched.signal)
        })
    }
}

/// The signals for which signal-hook panics.
fn is_forbidden(signal: &Signal) -> bool {
    matches!(
        signal,
        Signal::Kill | Signal::Stop | Signal::Ill | Signal::Fpe | Signal::Segv
    )
}

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        loop {
            if let Some(signal) = self.take_arrived() {
                return Poll::Ready(Some(signal));
            }
            // A signal that arrives now sets its flag first, and then writes to the socket.
            let mut wake = &self.wake;
            if ready!(Pin::new(&mut wake).poll_read(cx, &mut [0; 64])).is_err() {
                // This cannot happen while both ends of the socket exist.
                return Poll::Ready(None);
            }
        }
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signals = self.watched.iter().map(|watched| watched.signal);
        f.debug_set().entries(signals).finish()
    }
}

/// One signal of a stream.
struct Watched {
    signal: Signal,
    /// Set by the signal handler.
    arrived: Arc<AtomicBool>,
    /// The registered actions of the signal handler.
    actions: Vec<SigId>,
}

impl Watched {
    /// Sets a flag whenever the signal arrives, and then writes to `wake`.
    fn new(signal: Signal, wake: &UnixStream) -> io::Result<Watched> {
        let wake = wake.try_clone()?;
        let mut watched = Watched {
            signal,
            arrived: Arc::default(),
            actions: Vec::new(),
        };
        let number = signal as i32;
        let set = flag::register(number, watched.arrived.clone())?;
        watched.actions.push(set);
        watched.actions.push(pipe::register(number, wake)?);
        Ok(watched)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for &action in &self.actions {
            unregister(action);
        }
    }
}
