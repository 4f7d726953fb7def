//! A look at the sockets, by whichever thread does it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use smol::Async;

/// Tells when the reactor has looked at the sockets. A turn of the loop may not do so: smol's helper thread holds the
/// reactor at times, and what it has seen comes when that thread is scheduled next.
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

    /// Waits until everybody is woken whose sockets had an event before this call: epoll tells of events in their order.
    pub(super) async fn taken(&self) -> io::Result<()> {
        // A call that was cancelled has left its byte there.
        while let Ok(1..) = self.watched.get_ref().read(&mut [0; 8]) {}
        (&self.other_end).write_all(&[0])?;
        self.watched.readable().await
    }
}
