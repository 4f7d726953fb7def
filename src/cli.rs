//! The program around the library: arguments, the two teaching models and the output.

pub(crate) mod args;
pub(crate) mod faulty;
pub(crate) mod listen;
pub(crate) mod log;
pub(crate) mod models;
pub(crate) mod output;
pub(crate) mod sums;
pub(crate) mod systemd;
pub(crate) mod values;
pub(crate) mod worker;
pub(crate) mod workers;

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long to wait for a reader of our output, when the server starts and when it ends.
pub(crate) const PATIENCE: Duration = Duration::from_millis(200);

/// Starts a thread.
pub(crate) fn start_thread(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(body);
    let explain = |error: io::Error| format!("cannot start a thread ({name}): {error}");
    started.map_err(|error| io::Error::new(error.kind(), explain(error)))
}
