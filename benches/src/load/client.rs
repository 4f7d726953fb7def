//! A client on tinyloop itself, in a process of its own: `tinyloop-bench client main ADDRESS`, or `task` for `main`.

use std::env;
use std::net::{SocketAddr, SocketAddrV4};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::TcpStream;

use super::SMALL;
use crate::children::run;
use crate::peers::PREFIX;

const ROUND_TRIPS: u32 = 20_000;

const LIMIT: Duration = Duration::from_secs(60);

/// Where the client's future runs.
#[derive(Clone, Copy)]
pub enum Place {
    /// In the main future of `tinyloop::run`.
    Main,
    /// In a task of `tinyloop::spawn`, for which the main future waits.
    Task,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Task => "task",
        }
    }
}

/// Runs a client, and returns how many microseconds a round trip took on average.
pub fn time(place: Place, server: SocketAddrV4) -> Result<f64> {
    let printed = run(
        Command::new(env::current_exe()?).args(["client", place.name(), &server.to_string()]),
        LIMIT,
    )?;
    printed.trim().parse().context("the client printed no time")
}

/// Is the client: makes the round trips, and prints how long one took.
pub fn talk(place: &str, server: &str) -> Result<()> {
    let server: SocketAddr = server.parse()?;
    let took = match place {
        "main" => tinyloop::run(round_trips(server)),
        "task" => tinyloop::run(async move { tinyloop::spawn(round_trips(server)).await }),
        _ => bail!("a client is in main or in a task, not in `{place}`"),
    }?;
    println!("{}", took.as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS));
    Ok(())
}

async fn round_trips(server: SocketAddr) -> Result<Duration> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let message = [b'x'; SMALL];
    let mut reply = [0; PREFIX.len() + SMALL];
    let start = Instant::now();
    for _ in 0..ROUND_TRIPS {
        stream.write_all(&message).await?;
        stream.read_exact(&mut reply).await.context("no reply")?;
        ensure!(
            reply.strip_prefix(PREFIX) == Some(&message[..]),
            "wrong reply"
        );
    }
    Ok(start.elapsed())
}
