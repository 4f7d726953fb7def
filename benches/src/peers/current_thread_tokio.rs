//! tokio's current-thread runtime, as someone who knows it would write the server: a task for
//! each connection, and the prefix in the buffer already, so that one write answers one read.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{CHUNK, PREFIX, announce};

pub fn serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            // A connection that fails ends its own task only.
            tokio::spawn(async move { echo(stream).await });
        }
    })
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; PREFIX.len() + CHUNK];
    buffer[..PREFIX.len()].copy_from_slice(PREFIX);
    loop {
        let count = stream.read(&mut buffer[PREFIX.len()..]).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..PREFIX.len() + count]).await?;
    }
}
