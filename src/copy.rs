//! Copies bytes between two connections in both directions, as a proxy does.

use std::fmt;
use std::io;

use futures_lite::{AsyncWriteExt, future};

use crate::connection::Connection;
use crate::io_error;

/// Copies the input of `first` to `second`, and the input of `second` to `first`, until both have ended. Returns the
/// number of bytes in each direction.
///
/// When a peer closes its half, the write half of the other connection is closed, and the other direction continues. A
/// pair that waits has no buffer. A pair that is busy has a buffer of up to 64 KiB for each direction whose receiver is
/// slow. The idle timeout of both connections counts from the last byte in either direction. The stall timeouts work as
/// usual.
///
/// If a connection fails, or if the future is dropped before its end, both connections are [reset](Connection::reset).
/// So no peer takes a part for the whole, and a reset is passed on.
///
/// # Errors
///
/// Errors of the reads and writes, with the side that failed: `cannot read from ADDRESS: …`.
pub async fn copy_both(first: &Connection, second: &Connection) -> Result<(u64, u64), CopyError> {
    let mut whole = ResetUnlessWhole {
        connections: [first, second],
        is_whole: false,
    };
    let (first, second) = ((first, Side::First), (second, Side::Second));
    let copied = future::try_zip(copy(first, second), copy(second, first)).await?;
    whole.is_whole = true;
    Ok(copied)
}

/// Copies one direction, including its end.
async fn copy(
    (from, from_side): (&Connection, Side),
    (mut to, to_side): (&Connection, Side),
) -> Result<u64, CopyError> {
    let mut copied = 0;
    loop {
        let chunk = from.read_chunk().await;
        let chunk = chunk.map_err(|error| CopyError::new("read from", from, from_side, &error))?;
        let cannot_write = |error| CopyError::new("write to", to, to_side, &error);
        if chunk.is_empty() {
            return to.close().await.map_err(cannot_write).map(|()| copied);
        }
        to.write_all(&chunk).await.map_err(cannot_write)?;
        copied += chunk.len() as u64;
    }
}

/// Resets the connections when it is dropped, unless all data was passed on.
struct ResetUnlessWhole<'c> {
    connections: [&'c Connection; 2],
    is_whole: bool,
}

impl Drop for ResetUnlessWhole<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            for connection in self.connections {
                connection.link().reset();
            }
        }
    }
}

/// The error of [`copy_both`]. Converts into its [`io::Error`].
#[derive(Debug)]
pub struct CopyError {
    /// The connection that failed.
    pub side: Side,
    /// The error, with its kind and the address of the connection's peer.
    pub error: io::Error,
}

/// One of the two connections of [`copy_both`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first argument.
    First,
    /// The second argument.
    Second,
}

impl CopyError {
    fn new(action: &str, connection: &Connection, side: Side, error: &io::Error) -> CopyError {
        let what = format!("cannot {action} {}", connection.peer_addr());
        CopyError {
            side,
            error: io_error::explain(what, error),
        }
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for CopyError {}

impl From<CopyError> for io::Error {
    fn from(error: CopyError) -> io::Error {
        error.error
    }
}
