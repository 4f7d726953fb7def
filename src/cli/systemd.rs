//! What systemd is told of the program (`Type=notify`): that it is ready, how it does, and that its loop comes round.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::Duration;

use futures_lite::StreamExt;
use tinyloop::Report;

/// How often the status is told, if it has changed. The watchdog may make it more often.
const STATUS_PERIOD: Duration = Duration::from_secs(5);

/// The variable that says where systemd listens.
pub(crate) const SOCKET: &str = "NOTIFY_SOCKET";

/// Tells that the program accepts connections, and from now on how it does: the text that `status` returns.
///
/// Where systemd runs a watchdog, it is told that the loop comes round, twice in its time. A task that blocks the loop
/// for longer brings about a restart.
pub(crate) fn ready(status: impl Fn() -> String + 'static) {
    if env::var_os(SOCKET).is_none() {
        return;
    }
    tell("READY=1");
    let watchdog = watchdog();
    let period = watchdog.map_or(STATUS_PERIOD, |limit| STATUS_PERIOD.min(limit / 2));
    let mut ticks = tinyloop::interval(period.max(Duration::from_millis(1)));
    let watch = async move {
        let mut told = String::new();
        loop {
            let status = format!("STATUS={}", status());
            match (watchdog, status == told) {
                (Some(_), true) => tell("WATCHDOG=1"),
                (Some(_), false) => tell(&format!("WATCHDOG=1\n{status}")),
                (None, true) => {}
                (None, false) => tell(&status),
            }
            told = status;
            ticks.next().await;
        }
    };
    tinyloop::spawn_named("systemd", watch).detach();
}

/// If systemd runs a watchdog, calls `ask` twice in its time, with the time after which a missing answer is too late.
/// This time is shorter than the watchdog's: a call may be late, and then the next call comes soon.
pub(crate) fn watch(ask: impl Fn(Duration) + 'static) {
    let Some(limit) = watchdog() else {
        return;
    };
    let mut ticks = tinyloop::interval((limit / 2).max(Duration::from_millis(1)));
    let watch = async move {
        while ticks.next().await.is_some() {
            // If this process had no turn for a while, the answers that came meanwhile are read first.
            tinyloop::yield_now().await;
            ask(limit * 3 / 4);
        }
    };
    tinyloop::spawn_named("watchdog", watch).detach();
}

/// The time after which systemd's watchdog restarts a service that is silent, if it runs one for this process.
fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(process::id()));
    let limit = number("WATCHDOG_USEC").filter(|&limit| is_meant && limit > 0);
    limit.map(Duration::from_micros)
}

/// Tells that the shutdown begins.
pub(crate) fn stopping() {
    tell("STOPPING=1");
}

/// How a server does, in a few words.
pub(crate) fn status(report: &Report) -> String {
    format!(
        "{} connections open, {} accepted",
        report.open(),
        report.accepted
    )
}

/// Nobody has to listen, and a listener that is slow must not hold up the loop.
fn tell(state: &str) {
    if let Some(name) = env::var_os(SOCKET) {
        try_tell(&name, state).ok();
    }
}

fn try_tell(name: &OsStr, state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match name.as_bytes() {
        [b'@', name @ ..] => socket.send_to_addr(state.as_bytes(), &abstract_addr(name)?)?,
        _ => socket.send_to(state.as_bytes(), name)?,
    };
    Ok(())
}

#[cfg(target_os = "linux")]
fn abstract_addr(name: &[u8]) -> io::Result<SocketAddr> {
    <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)
}

/// Only Linux has systemd, and such names.
#[cfg(not(target_os = "linux"))]
fn abstract_addr(_name: &[u8]) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}
