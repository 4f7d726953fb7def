//! What differs from Linux on other Unixes (docs/platforms.md): there the code is compiled, and not tested.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketType};

/// The longest path of a Unix socket, in bytes.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const UNIX_PATH_MAX: usize = 107;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) const UNIX_PATH_MAX: usize = 103;

/// A stream socket that no other program inherits.
pub(crate) fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    socket(family, false)
}

/// The same, nonblocking.
pub(crate) fn nonblocking_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    socket(family, true)
}

#[cfg(not(target_vendor = "apple"))]
fn socket(family: AddressFamily, nonblocking: bool) -> io::Result<OwnedFd> {
    let mut flags = net::SocketFlags::CLOEXEC;
    flags.set(net::SocketFlags::NONBLOCK, nonblocking);
    Ok(net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// A program that another thread starts between the first two calls inherits the socket.
#[cfg(target_vendor = "apple")]
fn socket(family: AddressFamily, nonblocking: bool) -> io::Result<OwnedFd> {
    let socket = net::socket(family, SocketType::STREAM, None)?;
    rustix::io::ioctl_fioclex(&socket)?;
    rustix::io::ioctl_fionbio(&socket, nonblocking)?;
    prevent_sigpipe(&socket)?;
    Ok(socket)
}

/// Accepts a connection, which is nonblocking, and tells its peer's address.
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

/// Has writes to a broken connection fail without a SIGPIPE, where [`send`] cannot ask for that.
pub(crate) fn prevent_sigpipe(_socket: impl AsFd) -> io::Result<()> {
    #[cfg(target_vendor = "apple")]
    net::sockopt::set_socket_nosigpipe(_socket, true)?;
    Ok(())
}

/// Writes without a SIGPIPE, also for programs that have not turned it off.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    #[cfg(not(target_vendor = "apple"))]
    let flags = SendFlags::NOSIGNAL;
    #[cfg(target_vendor = "apple")]
    let flags = SendFlags::empty();
    Ok(net::send(socket, bytes, flags)?)
}

/// Has the kernel give up a peer that takes nothing for `timeout` (`TCP_USER_TIMEOUT`), or after its own time. Other systems
/// have only their own, of minutes; a write that waits has a timer of ours on every system.
pub(crate) fn set_user_timeout(_socket: impl AsFd, _timeout: Option<Duration>) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let millis = |timeout: Duration| u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        // The kernel takes no more than an int, and 0 means its own time.
        let millis = _timeout.map_or(0, |timeout| millis(timeout).clamp(1, i32::MAX as u32));
        net::sockopt::set_tcp_user_timeout(_socket, millis)?;
    }
    Ok(())
}

/// Resets a connection. What is reset already fails, and is left.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn reset(stream: &TcpStream) {
    // Disconnects: the kernel throws away what is unsent, and sends a reset.
    net::connect_unspec(stream).ok();
}

/// The others do not disconnect. The reset comes when the last descriptor of the connection is closed.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn reset(stream: &TcpStream) {
    net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).ok();
}

/// Whether `errno` is an error of the network that Linux alone has.
pub(crate) fn is_network_error(_errno: Errno) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    return _errno == Errno::NONET;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    return false;
}
