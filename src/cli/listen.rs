//! From addresses on the command line to listeners, and what to advise when there are none to be had.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use tinyloop::Listener;
use tinyloop::monitor::{self, Monitor};

use super::args::ListenAddr;

/// How often to look for a port that is free in both families, when the system may choose.
const PORT_TRIES: usize = 16;

/// The longest path of a Unix socket, in bytes.
const PATH_MAX: usize = 107;

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
        listeners.extend(bound.map_err(|error| {
            let advice = match addr {
                ListenAddr::Unix(path) => advice_on_path(path, error.kind()),
                ListenAddr::Ip(addr) => advice(*addr, "--listen", error.kind()),
                ListenAddr::Loopback(port) | ListenAddr::All(port) => advice(
                    (Ipv4Addr::LOCALHOST, *port).into(),
                    "--listen",
                    error.kind(),
                ),
            };
            with_advice(error, advice)
        })?);
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

/// Starts the monitor on `addr`.
pub(crate) fn monitor(addr: SocketAddr) -> io::Result<Monitor> {
    monitor::serve(addr).map_err(|error| {
        let advice = advice(addr, "--monitor", error.kind());
        with_advice(error, advice)
    })
}

/// What to do about an address that cannot be this machine's.
const NOT_OURS: &str = "choose an address of this machine";

/// What to do about an error of an IP address, which `option` has given.
fn advice(addr: SocketAddr, option: &str, error: io::ErrorKind) -> Option<String> {
    let advice = match (error, addr) {
        (io::ErrorKind::PermissionDenied, _) => "choose a port above 1023".to_owned(),
        (io::ErrorKind::AddrInUse, _) => {
            format!("another server uses it; choose another port with {option}")
        }
        (io::ErrorKind::AddrNotAvailable, _) => NOT_OURS.to_owned(),
        (io::ErrorKind::InvalidInput, SocketAddr::V6(addr)) => {
            let (ip, port) = (addr.ip(), addr.port());
            match ip.to_ipv4_mapped() {
                Some(v4) => format!("write it as {v4}:{port}"),
                None if ip.is_unicast_link_local() => {
                    format!("add the number of an interface (see ip link), such as [{ip}%2]:{port}")
                }
                None => NOT_OURS.to_owned(),
            }
        }
        _ => return None,
    };
    Some(advice)
}

/// What to do about an error of a Unix socket's path.
fn advice_on_path(path: &Path, error: io::ErrorKind) -> Option<String> {
    let advice = match error {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a path that you may write to"
        }
        io::ErrorKind::AddrInUse => "another server uses it; choose another path",
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory | io::ErrorKind::NotFound => {
            "choose another path"
        }
        // It is not the system that says so: the path does not fit into an address.
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => {
            let length = path.as_os_str().len();
            return Some(format!(
                "a path has at most {PATH_MAX} bytes, this one {length}"
            ));
        }
        _ => return None,
    };
    Some(advice.to_owned())
}

fn with_advice(error: io::Error, advice: Option<String>) -> io::Error {
    match advice {
        Some(advice) => io::Error::new(error.kind(), format!("{error}; {advice}")),
        None => error,
    }
}
