//! Listening sockets, and the options that their connections inherit.

pub(crate) mod bind;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};

use crate::address::Address;
use crate::connection::user_timeout;
use crate::platform;

/// Number of connections that the kernel holds before they are accepted. With a backlog of 128 (std, async-net), most
/// clients in a burst of 1,000 wait a second until their SYN is sent again. The system's own limit (somaxconn) also
/// applies.
pub(super) const BACKLOG: i32 = 4096;

/// A listening TCP or Unix socket that no server uses yet.
///
/// When a listener from [`bind_unix`](Listener::bind_unix) is dropped, it removes its file, if no other file has
/// replaced it.
#[derive(Debug)]
pub struct Listener {
    /// The file of a Unix socket that this listener created. It is removed before the socket is closed, because another
    /// process may use the path after that.
    pub(super) file: Option<SocketFile>,
    pub(super) socket: Socket,
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The address of the listening socket.
    ///
    /// # Errors
    ///
    /// Errors of the system.
    pub fn local_addr(&self) -> io::Result<Address> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Socket::Unix(listener) => listener.local_addr().map(Address::from),
        }
    }

    /// The TCP listener inside, if there is one. Only for the program: not a part of the public API.
    #[doc(hidden)]
    pub fn into_tcp(self) -> Option<TcpListener> {
        match self.socket {
            Socket::Tcp(listener) => Some(listener),
            Socket::Unix(_) => None,
        }
    }
}

impl AsFd for Listener {
    /// The socket, for example to pass a duplicate of it to a child process.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix(listener) => listener.as_fd(),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Listener {
        Listener {
            socket: Socket::Tcp(listener),
            file: None,
        }
    }
}

impl From<UnixListener> for Listener {
    /// The socket's file is not removed when the listener is dropped.
    fn from(listener: UnixListener) -> Listener {
        Listener {
            socket: Socket::Unix(listener),
            file: None,
        }
    }
}

/// The file of a Unix socket, identified by its inode. It is removed with its listener.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    pub(super) fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile {
            path: path.to_owned(),
            device_and_inode: device_and_inode(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have replaced the file with its own socket.
        if device_and_inode(&self.path).is_ok_and(|found| found == self.device_and_inode) {
            fs::remove_file(&self.path).ok();
        }
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Number of file descriptors that are not for connections.
const OTHER_DESCRIPTORS: u64 = 32;

/// The default connection limit. In memory there is no limit.
pub(super) fn max_connections(listeners: &[Listener]) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    match listeners {
        [] => usize::MAX,
        _ => descriptors.saturating_sub(OTHER_DESCRIPTORS).max(1) as usize,
    }
}

/// The options that a listener's TCP connections inherit.
#[derive(Clone, Copy, Default)]
pub(super) struct ConnectionOptions {
    /// The size of the send buffer and of the receive buffer, in bytes.
    pub(super) buffer_size: Option<usize>,
    /// How long the peer may take none of the sent data.
    pub(super) stall_timeout: Option<Duration>,
}

impl ConnectionOptions {
    /// Sets the options on a listener, or on a connection that has not inherited them. Also sets `TCP_NODELAY` and
    /// `SO_OOBINLINE`: without the second, unread urgent data would wake the loop for ever.
    pub(super) fn set(&self, socket: impl AsFd) -> io::Result<()> {
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_oobinline(&socket, true)?;
        if let Some(size) = self.buffer_size {
            // The kernel takes an `int`, and applies its own limits.
            let size = size.min(i32::MAX as usize);
            sockopt::set_socket_recv_buffer_size(&socket, size)?;
            sockopt::set_socket_send_buffer_size(&socket, size)?;
        }
        if let Some(timeout) = self.stall_timeout {
            platform::set_user_timeout(&socket, Some(user_timeout(timeout)))?;
        }
        Ok(())
    }
}
