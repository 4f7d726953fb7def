//! Code that differs between Linux and other Unixes (docs/platforms.md). The other branches are compiled, but not
//! tested.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketType};

/// What `poll` tells of a peer that has closed its half. Other Unixes have no event of its own for that.
#[cfg(not(target_vendor = "apple"))]
#[cfg(feature = "testing")]
pub(crate) const RDHUP: rustix::event::PollFlags = rustix::event::PollFlags::RDHUP;
#[cfg(target_vendor = "apple")]
#[cfg(feature = "testing")]
pub(crate) const RDHUP: rustix::event::PollFlags = rustix::event::PollFlags::empty();

/// The longest path of a Unix socket, in bytes.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const UNIX_PATH_MAX: usize = 107;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) const UNIX_PATH_MAX: usize = 103;

/// A stream socket that child programs do not inherit.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = net::SocketFlags::CLOEXEC;
    Ok(net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// If another thread starts a program between the first two calls, this program inherits the socket.
#[cfg(target_vendor = "apple")]
pub(crate) fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let socket = net::socket(family, SocketType::STREAM, None)?;
    rustix::io::ioctl_fioclex(&socket)?;
    prevent_sigpipe(&socket)?;
    Ok(socket)
}

/// Whether a socket listens. macOS cannot tell: there every socket counts as listening.
#[cfg(feature = "inherit")]
pub(crate) fn is_listening(_socket: impl AsFd) -> bool {
    #[cfg(not(target_vendor = "apple"))]
    return net::sockopt::socket_acceptconn(_socket).unwrap_or(false);
    #[cfg(target_vendor = "apple")]
    return true;
}

/// Accepts a connection, makes it nonblocking and returns it with its peer's address.
#[cfg(not(target_vendor = "apple"))]
pub(crate) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, Option<SocketAddr>)> {
    // Nonblocking from the start, which saves a system call over std's accept.
    let flags = net::SocketFlags::NONBLOCK | net::SocketFlags::CLOEXEC;
    let (socket, peer_addr) = net::acceptfrom_with(listener, flags)?;
    let peer_addr = peer_addr.and_then(|addr| SocketAddr::try_from(addr).ok());
    Ok((socket.into(), peer_addr))
}

#[cfg(target_vendor = "apple")]
pub(crate) fn accept(listener: &TcpListener) -> io::Result<(TcpStream, Option<SocketAddr>)> {
    let (stream, peer_addr) = listener.accept()?;
    stream.set_nonblocking(true)?;
    prevent_sigpipe(&stream)?;
    Ok((stream, Some(peer_addr)))
}

/// Makes writes to a broken connection fail without a SIGPIPE, on systems where [`send`] has no flag for that.
pub(crate) fn prevent_sigpipe(_socket: impl AsFd) -> io::Result<()> {
    #[cfg(target_vendor = "apple")]
    net::sockopt::set_socket_nosigpipe(_socket, true)?;
    Ok(())
}

/// Writes without a SIGPIPE, even if the program has not ignored this signal.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    #[cfg(not(target_vendor = "apple"))]
    let flags = SendFlags::NOSIGNAL;
    #[cfg(target_vendor = "apple")]
    let flags = SendFlags::empty();
    Ok(net::send(socket, bytes, flags)?)
}

/// Makes the kernel close a connection whose peer acknowledges nothing for `timeout` (`TCP_USER_TIMEOUT`); `None`
/// restores the kernel's own time. Other systems have only their own time, of some minutes. tinyloop's own timer for
/// waiting writes works on all systems.
pub(crate) fn set_user_timeout(_socket: impl AsFd, _timeout: Option<Duration>) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let millis = |timeout: Duration| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        // The kernel takes an `int` at most. 0 restores its own time.
        let millis = _timeout.map_or(0, |timeout| millis(timeout).clamp(1, i32::MAX as u32));
        net::sockopt::set_tcp_user_timeout(_socket, millis)?;
    }
    Ok(())
}

/// Resets a connection. If the connection is reset already, the call fails, and the error is ignored.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn reset(stream: &TcpStream) {
    // This disconnects the socket: the kernel discards unsent data and sends a reset.
    net::connect_unspec(stream).ok();
}

/// Other systems cannot disconnect a socket. The reset comes when the last file descriptor of the connection is closed.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn reset(stream: &TcpStream) {
    net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).ok();
}

/// Whether `errno` is a network error that exists only on Linux.
pub(crate) fn is_network_error(_errno: Errno) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return _errno == Errno::NONET;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    return false;
}
