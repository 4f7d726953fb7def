//! A TCP forwarder: it forwards each connection to another server, with any protocol.
//!
//! ```console
//! $ cargo run --example echo_server &
//! $ cargo run --example forwarder -- 127.0.0.1:7000 localhost:25000
//! listening on 127.0.0.1:7000
//! ```
//!
//! In another terminal, `nc 127.0.0.1 7000` speaks to the echo server. Both addresses may be `PORT`, `:PORT`,
//! `IP:PORT`, `NAME:PORT` or `unix:PATH`. Half-closes and resets are passed on. If the server does not accept within
//! five seconds, the client is reset.

use std::env;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tinyloop::{Connection, Endpoint, Server, ToEndpoint, copy_both, signal};

/// How long the server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a pair of connections may be silent, and how long a peer may not read.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let (Some(listen), Some(upstream), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: forwarder LISTEN UPSTREAM");
        return ExitCode::from(2);
    };
    match tinyloop::run(serve(listen, upstream)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forwarder: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(listen: String, upstream: String) -> io::Result<()> {
    let upstream = upstream.to_endpoint()?;
    let server = Server::bind(listen)
        .await?
        // Each forwarded connection has two file descriptors.
        .max_connections(400)
        .idle_timeout(IDLE_TIMEOUT)
        .stall_timeout(STALL_TIMEOUT)
        .shutdown_on(signal::shutdown()?)
        .drain(Duration::from_secs(5));
    println!("listening on {}", server.local_addrs()[0]);
    let report = server
        .serve(async move |client| forward(client, &upstream).await)
        .await?;
    eprintln!("{report}");
    Ok(())
}

async fn forward(client: Connection, upstream: &Endpoint) -> io::Result<()> {
    let upstream = Connection::connect_timeout(upstream, CONNECT_TIMEOUT)
        .await
        .inspect_err(|error| eprintln!("forwarder: {error}"))?;
    upstream.set_stall_timeout(Some(STALL_TIMEOUT));
    // A shutdown lets transfers finish. The input of a client that is quiet for a second ends, and the upstream's
    // answer to it may still come.
    client.end_when_draining();
    copy_both(&client, &upstream).await?;
    Ok(())
}
