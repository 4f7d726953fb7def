//! Signals as futures.
//!
//! From the first use of a signal here, its default action (to end the process) is off, and stays off when the stream
//! is dropped: that is how the system's handlers work. So keep the stream for the life of the process.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{Stream, StreamExt};
use rustix::io::Errno;

use crate::io_error;

pub use async_signal::Signal;

/// Resolves at the first SIGINT (Ctrl-C) or SIGTERM after this call.
///
/// Those that follow do nothing, since the process goes on as if it waited for them: whoever wants a second one to end
/// it at once takes [`signals`].
///
/// # Errors
///
/// If the system has no descriptor left for it.
pub fn shutdown() -> io::Result<impl Future<Output = ()>> {
    let mut signals = signals([Signal::Int, Signal::Term])?;
    Ok(async move {
        signals.next().await;
    })
}

/// A stream of the given signals, as they arrive after this call. It never ends.
///
/// A signal that arrives again is seen again; while it waits to be taken, the system folds repetitions into one.
///
/// # Errors
///
/// If the system has no descriptor left for it, or one of the signals cannot be handled as a future: SIGKILL and
/// SIGSTOP, and SIGILL, SIGFPE and SIGSEGV, which leave no way to go on.
pub fn signals(signals: impl IntoIterator<Item = Signal>) -> io::Result<Signals> {
    let signals: Vec<Signal> = signals.into_iter().collect();
    let inner = if signals.iter().any(is_forbidden) {
        Err(Errno::INVAL.into())
    } else {
        async_signal::Signals::new(signals)
    };
    let inner = inner.map_err(|error| io_error::explain("cannot handle signals", &error))?;
    Ok(Signals { inner })
}

/// The signals for which signal-hook, which is below async-signal, panics.
fn is_forbidden(signal: &Signal) -> bool {
    matches!(
        signal,
        Signal::Kill | Signal::Stop | Signal::Ill | Signal::Fpe | Signal::Segv
    )
}

/// The stream of [`signals`].
#[must_use = "streams do nothing unless they are polled"]
pub struct Signals {
    inner: async_signal::Signals,
}

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        // It reads from a socket pair of its own, which has no way to fail while both ends are here.
        self.inner
            .poll_next(cx)
            .map(|signal| signal.and_then(Result::ok))
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
