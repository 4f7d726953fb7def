//! Step 3 of docs/tutorial.md: one thread, and a task for each connection, by hand.

use std::env;
use std::io;

use async_net::{TcpListener, TcpStream};
use futures_lite::{AsyncReadExt, AsyncWriteExt};

fn main() -> io::Result<()> {
    tinyloop::run(serve())
}

async fn serve() -> io::Result<()> {
    let addr = env::args().nth(1);
    let listener = TcpListener::bind(addr.as_deref().unwrap_or("127.0.0.1:25000")).await?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        match listener.accept().await {
            Ok((stream, peer_addr)) => {
                println!("Connection from {peer_addr}");
                let task = tinyloop::spawn(async move {
                    match echo(stream).await {
                        Ok(()) => println!("Connection closed {peer_addr}"),
                        Err(error) => println!("Connection failed {peer_addr}: {error}"),
                    }
                });
                task.detach();
            }
            Err(error) => eprintln!("cannot accept: {error}"),
        }
    }
}

/// Answers each chunk with `Got: ` and the chunk, until the peer has closed.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut chunk = [0; 10_000];
    loop {
        let received = stream.read(&mut chunk).await?;
        if received == 0 {
            return Ok(());
        }
        let reply = [b"Got: ", &chunk[..received]].concat();
        stream.write_all(&reply).await?;
    }
}
