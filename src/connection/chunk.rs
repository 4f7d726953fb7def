//! Chunks: buffers that are lent to a connection while there is something in them, so that an idle one has none.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::ops::Deref;
use std::task::{Context, Poll};

use super::Connection;

/// The most bytes of a chunk.
const CHUNK_MAX: usize = 64 * 1024;

/// How many buffers a thread keeps that nobody uses.
const SPARE_MAX: usize = 8;

thread_local! {
    /// The buffers that nobody uses.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// What one read brought, from [`Connection::read_chunk`]: up to 64 KiB. It is a slice of bytes, empty at the end of input.
///
/// Its buffer belongs to the thread, which lends it to the next read when the chunk is dropped.
pub struct Chunk {
    buffer: Vec<u8>,
    length: usize,
}

impl Chunk {
    /// A chunk without bytes, and with a buffer for them.
    fn lend() -> Chunk {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Chunk {
            buffer: spare.unwrap_or_else(|| vec![0; CHUNK_MAX]),
            length: 0,
        }
    }
}

impl Connection {
    /// Reads what there is, at most 64 KiB, into a buffer that is lent to the connection for that time: a connection
    /// that waits here has none. At the end of input the chunk is empty.
    ///
    /// For handlers of which thousands may wait at once. Dropping the future loses no byte.
    ///
    /// ```
    /// use futures_lite::AsyncWriteExt;
    /// use tinyloop::Connection;
    ///
    /// /// Sends back what comes in.
    /// async fn mirror(connection: Connection) -> std::io::Result<()> {
    ///     loop {
    ///         let chunk = connection.read_chunk().await?;
    ///         if chunk.is_empty() {
    ///             return Ok(());
    ///         }
    ///         (&connection).write_all(&chunk).await?;
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of a read.
    pub async fn read_chunk(&self) -> io::Result<Chunk> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk>> {
        let mut chunk = Chunk::lend();
        let received = self.link.poll_read(cx, &mut chunk.buffer);
        received.map_ok(|length| {
            chunk.length = length;
            chunk
        })
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let buffer = mem::take(&mut self.buffer);
        // At the end of a thread there may be no slot any more.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(buffer);
            }
        });
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
