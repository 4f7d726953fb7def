//! Addresses: TCP's, Unix sockets', and none.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;

/// Where a connection comes from, or where a server listens.
///
/// Displays as `127.0.0.1:25000`, `[::1]:25000` or `unix:/run/echo.sock`, with what could harm a terminal escaped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a TCP port.
    Tcp(SocketAddr),
    /// A Unix socket and its path. A peer's socket rarely has one.
    Unix(Option<PathBuf>),
    /// None that the system could tell: the connection was broken by then, or is a test's and in memory.
    Unknown,
}

impl Address {
    /// The IP address and port, of a TCP address.
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

/// A peer's address in half the room: nearly all are IPv4 or few.
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
