//! An echo server as a complete program, with a connection limit, an idle timeout and a graceful shutdown.
//!
//! ```console
//! $ cargo run --example echo_server      # or with an address: -- 127.0.0.1:7000
//! listening on 127.0.0.1:25000
//! ```
//!
//! In another terminal:
//!
//! ```console
//! $ nc 127.0.0.1 25000
//! hello
//! Got: hello
//! ```
//!
//! After Ctrl-C or SIGTERM it takes no new connections, gives open connections five seconds to end, and prints a
//! report.

use std::env;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tinyloop::{Server, signal};

fn main() -> ExitCode {
    let addr = env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:25000".to_owned());
    match tinyloop::run(serve(addr)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo_server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(addr: String) -> io::Result<()> {
    let server = Server::bind(addr)
        .await?
        .max_connections(1024)
        .idle_timeout(Duration::from_secs(60))
        .stall_timeout(Duration::from_secs(60))
        .shutdown_on(signal::shutdown()?)
        .drain(Duration::from_secs(5));
    println!("listening on {}", server.local_addrs()[0]);
    let report = server
        .serve(async |connection| tinyloop::echo(connection, b"Got: ").await)
        .await?;
    eprintln!("{report}");
    Ok(())
}
