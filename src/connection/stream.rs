//! The streams that carry a connection's bytes.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::ready;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, sockopt};
use smol::Async;

use crate::address::Address;
use crate::platform::{self, send};

#[cfg(feature = "testing")]
use super::pipe::Pipe;

/// The stream that carries the bytes. The sockets are those of async-net's streams.
pub(crate) enum Stream {
    Tcp(Arc<Async<TcpStream>>),
    Unix(Arc<Async<UnixStream>>),
    #[cfg(feature = "testing")]
    Pipe(Pipe),
}

fn receive(socket: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    let (received, _) = rustix::net::recv(socket, buffer, flags)?;
    Ok(received)
}

/// Asks the kernel whether the socket has room for output, or is broken. Empty if neither holds.
pub(super) fn output_state(socket: &impl AsFd) -> PollFlags {
    let mut polled = [PollFd::new(socket, PollFlags::OUT)];
    let at_once = Timespec::default();
    match rustix::event::poll(&mut polled, Some(&at_once)) {
        Ok(_) => polled[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

/// The kernel's own time limit for a peer that takes no data (`TCP_USER_TIMEOUT`): three times `timeout`. tinyloop's
/// timer for a waiting write has to fire first. The kernel does not count a window that opens by less than the next
/// segment (up to 64 KiB), so a shorter limit would cut off slow readers.
pub(crate) fn user_timeout(timeout: Duration) -> Duration {
    timeout.saturating_mul(3)
}

/// What a stream does: the first expression for a socket of either kind, the second for a pipe.
macro_rules! each {
    ($stream:expr, $socket:ident => $of_socket:expr, $pipe:ident => $of_pipe:expr) => {
        match $stream {
            Stream::Tcp($socket) => $of_socket,
            Stream::Unix($socket) => $of_socket,
            #[cfg(feature = "testing")]
            Stream::Pipe($pipe) => $of_pipe,
        }
    };
}

impl Stream {
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        each!(self, socket => receive(&**socket, buffer, RecvFlags::empty()), pipe => pipe.read(buffer))
    }

    /// Reads, and leaves what it reads to be read once more.
    #[cfg(feature = "proxy-protocol")]
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        each!(self, socket => receive(&**socket, buffer, RecvFlags::PEEK), pipe => pipe.peek(buffer))
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        each!(self, socket => send(&**socket, bytes), pipe => pipe.write(bytes))
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => socket.poll_readable(cx), pipe => pipe.poll_readable(cx))
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => socket.poll_writable(cx), pipe => pipe.poll_writable(cx))
    }

    pub(super) fn is_writable(&self) -> bool {
        each!(self, socket => !output_state(socket).is_empty(), pipe => pipe.is_writable())
    }

    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        each!(self, socket => socket.get_ref().shutdown(Shutdown::Write), pipe => pipe.shutdown_write())
    }

    /// The error that has broken the connection, if no read or write has returned it yet.
    pub(super) fn take_error(&self) -> Option<io::Error> {
        // On Linux `SO_ERROR` also tells of errors that TCP survives, such as a host that is unreachable for a moment.
        let breaks =
            |state: PollFlags| !cfg!(target_os = "linux") || state.contains(PollFlags::ERR);
        each!(
            self,
            socket => breaks(output_state(socket)).then(|| socket.get_ref().take_error().ok()?)?,
            pipe => pipe.take_error()
        )
    }

    pub(super) fn local_addr(&self) -> io::Result<Address> {
        each!(self, socket => socket.get_ref().local_addr().map(Address::from), _pipe => Ok(Address::Unknown))
    }

    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        each!(self, socket => Some(socket.as_fd()), _pipe => None)
    }

    /// See [`user_timeout`]. `None` restores the kernel's own time.
    pub(super) fn set_user_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(user_timeout);
        match self {
            Stream::Tcp(stream) => platform::set_user_timeout(stream, timeout)?,
            Stream::Unix(_) => {}
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.set_options(None, timeout),
        }
        Ok(())
    }

    /// To call before [`Stream::poll_taken`]: the kernel gives up if the peer takes no data for `patience`.
    pub(super) fn prepare_end(&self, patience: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                platform::set_user_timeout(stream, Some(user_timeout(patience)))?;
                // A socket is writable when a third of its send buffer is free; the kernel frees data that the peer has
                // acknowledged. With the smallest buffer, the socket is writable only when all data but a few kilobytes
                // is taken. Linux turns the 1 into 4.5 kB. Other systems refuse a 0.
                sockopt::set_socket_send_buffer_size(stream, 1)?;
            }
            Stream::Unix(_) => {}
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.prepare_end(user_timeout(patience)),
        }
        Ok(())
    }

    /// Ready when the peer's kernel has nearly all written data. With a Unix socket it has the data from the start.
    pub(super) fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => loop {
                ready!(stream.poll_writable(cx))?;
                let state = output_state(stream);
                // A broken socket is writable, too, and perhaps no read has returned its error yet.
                if state.contains(PollFlags::ERR)
                    && let Some(error) = self.take_error()
                {
                    return Poll::Ready(Err(error));
                }
                // smol may report an event from before this poll.
                if !state.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            },
            Stream::Unix(_) => Poll::Ready(Ok(())),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.poll_taken(cx),
        }
    }

    pub(super) fn reset(&self) {
        // If this fails, the connection is already reset.
        match self {
            Stream::Tcp(stream) => platform::reset(stream.get_ref()),
            Stream::Unix(stream) => drop(stream.get_ref().shutdown(Shutdown::Both)),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.reset(),
        }
    }
}

// Miri has no sockets.
#[cfg(all(test, not(miri)))]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        (Stream::Tcp(Arc::new(Async::new(accepted).unwrap())), peer)
    }

    fn taken(stream: &Stream) -> io::Result<()> {
        smol::block_on(poll_fn(|cx| stream.poll_taken(cx)))
    }

    #[test]
    fn what_a_peer_has_read_is_taken() {
        let (stream, mut peer) = pair();
        stream.write(b"hello").unwrap();
        stream.prepare_end(Duration::from_secs(60)).unwrap();
        peer.read_exact(&mut [0; 5]).unwrap();
        taken(&stream).unwrap();
    }

    #[test]
    fn a_connection_whose_halves_are_both_closed_is_not_broken() {
        let (stream, peer) = pair();
        stream.write(b"hello").unwrap();
        stream.shutdown_write().unwrap();
        (&peer).read_to_end(&mut Vec::new()).unwrap();
        drop(peer);
        smol::block_on(poll_fn(|cx| stream.poll_readable(cx))).unwrap();
        stream.prepare_end(Duration::from_secs(60)).unwrap();
        taken(&stream).unwrap();
    }

    #[test]
    fn what_a_peer_reset_before_it_read_is_not_taken() {
        let (stream, peer) = pair();
        let written = stream.write(&[b'x'; 1_000_000]).unwrap();
        stream.prepare_end(Duration::from_secs(60)).unwrap();
        let peer = thread::spawn(move || {
            // The peer has unread input, so its close is a reset.
            peer.peek(&mut [0]).unwrap();
            drop(peer);
        });
        let error = taken(&stream).unwrap_err();
        peer.join().unwrap();
        assert_eq!(
            error.kind(),
            io::ErrorKind::ConnectionReset,
            "{written} bytes: {error}"
        );
    }
}
