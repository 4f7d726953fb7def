//! A poll of the sockets, by the loop or by smol's helper thread.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use smol::Async;

/// Tells when the reactor has polled the sockets. A turn of the loop is no proof: sometimes smol's helper thread holds
/// the reactor, and delivers its events only when this thread is scheduled next.
pub(super) struct Look {
    watched: Async<UnixStream>,
    other_end: UnixStream,
}

impl Look {
    pub(super) fn new() -> io::Result<Look> {
        let (watched, other_end) = UnixStream::pair()?;
        other_end.set_nonblocking(true)?;
        Ok(Look {
            watched: Async::new(watched)?,
            other_end,
        })
    }

    /// Waits until the tasks of all sockets with earlier events are woken. epoll reports events in their order.
    pub(super) async fn taken(&self) -> io::Result<()> {
        // A call that was cancelled has left its byte in the socket.
        while let Ok(1..) = self.watched.get_ref().read(&mut [0; 8]) {}
        (&self.other_end).write_all(&[0])?;
        self.watched.readable().await
    }
}
