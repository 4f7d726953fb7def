//! Sockets that listen already, and that systemd or a parent process has passed on.

use std::env::{var, var_os};
use std::io;

use listenfd::ListenFd;
use rustix::process::{Resource, getrlimit};

use crate::platform;
use crate::server::Listener;

/// The first descriptor that is passed, as the protocol has it.
const FIRST: usize = 3;

/// Takes the sockets that systemd (socket activation) or a parent process has passed on, in their order, with their
/// names. Needs the feature `inherit`.
///
/// The sockets are the descriptors from 3 on. `LISTEN_FDS` says how many there are, and `LISTEN_FDNAMES` their names,
/// with a colon between two. A name is `unknown` if there are none. If `LISTEN_PID` is there and is another process,
/// the sockets are not for us. Without `LISTEN_FDS` the result is empty, and it is so at each call but the first.
///
/// The sockets belong to whoever has passed them on, so connections that wait in their queues outlive this process. A
/// Unix socket's file stays.
///
/// Call this first in `main`, before the process opens a descriptor or starts a thread: what is found at 3 is taken for
/// what was passed, and `LISTEN_FDS` is removed from the environment, so that no child process takes it for its own.
/// `LISTEN_PID` and `LISTEN_FDNAMES` stay: if you start a process with sockets of its own, set or remove these two in
/// its environment.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// for (name, listener) in tinyloop::inherited()? {
///     println!("{name} listens on {}", listener.local_addr()?);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// If `LISTEN_FDS` is no number of descriptors, if one of them is no TCP or Unix stream socket that listens, or if
/// there are not as many names.
pub fn inherited() -> io::Result<Vec<(String, Listener)>> {
    let Some(count) = var_os("LISTEN_FDS") else {
        return Ok(Vec::new());
    };
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let is_count = |count: &u64| *count <= most.min(i32::MAX as u64);
    let number = count.to_str().and_then(|count| count.parse().ok());
    if number.filter(is_count).is_none() {
        return Err(invalid(format!("{count:?} is no number of descriptors")));
    }
    let mut passed = ListenFd::from_env();
    let names = match var("LISTEN_FDNAMES") {
        Ok(names) if passed.len() > 0 => names.split(':').map(str::to_owned).collect(),
        _ => vec!["unknown".to_owned(); passed.len()],
    };
    if names.len() != passed.len() {
        let (names, sockets) = (names.len(), passed.len());
        return Err(invalid(format!(
            "{sockets} sockets have {names} names (LISTEN_FDNAMES)"
        )));
    }
    let take = |(index, name): (usize, String)| {
        let listener = match take(&mut passed, index) {
            Some(listener) if platform::is_listening(&listener) => listener,
            _ => {
                let descriptor = FIRST + index;
                return Err(invalid(format!(
                    "descriptor {descriptor} ({name:?}) is no TCP or Unix socket that listens"
                )));
            }
        };
        Ok((name, listener))
    };
    names.into_iter().enumerate().map(take).collect()
}

fn take(passed: &mut ListenFd, index: usize) -> Option<Listener> {
    if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
        return Some(listener.into());
    }
    passed.take_unix_listener(index).ok()?.map(Listener::from)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("LISTEN_FDS: {what}"))
}
