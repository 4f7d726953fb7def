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

fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (received, _) = rustix::net::recv(socket, buffer, RecvFlags::empty())?;
    Ok(received)
}

#[cfg(feature = "proxy-protocol")]
fn peek(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (received, _) = rustix::net::recv(socket, buffer, RecvFlags::PEEK)?;
    Ok(received)
}

pub(super) fn is_writable(socket: &impl AsFd) -> bool {
    !output_state(socket).is_empty()
}

/// Asks the kernel whether the socket has room for output, or is broken.
fn output_state(socket: &impl AsFd) -> PollFlags {
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

/// Makes the kernel close a connection whose peer takes no data for three times `timeout`.
pub(crate) fn set_user_timeout(socket: impl AsFd, timeout: Duration) -> io::Result<()> {
    platform::set_user_timeout(socket, Some(user_timeout(timeout)))
}

impl Stream {
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => receive(&**stream, buffer),
            Stream::Unix(stream) => receive(&**stream, buffer),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.read(buffer),
        }
    }

    /// Reads, and leaves what it reads to be read once more.
    #[cfg(feature = "proxy-protocol")]
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => peek(&**stream, buffer),
            Stream::Unix(stream) => peek(&**stream, buffer),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.peek(buffer),
        }
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => send(&**stream, bytes),
            Stream::Unix(stream) => send(&**stream, bytes),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.write(bytes),
        }
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_readable(cx),
            Stream::Unix(stream) => stream.poll_readable(cx),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.poll_readable(cx),
        }
    }

    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_writable(cx),
            Stream::Unix(stream) => stream.poll_writable(cx),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.poll_writable(cx),
        }
    }

    pub(super) fn is_writable(&self) -> bool {
        match self {
            Stream::Tcp(stream) => is_writable(stream),
            Stream::Unix(stream) => is_writable(stream),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.is_writable(),
        }
    }

    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.get_ref().shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.get_ref().shutdown(Shutdown::Write),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.shutdown_write(),
        }
    }

    /// See [`set_user_timeout`]. `None` restores the system's own time.
    pub(super) fn set_user_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match (self, timeout) {
            (Stream::Tcp(stream), Some(timeout)) => set_user_timeout(stream, timeout),
            (Stream::Tcp(stream), None) => platform::set_user_timeout(stream, None),
            #[cfg(feature = "testing")]
            (Stream::Pipe(pipe), timeout) => {
                pipe.set_options(None, timeout.map(user_timeout));
                Ok(())
            }
            (Stream::Unix(_), _) => Ok(()),
        }
    }

    pub(super) fn local_addr(&self) -> io::Result<Address> {
        match self {
            Stream::Tcp(stream) => stream.get_ref().local_addr().map(Address::Tcp),
            Stream::Unix(stream) => stream.get_ref().local_addr().map(Address::from),
            #[cfg(feature = "testing")]
            Stream::Pipe(_) => Ok(Address::Unknown),
        }
    }

    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Stream::Tcp(stream) => Some(stream.as_fd()),
            Stream::Unix(stream) => Some(stream.as_fd()),
            #[cfg(feature = "testing")]
            Stream::Pipe(_) => None,
        }
    }

    /// To call before [`Stream::poll_taken`]: the kernel gives up if the peer takes no data for `patience`.
    pub(super) fn prepare_end(&self, patience: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                set_user_timeout(stream, patience)?;
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
                    && let Some(error) = stream.get_ref().take_error()?
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
