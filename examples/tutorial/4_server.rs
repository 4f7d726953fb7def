//! Step 4 of docs/tutorial.md: the same with a `Server`, which adds limits, error handling and a graceful shutdown.

use std::env;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use tinyloop::{Connection, Server, signal};

fn main() -> ExitCode {
    match tinyloop::run(serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> io::Result<()> {
    let addr = env::args().nth(1);
    let report = Server::bind(addr.as_deref().unwrap_or("127.0.0.1:25000"))
        .await?
        .max_connections(1000)
        .stall_timeout(Duration::from_secs(60))
        .shutdown_on(signal::shutdown()?)
        .drain(Duration::from_secs(5))
        .observe(|event| println!("{event}"))
        .serve(echo)
        .await?;
    println!("{report}");
    Ok(())
}

/// Answers each chunk with `Got: ` and the chunk, until the peer has closed.
async fn echo(mut connection: Connection) -> io::Result<()> {
    connection.end_when_draining();
    let mut chunk = [0; 10_000];
    loop {
        let received = connection.read(&mut chunk).await?;
        if received == 0 {
            return Ok(());
        }
        let reply = [b"Got: ", &chunk[..received]].concat();
        connection.write_all(&reply).await?;
    }
}
