//! An HTTP client: hyper's, on this crate's loop and connections.
//!
//! ```console
//! $ cargo run --example http_client -- http://127.0.0.1:25000/ticks
//! ```
//!
//! It prints the body as it comes. The exit code is 0 if the HTTP status is below 400, otherwise 1.

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, Uri};
use smol_hyper::rt::FuturesIo;
use tinyloop::{Connection, timeout};

/// How long the server may take to accept the connection, and to answer.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let Some(url) = env::args().nth(1) else {
        eprintln!("usage: http_client http://HOST[:PORT]/PATH");
        return ExitCode::from(2);
    };
    match tinyloop::run(get(&url)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("http_client: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the body at `url`. Returns whether the status is below 400.
async fn get(url: &str) -> Result<bool, Box<dyn Error>> {
    let url: Uri = url.parse()?;
    if url.scheme_str() != Some("http") {
        return Err("the URL must begin with http://".into());
    }
    let authority = url.authority().ok_or("the URL has no host")?;
    // An IPv6 address stands in brackets.
    let host = authority.host().trim_matches(['[', ']']);
    let to = (host, url.port_u16().unwrap_or(80));
    let connection = Connection::connect_timeout(to, PATIENCE).await?;
    let (mut http, traffic) =
        hyper::client::conn::http1::handshake(FuturesIo::new(connection)).await?;
    // This task moves the bytes. It ends with the connection.
    let _traffic = tinyloop::spawn(traffic);
    // Without a user's name and password.
    let host_and_port = authority.as_str().rsplit('@').next().unwrap_or(host);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(HOST, host_and_port)
        .body(Empty::<Bytes>::new())?;
    let mut response = timeout(PATIENCE, http.send_request(request)).await??;
    while let Some(frame) = response.frame().await {
        if let Some(data) = frame?.data_ref() {
            io::stdout().write_all(data)?;
            io::stdout().flush()?;
        }
    }
    Ok(response.status().as_u16() < 400)
}
