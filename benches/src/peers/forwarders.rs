//! A forwarder on tinyloop, and the same program on tokio: what its documentation offers for that.

use std::io;
use std::net::SocketAddrV4;

use tinyloop::{Connection, Server, copy_both};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::announce;

pub fn serve_on_tinyloop(upstream: SocketAddrV4) -> anyhow::Result<()> {
    tinyloop::run(async {
        let server = Server::bind("127.0.0.1:0").await?;
        announce(&server.local_addrs()[0]);
        let forward = async move |client: Connection| {
            let upstream = Connection::connect(upstream).await?;
            copy_both(&client, &upstream).await?;
            Ok(())
        };
        server.serve(forward).await?;
        Ok(())
    })
}

pub fn serve_on_tokio(upstream: SocketAddrV4) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (client, _) = listener.accept().await?;
            tokio::spawn(forward(client, upstream));
        }
    })
}

async fn forward(mut client: TcpStream, upstream: SocketAddrV4) -> io::Result<()> {
    let mut upstream = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut upstream).await?;
    Ok(())
}
