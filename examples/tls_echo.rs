//! The echo server behind TLS: futures-rustls wraps a `Connection` like any other stream.
//!
//! The program creates a self-signed certificate at the start and prints it, so that a client can trust it:
//!
//! ```console
//! $ cargo run --example tls_echo | tee tls_echo.pem      # or with an address: -- 127.0.0.1:7000
//! listening on 127.0.0.1:25443
//! -----BEGIN CERTIFICATE-----
//! ```
//!
//! In another terminal, use openssl, because nc has no TLS (`ncat --ssl 127.0.0.1 25443` works, too):
//!
//! ```console
//! $ openssl s_client -quiet -CAfile tls_echo.pem -connect 127.0.0.1:25443
//! hello
//! Got: hello
//! ```

use std::env;
use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt, FutureExt};
use futures_rustls::TlsAcceptor;
use futures_rustls::rustls::ServerConfig;
use futures_rustls::rustls::pki_types::PrivateKeyDer;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tinyloop::{Connection, Server, signal, timeout};

/// Time limit for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match tinyloop::run(serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tls_echo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let addr = env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:25443".to_owned());
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::Pkcs8(signing_key.serialize_der().into()),
        )?;
    let acceptor = Rc::new(TlsAcceptor::from(Arc::new(config)));

    let server = Server::bind(addr)
        .await?
        .max_connections(1024)
        .idle_timeout(Duration::from_secs(60))
        .stall_timeout(Duration::from_secs(60))
        .shutdown_on(signal::shutdown()?)
        .drain(Duration::from_secs(5));
    println!("listening on {}", server.local_addrs()[0]);
    print!("{}", cert.pem());
    let report = server
        .serve(async move |connection| echo(&acceptor, connection).await)
        .await?;
    eprintln!("{report}");
    Ok(())
}

/// Answers every chunk until the peer or the server closes. Both ends of TLS send a close message, so an attacker on
/// the way cannot cut off a transfer unnoticed.
async fn echo(acceptor: &TlsAcceptor, connection: Connection) -> io::Result<()> {
    let mut closing = connection.closing();
    let mut tls = timeout(HANDSHAKE, acceptor.accept(connection)).await??;
    let mut chunk = vec![0; 10_000];
    loop {
        let closed = async {
            (&mut closing).await;
            Ok(0)
        };
        match tls.read(&mut chunk).or(closed).await? {
            0 => return tls.close().await,
            length => {
                tls.write_all(&[b"Got: ", &chunk[..length]].concat())
                    .await?;
                // TLS keeps the data that the socket did not take at once.
                tls.flush().await?;
            }
        }
    }
}
