//! An HTTP server: hyper's HTTP/1.1 and HTTP/2 on this crate's loop, with its limits and its graceful shutdown.
//!
//! ```console
//! $ cargo run --example http             # or with an address: -- 127.0.0.1:7000
//! listening on 127.0.0.1:25000
//! ```
//!
//! Try `curl -d hello 127.0.0.1:25000/echo`, `curl -N 127.0.0.1:25000/ticks` for a body that takes a second, and
//! `curl --http2-prior-knowledge 127.0.0.1:25000`.

use std::{convert, env, io, pin, process::ExitCode, time::Duration};

use futures_lite::{FutureExt, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::{Request, Response, service::service_fn};
use hyper_util::server::conn::auto;
use smol_hyper::rt::FuturesIo;
use tinyloop::{Connection, Server, interval, signal};

fn main() -> ExitCode {
    let addr = env::args().nth(1).unwrap_or("127.0.0.1:25000".into());
    let served = tinyloop::run(async {
        let server = Server::bind(addr)
            .await?
            .idle_timeout(Duration::from_secs(60))
            .stall_timeout(Duration::from_secs(60))
            .shutdown_on(signal::shutdown()?)
            .drain(Duration::from_secs(5));
        println!("listening on {}", server.local_addrs()[0]);
        server.serve(serve).await
    });
    match &served {
        Ok(report) => eprintln!("{report}"),
        Err(error) => eprintln!("http: {error}"),
    }
    ExitCode::from(u8::from(served.is_err()))
}

/// Lets hyper start the tasks of its HTTP/2 connections on the loop.
#[derive(Clone)]
struct OnLoop;
impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for OnLoop {
    fn execute(&self, future: F) {
        tinyloop::spawn(future).detach();
    }
}

async fn serve(connection: Connection) -> io::Result<()> {
    let closing = connection.closing();
    let (http, connection) = (auto::Builder::new(OnLoop), FuturesIo::new(connection));
    let mut serving = pin::pin!(http.serve_connection(connection, service_fn(answer)));
    let ended = async { Some(serving.as_mut().await) };
    let draining = async {
        closing.await;
        None
    };
    if let Some(served) = ended.or(draining).await {
        return served.map_err(io::Error::other);
    }
    // Answer the requests that have arrived, and take no more.
    serving.as_mut().graceful_shutdown();
    serving.await.map_err(io::Error::other)
}

type AnyBody = pin::Pin<Box<dyn Body<Data = Bytes, Error = hyper::Error>>>;

async fn answer(request: Request<Incoming>) -> hyper::Result<Response<AnyBody>> {
    let body: AnyBody = match request.uri().path() {
        "/echo" => Box::pin(request.into_body()),
        "/ticks" => {
            let ticks = interval(Duration::from_millis(100)).take(10);
            let lines = ticks.map(|at| Ok(Frame::data(format!("{at:?}\n").into())));
            Box::pin(StreamBody::new(lines))
        }
        _ => Box::pin(Full::from("hello\n").map_err(|never: convert::Infallible| match never {})),
    };
    Ok(Response::new(body))
}
