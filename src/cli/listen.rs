//! From addresses on the command line to listeners, with advice for the user when an address cannot be used.

use std::io;
use std::net::{SocketAddr, TcpListener};

use tinyloop::monitor::{self, Monitor};
use tinyloop::{Endpoint, Listener, SLOW_POLL};

use super::log::Log;

/// Where the program listens if nobody has said where.
const DEFAULT: Endpoint = Endpoint::Loopback(25000);

/// The sockets that were passed on, or those of `endpoints`, or the default; with their names.
pub(crate) fn or_inherited(
    endpoints: &[Endpoint],
    inherited: Vec<(String, Listener)>,
) -> io::Result<Vec<(String, Listener)>> {
    if !inherited.is_empty() {
        return Ok(inherited);
    }
    let listeners = match endpoints {
        [] => listen(&[DEFAULT])?,
        _ => listen(endpoints)?,
    };
    let named = |listener| ("listen".to_owned(), listener);
    Ok(listeners.into_iter().map(named).collect())
}

/// A socket for the models that wait for it in threads.
pub(crate) fn blocking(listener: Listener) -> io::Result<TcpListener> {
    let listener = listener.into_tcp().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the inherited Unix socket works only with --model async",
        )
    })?;
    // Whoever passed it on may have had other plans for it.
    listener.set_nonblocking(false)?;
    Ok(listener)
}

/// Listens on all of `endpoints`, in their order.
fn listen(endpoints: &[Endpoint]) -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for endpoint in endpoints {
        let bound = Listener::bind_endpoint(endpoint);
        listeners.extend(bound.map_err(|error| {
            let advice = match endpoint {
                Endpoint::Unix(_) => advice_on_path(error.kind()),
                Endpoint::Ip(addrs) => advice(addrs[0], "--listen", error.kind()),
                // Any one of the addresses that the port or name stands for.
                _ => advice(([127, 0, 0, 1], 0).into(), "--listen", error.kind()),
            };
            with_advice(error, advice)
        })?);
    }
    Ok(listeners)
}

/// Starts the monitor on `addr`.
pub(crate) fn monitor(addr: SocketAddr) -> io::Result<Monitor> {
    monitor::serve(addr).map_err(|error| {
        let advice = advice(addr, "--monitor", error.kind());
        with_advice(error, advice)
    })
}

/// Reports the address of the monitor.
pub(crate) fn tell_monitor(monitor: &Monitor, log: &Log) {
    let addr = monitor.local_addr();
    log.notice("monitor", "monitor on", addr);
    if !addr.ip().is_loopback() {
        log.warning("the monitor has no password: anybody who reaches its address can read it");
    }
}

/// Reports tasks that block the loop.
pub(crate) fn tell_slow_polls(log: &Log) {
    let log = log.clone();
    tinyloop::on_slow_poll(SLOW_POLL, move |slow_poll| log.slow_poll(slow_poll));
}

/// Advice for an address that this machine does not have.
const NOT_OURS: &str = "choose an address of this machine";

/// Advice for an error of the IP address that the user gave with `option`.
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

/// Advice for an error of a Unix socket's path.
fn advice_on_path(error: io::ErrorKind) -> Option<String> {
    let advice = match error {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a path that you may write to"
        }
        io::ErrorKind::AddrInUse => "another server uses it; choose another path",
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory | io::ErrorKind::NotFound => {
            "choose another path"
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
