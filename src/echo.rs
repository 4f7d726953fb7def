//! The echo handler: it sends back every chunk after a prefix.
//!
//! All echo connections of a thread share one buffer. A chunk is read into it and answered from it within one poll, so
//! an idle connection holds no buffer. Only data that the socket does not take is copied into the connection's own
//! buffer.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite, ready};

use crate::connection::Connection;

/// The most bytes that one read takes, which is also the longest data after one prefix.
pub const CHUNK: usize = 10_000;

/// The most bytes of a reply that line framing makes from one read, unless the prefix itself is longer.
const LINES_REPLY: usize = 64 * 1024;

/// Answers every chunk of at most 10,000 bytes with `prefix` and the chunk, until the peer closes its half.
///
/// Then it sends the remaining data and closes the connection. When the server drains, it ends as soon as the
/// connection is quiet for a second ([`Connection::end_when_draining`]). Backpressure: it holds at most one reply that
/// the peer has not taken, and reads nothing until the peer takes it.
///
/// # Errors
///
/// Those of the connection's reads and writes.
pub fn echo(connection: Connection, prefix: &[u8]) -> impl Future<Output = io::Result<()>> {
    echo_framed(connection, prefix, Framing::Chunk)
}

/// Like [`echo`], with a choice of where to put the prefix.
///
/// # Errors
///
/// Those of the connection's reads and writes.
pub fn echo_framed(
    connection: Connection,
    prefix: &[u8],
    framing: Framing,
) -> impl Future<Output = io::Result<()>> {
    connection.end_when_draining();
    Echo {
        connection,
        framer: Framer::new(prefix, framing),
        unsent: Vec::new(),
    }
}

/// The future of an echo. It is written by hand, because an async block would make every idle connection larger.
struct Echo<'p> {
    connection: Connection,
    framer: Framer<'p>,
    /// The part of the last reply that the socket has not taken.
    unsent: Vec<u8>,
}

impl Future for Echo<'_> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.unsent.is_empty() {
                let sent = ready!(Pin::new(&mut &self.connection).poll_write(cx, &self.unsent))?;
                self.unsent.drain(..sent);
            }
            self.unsent = Vec::new();
            if ready!(self.poll_answer(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl Echo<'_> {
    /// Reads a chunk and sends as much of its reply as the socket takes at once. Returns the number of bytes read.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut connection = &self.connection;
        BUFFERS.with_borrow_mut(|buffers| {
            let chunk = self.framer.room(buffers);
            let received = ready!(Pin::new(&mut connection).poll_read(cx, chunk))?;
            if received > 0 {
                let reply = self.framer.reply(buffers, received);
                let sent = match Pin::new(&mut connection).poll_write(cx, reply)? {
                    Poll::Ready(sent) => sent,
                    Poll::Pending => 0,
                };
                self.unsent.extend_from_slice(&reply[sent..]);
            }
            Poll::Ready(Ok(received))
        })
    }
}

/// Where to put the prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framing {
    /// Before each chunk. A chunk is the data that one read returns.
    #[default]
    Chunk,
    /// Before each line, even if a line arrives in several chunks, or a chunk has many lines. Lines may have any
    /// length.
    Line,
}

/// Turns chunks into replies. Between two chunks it remembers only whether a line is still open.
#[derive(Debug, Clone)]
pub struct Framer<'p> {
    prefix: &'p [u8],
    framing: Framing,
    at_line_start: bool,
}

impl<'p> Framer<'p> {
    /// A framer at the start of a connection.
    pub fn new(prefix: &'p [u8], framing: Framing) -> Framer<'p> {
        Framer {
            prefix,
            framing,
            at_line_start: true,
        }
    }

    /// Appends the reply for `chunk` to `reply`. Appends nothing for an empty chunk.
    pub fn frame(&mut self, chunk: &[u8], reply: &mut Vec<u8>) {
        match self.framing {
            Framing::Chunk if chunk.is_empty() => {}
            Framing::Chunk => {
                reply.extend_from_slice(self.prefix);
                reply.extend_from_slice(chunk);
            }
            Framing::Line => {
                for line in chunk.split_inclusive(|&byte| byte == b'\n') {
                    if self.at_line_start {
                        reply.extend_from_slice(self.prefix);
                    }
                    reply.extend_from_slice(line);
                    self.at_line_start = line.ends_with(b"\n");
                }
            }
        }
    }

    /// The most bytes to read at once: [`CHUNK`], or with line framing fewer, so that a reply has at most 64 KiB. It is
    /// at least one byte, so with a very long prefix a reply in lines may be longer than that.
    pub fn chunk_max(&self) -> usize {
        match self.framing {
            Framing::Chunk => CHUNK,
            // In a chunk of line ends only, each byte gets a prefix.
            Framing::Line => (LINES_REPLY / (self.prefix.len() + 1)).clamp(1, CHUNK),
        }
    }

    /// Room for a chunk after room for the prefix, so that a reply needs only the prefix to be written before the
    /// chunk.
    fn room<'b>(&self, buffers: &'b mut Buffers) -> &'b mut [u8] {
        let end = self.prefix.len() + self.chunk_max();
        if buffers.chunk.len() < end {
            buffers.chunk.resize(end, 0);
        }
        &mut buffers.chunk[self.prefix.len()..end]
    }

    /// The reply to the `received` bytes that were read into [`Framer::room`].
    fn reply<'b>(&mut self, buffers: &'b mut Buffers, received: usize) -> &'b [u8] {
        let Buffers { chunk, lines } = buffers;
        let end = self.prefix.len() + received;
        match self.framing {
            Framing::Chunk => {
                chunk[..self.prefix.len()].copy_from_slice(self.prefix);
                &chunk[..end]
            }
            Framing::Line => {
                lines.clear();
                self.frame(&chunk[self.prefix.len()..end], lines);
                lines
            }
        }
    }
}

/// The buffers that the echo connections of a thread share.
struct Buffers {
    /// A chunk, after its prefix.
    chunk: Vec<u8>,
    /// A reply in lines.
    lines: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = const { RefCell::new(Buffers { chunk: Vec::new(), lines: Vec::new() }) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(framing: Framing, chunks: &[&[u8]]) -> Vec<u8> {
        let mut framer = Framer::new(b"> ", framing);
        let mut reply = Vec::new();
        for chunk in chunks {
            framer.frame(chunk, &mut reply);
        }
        reply
    }

    #[test]
    fn chunk_framing_puts_the_prefix_before_each_chunk() {
        assert_eq!(
            framed(Framing::Chunk, &[b"one\ntwo", b"", b"three"]),
            b"> one\ntwo> three"
        );
    }

    #[test]
    fn line_framing_puts_the_prefix_before_each_line_however_it_is_cut() {
        assert_eq!(framed(Framing::Line, &[b"one\ntwo\n"]), b"> one\n> two\n");
        assert_eq!(
            framed(Framing::Line, &[b"on", b"e", b"\n", b"\n", b"", b"two"]),
            b"> one\n> \n> two"
        );
    }

    #[test]
    fn a_reply_in_lines_is_bounded_however_long_the_prefix() {
        for length in [0, 5, 1024, 200_000] {
            let prefix = vec![b'p'; length];
            let mut framer = Framer::new(&prefix, Framing::Line);
            let mut buffers = Buffers {
                chunk: Vec::new(),
                lines: Vec::new(),
            };
            let room = framer.room(&mut buffers);
            room.fill(b'\n');
            let received = room.len();
            assert!((1..=CHUNK).contains(&received));
            assert!(framer.reply(&mut buffers, received).len() <= LINES_REPLY.max(length + 1));
        }
    }
}
