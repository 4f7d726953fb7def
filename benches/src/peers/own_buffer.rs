//! tinyloop with a handler of one's own, which holds a buffer for its connection, as step 4 of docs/tutorial.md does.

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use tinyloop::{Connection, Server};

use super::{CHUNK, PREFIX, announce};

pub fn serve() -> anyhow::Result<()> {
    tinyloop::run(async {
        let server = Server::bind("127.0.0.1:0").await?;
        announce(&server.local_addrs()[0]);
        server.serve(echo).await?;
        Ok(())
    })
}

async fn echo(mut connection: Connection) -> std::io::Result<()> {
    let mut chunk = [0; CHUNK];
    loop {
        let received = connection.read(&mut chunk).await?;
        if received == 0 {
            return Ok(());
        }
        let reply = [PREFIX, &chunk[..received]].concat();
        connection.write_all(&reply).await?;
    }
}
