//! The first server one would write on smol: `LocalExecutor::run`, a task for each connection,
//! and a new vector for each reply.

use smol::LocalExecutor;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};

use super::{CHUNK, PREFIX, announce};

pub fn serve() -> anyhow::Result<()> {
    let executor = LocalExecutor::new();
    smol::block_on(executor.run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            executor.spawn(echo(stream)).detach();
        }
    }))
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut data = vec![0; CHUNK];
    loop {
        let count = stream.read(&mut data).await?;
        if count == 0 {
            return Ok(());
        }
        let reply = [PREFIX, &data[..count]].concat();
        stream.write_all(&reply).await?;
    }
}
