//! A WebSocket server: async-tungstenite on this crate's connections. It sends each message back.
//!
//! ```console
//! $ cargo run --example websocket        # or with an address: -- 127.0.0.1:7000
//! listening on 127.0.0.1:25000
//! ```
//!
//! In another terminal: `python3 -m websockets ws://127.0.0.1:25000`, or in a browser's console:
//! `new WebSocket("ws://127.0.0.1:25000")`.

use std::env;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use async_tungstenite::accept_async;
use async_tungstenite::tungstenite::Error;
use async_tungstenite::tungstenite::protocol::CloseFrame;
use async_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use futures_lite::{FutureExt, StreamExt};
use tinyloop::{Connection, Server, signal, timeout};

/// Time limit for the handshake of a client.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let addr = env::args().nth(1).unwrap_or("127.0.0.1:25000".to_owned());
    match tinyloop::run(serve(addr)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("websocket: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(addr: String) -> io::Result<()> {
    let server = Server::bind(addr)
        .await?
        .stall_timeout(Duration::from_secs(60))
        .shutdown_on(signal::shutdown()?)
        .drain(Duration::from_secs(5));
    println!("listening on {}", server.local_addrs()[0]);
    let report = server
        .serve(async |connection| echo(connection).await.map_err(io::Error::other))
        .await?;
    eprintln!("{report}");
    Ok(())
}

/// Sends each message back, until the client or the server closes.
async fn echo(connection: Connection) -> Result<(), Error> {
    let closing = connection.closing();
    let mut closing = async {
        closing.await;
        None
    }
    .boxed_local();
    let accepted = timeout(HANDSHAKE_TIMEOUT, accept_async(connection)).await;
    let mut socket = accepted.map_err(io::Error::from)??;
    while let Some(message) = socket.next().or(&mut closing).await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    let goodbye = CloseFrame {
        code: CloseCode::Away,
        reason: "the server ends".into(),
    };
    // Does nothing if the client has closed.
    socket
        .close(Some(goodbye))
        .await
        .or_else(|error| match error {
            Error::ConnectionClosed | Error::AlreadyClosed => Ok(()),
            error => Err(error),
        })
}
