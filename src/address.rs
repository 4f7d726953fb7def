//! Addresses of TCP sockets and Unix sockets.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;

/// The address of a peer, or the address that a server listens on.
///
/// Displays as `127.0.0.1:25000`, `[::1]:25000` or `unix:/run/echo.sock`. Control characters in a path are escaped, so
/// that they cannot harm a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a TCP port.
    Tcp(SocketAddr),
    /// A Unix socket and its path. A client's socket rarely has a path.
    Unix(Option<PathBuf>),
    /// The system could not tell the address because the connection was already broken, or the connection is in memory.
    Unknown,
}

impl Address {
    /// The IP address and port, if this is a TCP address.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(addr) => Some(*addr),
            _ => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Address {
        Address::Tcp(addr)
    }
}

impl From<std::os::unix::net::SocketAddr> for Address {
    fn from(addr: std::os::unix::net::SocketAddr) -> Address {
        Address::Unix(addr.as_pathname().map(PathBuf::from))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(addr) => addr.fmt(f),
            Address::Unix(Some(path)) => {
                write!(f, "unix:{}", path.to_string_lossy().escape_debug())
            }
            Address::Unix(None) => f.write_str("unix:unnamed"),
            Address::Unknown => f.write_str("unknown"),
        }
    }
}

/// A peer's address in half the memory: nearly all addresses are IPv4, or the others are few.
pub(crate) enum CompactAddress {
    V4(SocketAddrV4),
    Other(Box<Address>),
}

impl From<Address> for CompactAddress {
    fn from(addr: Address) -> CompactAddress {
        match addr {
            Address::Tcp(SocketAddr::V4(addr)) => CompactAddress::V4(addr),
            addr => CompactAddress::Other(Box::new(addr)),
        }
    }
}

impl From<&CompactAddress> for Address {
    fn from(addr: &CompactAddress) -> Address {
        match addr {
            CompactAddress::V4(addr) => Address::Tcp(SocketAddr::V4(*addr)),
            CompactAddress::Other(addr) => Address::clone(addr),
        }
    }
}
