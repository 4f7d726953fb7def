//! Copies bytes between two connections in both directions, as a proxy does.

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::mem;
use std::time::Duration;

use futures_lite::{AsyncWriteExt, future};

use crate::io_error::explain;
use crate::time::sleep;

use super::{Connection, link::Over};

/// Time between two looks at a connection that is not read: no event tells of its reset. A look costs a system call.
const LOOK_PAUSE: Duration = Duration::from_millis(900);

/// Extra time before a connection that is not read counts as idle: what has already arrived is passed on meanwhile.
const LAST_CHANCE: Duration = Duration::from_millis(100);

/// Copies the input of `first` to `second`, and the input of `second` to `first`, until both have ended. Returns the
/// number of bytes in each direction.
///
/// When a peer closes its half, the write half of the other connection is closed, and the other direction continues. A
/// pair that waits has no buffer. A busy pair has a buffer of up to 64 KiB for each direction whose receiver is slow.
///
/// The idle timeout of a connection counts from the last byte in either direction. The copy then returns an error of
/// this connection, or its server ends the handler. While a write waits for one peer, the other peer's connection is
/// not idle: only the stall timeout limits this wait, so set one for both connections. Data that the kernel holds for a
/// slow peer does not prevent the idle timeout.
///
/// If a connection fails, or if the future is dropped before its end, both connections are [reset](Connection::reset).
/// So no peer takes a part for the whole, and a reset is passed on. The copy does not read from a peer that has closed
/// its half, or while the other peer takes no data. It notices a reset by such a peer, and the idle timeout of its
/// connection, up to a second late.
///
/// # Errors
///
/// Errors of the reads and writes, with the side that failed: `cannot read from ADDRESS: …` or `cannot write to …`. A
/// peer that has closed, and no longer takes what the other one sends, fails (`BrokenPipe` or `ConnectionReset`).
///
/// # Panics
///
/// The future panics outside a running event loop.
pub fn copy_both<'c>(
    first: &'c Connection,
    second: &'c Connection,
) -> impl Future<Output = Result<(u64, u64), CopyError>> {
    // Not in the future, which may be dropped before its first poll.
    let unfinished = Unfinished([first, second]);
    async move {
        let first: Side<'_> = (first, CopyError::First);
        let second: Side<'_> = (second, CopyError::Second);
        let (there, back, one_has_ended) = (Cell::new(0), Cell::new(0), Cell::new(false));
        let there_and_back = future::or(
            copy(&first, &second, &there, &one_has_ended),
            copy(&second, &first, &back, &one_has_ended),
        );
        there_and_back.await?;
        mem::forget(unfinished);
        Ok((there.get(), back.get()))
    }
}

/// A connection, and what its errors become.
type Side<'c> = (&'c Connection, fn(io::Error) -> CopyError);

/// Copies one direction, including its end. If the other one has not ended yet, this returns only with an error.
async fn copy(
    from: &Side<'_>,
    to: &Side<'_>,
    copied: &Cell<u64>,
    one_has_ended: &Cell<bool>,
) -> Result<(), CopyError> {
    let (source, mut sink) = (from.0, to.0);
    let cannot_read = |error| cannot("read from", from, error);
    let cannot_write = |error| cannot("write to", to, error);
    loop {
        let chunk = source.read_chunk().await.map_err(cannot_read)?;
        if chunk.is_empty() {
            break;
        }
        let written = async { sink.write_all(&chunk).await.map_err(cannot_write) };
        // Polled only if the write waits or yields.
        let fails = async {
            source.link.is_held_up.set(true);
            Err(cannot_read(lost(source).await))
        };
        future::or(written, fails).await?;
        source.link.is_held_up.set(false);
        source.link.activity.happened();
        copied.set(copied.get() + chunk.len() as u64);
    }
    // The sink's input has ended, so no read tells whether its peer has reset since.
    if one_has_ended.get()
        && let Some(error) = sink.link.stream().take_error()
    {
        return Err(cannot_write(sink.link.broken(error)));
    }
    sink.close().await.map_err(cannot_write)?;
    if one_has_ended.replace(true) {
        return Ok(());
    }
    Err(cannot_read(lost(source).await))
}

fn cannot(what: &str, (connection, failed): &Side<'_>, error: io::Error) -> CopyError {
    let peer = connection.peer_addr();
    failed(explain(format_args!("cannot {what} {peer}"), error))
}

/// Ready when a connection from which nobody reads is lost: its peer has reset it, or it is idle for too long.
async fn lost(connection: &Connection) -> io::Error {
    let link = &connection.link;
    let is_idle = || matches!(link.timeouts().idle, Some(limit) if link.silence(limit).is_over());
    loop {
        // This also notes the time of a last byte that is not noted yet.
        if is_idle() {
            sleep(LAST_CHANCE).await;
            // The other direction, a part of the same task, reads before the second check.
            future::yield_now().await;
            if is_idle()
                && let Err(error) = link.end_silence(Over::Idle)
            {
                return error;
            }
        }
        sleep(LOOK_PAUSE).await;
        if let Some(error) = link.stream().take_error() {
            return link.broken(error);
        }
    }
}

/// Resets its connections when it is dropped.
struct Unfinished<'c>([&'c Connection; 2]);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|one| one.link.reset());
    }
}

/// The error of [`copy_both`], by the connection that failed. Converts into its [`io::Error`], which has the address of
/// the connection's peer.
#[derive(Debug)]
pub enum CopyError {
    /// The first argument of [`copy_both`] failed.
    First(io::Error),
    /// The second argument failed.
    Second(io::Error),
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (CopyError::First(error) | CopyError::Second(error)) = self;
        error.fmt(f)
    }
}

impl Error for CopyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let (CopyError::First(error) | CopyError::Second(error)) = self;
        error.source()
    }
}

impl From<CopyError> for io::Error {
    fn from(error: CopyError) -> io::Error {
        let (CopyError::First(error) | CopyError::Second(error)) = error;
        error
    }
}
