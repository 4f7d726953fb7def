//! What carries a connection's bytes.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll};

use rustix::net::{RecvFlags, SendFlags};
use smol::Async;

#[cfg(feature = "testing")]
use super::pipe::Pipe;

fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (received, _) = rustix::net::recv(socket, buffer, RecvFlags::empty())?;
    Ok(received)
}

fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    // Without a SIGPIPE, also for programs that have not turned it off.
    Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?)
}

/// What carries the bytes.
pub(crate) enum Stream {
    Tcp(Async<TcpStream>),
    Unix(Async<UnixStream>),
    #[cfg(feature = "testing")]
    Pipe(Pipe),
}

impl Stream {
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => receive(stream, buffer),
            Stream::Unix(stream) => receive(stream, buffer),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.read(buffer),
        }
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => send(stream, bytes),
            Stream::Unix(stream) => send(stream, bytes),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.write(bytes),
        }
    }

    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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

    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.get_ref().shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.get_ref().shutdown(Shutdown::Write),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.shutdown_write(),
        }
    }

    /// Lets reads return end of input after what has arrived already.
    pub(super) fn shutdown_read(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.get_ref().shutdown(Shutdown::Read),
            Stream::Unix(stream) => stream.get_ref().shutdown(Shutdown::Read),
            #[cfg(feature = "testing")]
            Stream::Pipe(pipe) => pipe.shutdown_read(),
        }
    }
}
