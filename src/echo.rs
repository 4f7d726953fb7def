//! The echo handler: every chunk comes back behind a prefix.
//!
//! All echo connections of a thread share one buffer: a chunk is read into it and answered from it within one poll,
//! so that an idle connection holds none. Only what the socket refuses is copied into the connection's own.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_lite::{AsyncRead, AsyncWrite, ready};

use crate::connection::Connection;

/// The most bytes that one read takes, and so the most that stand behind one prefix.
pub const CHUNK: usize = 10_000;

/// The most bytes of a reply that line framing makes from one read, if a prefix is not longer by itself.
const LINES_REPLY: usize = 64 * 1024;

/// Answers every chunk of at most [`CHUNK`] bytes with `prefix` and the chunk, until the peer closes its half.
///
/// Then it sends what is left and closes the connection. When the server drains, it ends as soon as the connection
/// has been quiet for a while ([`Connection::end_when_draining`]). It holds at most one reply that the peer has not
/// taken, and reads nothing meanwhile.
///
/// # Errors
///
/// Those of the connection's reads and writes.
pub fn echo(connection: Connection, prefix: &[u8]) -> impl Future<Output = io::Result<()>> {
    echo_framed(connection, prefix, Framing::Chunk)
}

/// As [`echo`], with a choice of where the prefix goes.
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

/// An echo under way. By hand, since an async block would make every idle connection larger.
struct Echo<'p> {
    connection: Connection,
    framer: Framer<'p>,
    /// What the socket has not taken of the last reply.
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
    /// Reads a chunk and sends its reply, as far as the socket takes it at once. Ready with the number of bytes read.
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

/// Where the prefix goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framing {
    /// Before each chunk, that is, before what one read returned.
    #[default]
    Chunk,
    /// Before each line, however the lines come in: in pieces, or many at once. There is no limit to a line's length.
    Line,
}

/// Turns chunks into replies. All that it remembers from one chunk to the next is whether a line is open.
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

    /// Appends the reply to `chunk` to `reply`. Nothing is appended for an empty chunk.
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

    /// The most bytes to read at once: [`CHUNK`], and with line framing as many fewer as keep a reply within 64 KiB. One at
    /// least, so that a reply in lines may have a byte more than a prefix that is longer than that.
    pub fn chunk_max(&self) -> usize {
        match self.framing {
            Framing::Chunk => CHUNK,
            // A chunk of line ends alone has a prefix for each byte.
            Framing::Line => (LINES_REPLY / (self.prefix.len() + 1)).clamp(1, CHUNK),
        }
    }

    /// Room for a chunk, behind room for the prefix, so that a reply to a chunk is made by writing the prefix alone.
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

/// What the echo connections of a thread share.
struct Buffers {
    /// A chunk, behind its prefix.
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
