//! hyper on tinyloop, and the same hyper on tokio's current-thread runtime. Both know HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::future::Future;
use std::io;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use smol_hyper::rt::FuturesIo;
use tinyloop::{Connection, Server};
use tokio::net::TcpListener;

use super::announce;

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello\n")))
}

/// Lets hyper start its tasks on tinyloop.
#[derive(Clone)]
struct OnLoop;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for OnLoop {
    fn execute(&self, future: F) {
        tinyloop::spawn(future).detach();
    }
}

pub fn serve_on_tinyloop() -> anyhow::Result<()> {
    tinyloop::run(async {
        let server = Server::bind("127.0.0.1:0").await?;
        announce(&server.local_addrs()[0]);
        let serve = async |connection: Connection| {
            let http = auto::Builder::new(OnLoop);
            let serving = http.serve_connection(FuturesIo::new(connection), service_fn(answer));
            serving.await.map_err(io::Error::other)
        };
        server.serve(serve).await?;
        Ok(())
    })
}

pub fn serve_on_tokio() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let http = auto::Builder::new(TokioExecutor::new());
                let serving = http.serve_connection(TokioIo::new(stream), service_fn(answer));
                // A connection that fails ends its own task only.
                let _ = serving.await;
            });
        }
    })
}
