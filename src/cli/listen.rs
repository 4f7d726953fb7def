//! From addresses on the command line to listeners, and what to advise when there are none to be had.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use tinyloop::Listener;

use super::args::ListenAddr;

/// How often to look for a port that is free in both families, when the system may choose.
const PORT_TRIES: usize = 16;

/// Listens on all of `addrs`, in their order.
pub(crate) fn listen(addrs: &[ListenAddr]) -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for addr in addrs {
        let bound = match addr {
            ListenAddr::Loopback(port) => both(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST, *port),
            ListenAddr::All(port) => both(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED, *port),
            ListenAddr::Ip(addr) => Listener::bind(*addr).map(|listener| vec![listener]),
            ListenAddr::Unix(path) => Listener::bind_unix(path).map(|listener| vec![listener]),
        };
        listeners.extend(bound.map_err(|error| advise(addr, error))?);
    }
    Ok(listeners)
}

/// Listens with IPv4 and, where the machine has it, IPv6, on the same port.
fn both(v4: Ipv4Addr, v6: Ipv6Addr, port: u16) -> io::Result<Vec<Listener>> {
    let mut tries = if port == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let first = Listener::bind(SocketAddr::new(IpAddr::V4(v4), port))?;
        let Some(chosen) = first.local_addr()?.tcp() else {
            return Ok(vec![first]);
        };
        match Listener::bind(SocketAddr::new(IpAddr::V6(v6), chosen.port())) {
            Ok(second) => return Ok(vec![first, second]),
            Err(_) if !has_ipv6() => return Ok(vec![first]),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Adds to an error what to do about it.
fn advise(addr: &ListenAddr, error: io::Error) -> io::Error {
    let unix = matches!(addr, ListenAddr::Unix(_));
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied if unix => "choose a path that you may write to",
        io::ErrorKind::PermissionDenied => "choose a port above 1023",
        io::ErrorKind::AddrInUse if unix => "another server uses it; choose another path",
        io::ErrorKind::AddrInUse => "another server uses it; choose another port with --listen",
        io::ErrorKind::AddrNotAvailable => "choose an address of this machine",
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound => "choose another path",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}; {advice}"))
}
