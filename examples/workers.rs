//! One echo server a core: processes that share a listening socket, which their parent holds.
//!
//! `cargo run --example workers`, and then `nc 127.0.0.1 25000`. Ctrl-C ends all of them.
use std::{env, io, os::fd::AsFd, process, thread, time::Duration};

use command_fds::{CommandFdExt, FdMapping};
use futures_lite::FutureExt;
use tinyloop::{Endpoint, Listener, Server, inherited, signal, unblock};

fn main() -> io::Result<()> {
    // A worker finds the socket here, before there are other descriptors and threads.
    if let Some((_, listener)) = inherited()?.pop() {
        return tinyloop::run(serve(listener));
    }
    let addr = env::args().nth(1).unwrap_or("127.0.0.1:25000".to_owned());
    let listener = Listener::bind_endpoint(&addr.parse::<Endpoint>()?)?.remove(0);
    // Before there are workers: a signal that comes at once has to end them too.
    let shutdown = signal::shutdown()?;
    println!("listening on {}", listener.local_addr()?);
    let mut workers = Vec::new();
    for _ in 0..thread::available_parallelism()?.get() {
        let mut command = process::Command::new(env::current_exe()?);
        command.env("LISTEN_FDS", "1").env_remove("LISTEN_FDNAMES");
        command.env_remove("LISTEN_PID");
        command.stdin(process::Stdio::piped());
        let sockets = vec![FdMapping {
            parent_fd: listener.as_fd().try_clone_to_owned()?,
            child_fd: 3,
        }];
        command.fd_mappings(sockets).map_err(io::Error::other)?;
        workers.push(command.spawn()?);
    }
    tinyloop::run(shutdown);
    // The workers still have the socket until they drain.
    drop(listener);
    // All workers drain at the same time.
    workers.iter_mut().for_each(|one| drop(one.stdin.take()));
    workers.iter_mut().try_for_each(|one| one.wait().map(drop))
}

async fn serve(listener: Listener) -> io::Result<()> {
    // The parent closes the pipe, or a terminal sends SIGINT to all.
    let parent = unblock(|| io::copy(&mut io::stdin(), &mut io::sink()));
    let shutdown = signal::shutdown()?.or(async move { drop(parent.await) });
    let server = Server::from_listener(listener)?.shutdown_on(shutdown);
    let server = server.drain(Duration::from_secs(5));
    let report = server.serve(async |connection| tinyloop::echo(connection, b"Got: ").await);
    report.await.map(drop)
}
