//! The servers that tinyloop is compared with.
//!
//! Those written in Rust live in this binary and run as processes of their own: the binary is
//! started again as `tinyloop-bench serve NAME`. `echo.py` and `echo.go` are run by Python and
//! built by Go. Each prints `listening on ADDRESS` as its first line and then answers each chunk
//! of at most [`CHUNK`] bytes with [`PREFIX`] and the chunk.

mod forwarders;
mod http;
mod naive_smol;
mod own_buffer;
mod raw_epoll;
mod tokio_runtimes;

use std::fmt::Display;

/// What each reply begins with.
pub const PREFIX: &[u8] = b"Got: ";

/// The most bytes that a server reads, and so answers, at once.
pub const CHUNK: usize = 10_000;

/// The first words of a server's first line.
pub const ANNOUNCEMENT: &str = "listening on ";

/// tinyloop with a buffer for each connection, where the program lends all of them one.
pub const TINYLOOP_WITH_BUFFERS: &str = "tinyloop-with-buffers";

/// tokio with one buffer for all connections.
pub const TOKIO_WITHOUT_BUFFERS: &str = "tokio-without-buffers";

/// tokio's multi-thread runtime, with two threads that run tasks.
pub const TOKIO_WITH_TWO_THREADS: &str = "tokio-2-threads";

/// hyper on tinyloop, and on tokio's current-thread runtime.
pub const TINYLOOP_HTTP: &str = "tinyloop-http";
pub const TOKIO_HTTP: &str = "tokio-http";

/// The forwarder of tinyloop's examples, and the same program on tokio.
pub const TINYLOOP_FORWARDER: &str = "tinyloop-forwarder";
pub const TOKIO_FORWARDER: &str = "tokio-forwarder";

/// Runs the named server in this process until it is killed. A forwarder goes on to `upstream`.
pub fn serve(name: &str, upstream: &str) -> anyhow::Result<()> {
    match name {
        "tokio" => tokio_runtimes::serve(),
        "epoll" => raw_epoll::serve(),
        "smol" => naive_smol::serve(),
        TINYLOOP_WITH_BUFFERS => own_buffer::serve(),
        TOKIO_WITHOUT_BUFFERS => tokio_runtimes::serve_from_one_buffer(),
        TOKIO_WITH_TWO_THREADS => tokio_runtimes::serve_on_two_threads(),
        TINYLOOP_HTTP => http::serve_on_tinyloop(),
        TOKIO_HTTP => http::serve_on_tokio(),
        TINYLOOP_FORWARDER => forwarders::serve_on_tinyloop(upstream.parse()?),
        TOKIO_FORWARDER => forwarders::serve_on_tokio(upstream.parse()?),
        _ => anyhow::bail!("there is no server named `{name}` in this binary"),
    }
}

fn announce(address: impl Display) {
    println!("{ANNOUNCEMENT}{address}");
}
