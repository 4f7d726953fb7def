//! Checks which ports are open, up to a hundred at once, with a timeout of one second for each.
//!
//! ```console
//! $ cargo run --example port_checker -- localhost:22 localhost:25000 10.255.255.1:80
//! localhost:22 open
//! localhost:25000 closed
//! 10.255.255.1:80 timed out
//! ```
//!
//! Each line comes as soon as its answer is known. The exit code is 0 if all ports are open, otherwise 1.
//! To open a port for a test: `nc -lk 127.0.0.1 25000`.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use async_net::TcpStream;
use futures_lite::StreamExt;
use tinyloop::{TaskGroup, timeout};

/// Maximum number of ports that are checked at once.
const AT_ONCE: usize = 100;

/// How long a port has to answer.
const PATIENCE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let targets: Vec<String> = env::args().skip(1).collect();
    if targets.is_empty() {
        eprintln!("usage: port_checker HOST:PORT...");
        return ExitCode::from(2);
    }
    match tinyloop::run(check_all(targets)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot print: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether all targets are open.
async fn check_all(targets: Vec<String>) -> io::Result<bool> {
    let mut checks = TaskGroup::new().limit(AT_ONCE);
    for target in targets {
        // Waits while a hundred others run.
        checks.spawn(check(target)).await;
    }
    let mut all_open = true;
    while let Some(is_open) = checks.next().await {
        all_open &= is_open?;
    }
    Ok(all_open)
}

/// Checks a target, prints the answer, and returns whether it is open.
async fn check(target: String) -> io::Result<bool> {
    let connected = timeout(PATIENCE, TcpStream::connect(target.as_str())).await;
    let answer = match &connected {
        Ok(Ok(_)) => "open".to_owned(),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => "closed".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(timed_out) => timed_out.to_string(),
    };
    writeln!(io::stdout(), "{target} {answer}")?;
    Ok(matches!(connected, Ok(Ok(_))))
}
