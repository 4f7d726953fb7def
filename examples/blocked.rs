//! A task that blocks the event loop, and a monitor that shows this task.
//!
//! ```console
//! $ cargo run --release --example blocked        # or with addresses: -- 127.0.0.1:7000 127.0.0.1:7001
//! listening on 127.0.0.1:25000
//! monitor on 127.0.0.1:25001
//! ```
//!
//! The server answers a number with that Fibonacci number. It computes the number slowly, on the loop's thread. While
//! it computes `fib 47`, it answers no other client. To see which task it is, run `nc 127.0.0.1 25001` and type `ps`.
//!
//! The solution is [`tinyloop::unblock`], which computes in a thread of smol's pool: see the comment below.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tinyloop::{Connection, SLOW_POLL, Server, monitor, on_slow_poll, signal};

/// The longest line, in bytes.
const LINE_MAX: u64 = 16;

fn main() -> ExitCode {
    match tinyloop::run(serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blocked: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> io::Result<()> {
    let mut args = env::args().skip(1);
    let mut addr = |default: &str| args.next().unwrap_or(default.to_owned());
    let (addr, monitor_addr) = (addr("127.0.0.1:25000"), addr("127.0.0.1:25001"));
    let monitor_addr: SocketAddr = monitor_addr.parse().map_err(io::Error::other)?;
    let server = Server::bind(addr).await?.shutdown_on(signal::shutdown()?);
    println!("listening on {}", server.local_addrs()[0]);
    let monitor = monitor::serve(monitor_addr)?;
    println!("monitor on {}", monitor.local_addr());
    on_slow_poll(SLOW_POLL, |slow_poll| eprintln!("{slow_poll}"));
    server.max_connections(100).serve(answer).await?;
    Ok(())
}

/// Answers each line until the peer closes.
async fn answer(connection: Connection) -> io::Result<()> {
    let (mut input, mut output) = (BufReader::new(&connection), &connection);
    let mut line = String::new();
    while (&mut input).take(LINE_MAX).read_line(&mut line).await? > 0 {
        let reply = match line.trim().parse() {
            // Better: tinyloop::unblock(move || fibonacci(n)).await
            Ok(n @ 0..=90) => format!("fib({n}) = {}\n", fibonacci(n)),
            _ => "a number from 0 to 90, please\n".to_owned(),
        };
        output.write_all(reply.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

fn fibonacci(n: u64) -> u64 {
    match n {
        0 | 1 => n,
        _ => fibonacci(n - 1) + fibonacci(n - 2),
    }
}
