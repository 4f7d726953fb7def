//! The servers that tinyloop is compared with.
//!
//! Those written in Rust live in this binary and run as processes of their own: the binary is
//! started again as `tinyloop-bench serve NAME`. `echo.py` and `echo.go` are run by Python and
//! built by Go. Each prints `listening on ADDRESS` as its first line and then answers each chunk
//! of at most [`CHUNK`] bytes with [`PREFIX`] and the chunk.

mod current_thread_tokio;
mod naive_smol;
mod raw_epoll;

use std::net::SocketAddr;

/// What each reply begins with.
pub const PREFIX: &[u8] = b"Got: ";

/// The most bytes that a server reads, and so answers, at once.
pub const CHUNK: usize = 10_000;

/// The first words of a server's first line.
pub const ANNOUNCEMENT: &str = "listening on ";

/// Runs the named server in this process until it is killed.
pub fn serve(name: &str) -> anyhow::Result<()> {
    match name {
        "tokio" => current_thread_tokio::serve(),
        "epoll" => raw_epoll::serve(),
        "smol" => naive_smol::serve(),
        _ => anyhow::bail!("there is no server named `{name}` in this binary"),
    }
}

fn announce(address: SocketAddr) {
    println!("{ANNOUNCEMENT}{address}");
}
