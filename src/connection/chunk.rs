//! Chunks: buffers that a connection borrows only while they hold data, so that an idle connection has no buffer.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::ops::Deref;
use std::task::Poll;

use futures_lite::ready;

use super::Connection;

/// The maximum length of a chunk, in bytes.
const CHUNK_MAX: usize = 64 * 1024;

/// The maximum number of unused buffers that a thread keeps.
const SPARE_MAX: usize = 8;

thread_local! {
    /// The unused buffers.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// The data of one read, from [`Connection::read_chunk`]: a slice of up to 64 KiB, which is empty at the end of input.
///
/// The thread owns its buffer, and lends it to another read after the chunk is dropped.
pub struct Chunk {
    buffer: Vec<u8>,
    length: usize,
}

impl Connection {
    /// Reads the available data, at most 64 KiB, into a borrowed buffer. A connection that waits here has no buffer. At
    /// the end of input the chunk is empty.
    ///
    /// For handlers that wait on thousands of connections at once. Dropping the future loses no byte.
    ///
    /// ```
    /// use futures_lite::AsyncWriteExt;
    /// use tinyloop::Connection;
    ///
    /// /// Sends all input back.
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
        poll_fn(|cx| {
            let spare = SPARE.with_borrow_mut(Vec::pop);
            let buffer = spare.unwrap_or_else(|| vec![0; CHUNK_MAX]);
            let mut chunk = Chunk { buffer, length: 0 };
            chunk.length = ready!(self.link.poll_read(cx, &mut chunk.buffer))?;
            Poll::Ready(Ok(chunk))
        })
        .await
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
        // At the end of a thread the slot may be gone.
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
