//! Step 1 of docs/tutorial.md: one connection at a time.

use std::env;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let addr = env::args().nth(1);
    let listener = TcpListener::bind(addr.as_deref().unwrap_or("127.0.0.1:25000"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, peer_addr) = listener.accept()?;
        println!("Connection from {peer_addr}");
        match echo(stream) {
            Ok(()) => println!("Connection closed {peer_addr}"),
            Err(error) => println!("Connection failed {peer_addr}: {error}"),
        }
    }
}

/// Answers each chunk with `Got: ` and the chunk, until the peer has closed.
fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut chunk = [0; 10_000];
    loop {
        let received = stream.read(&mut chunk)?;
        if received == 0 {
            return Ok(());
        }
        let reply = [b"Got: ", &chunk[..received]].concat();
        stream.write_all(&reply)?;
    }
}
