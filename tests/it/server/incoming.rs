//! Sockets that somebody else made, and the connections as a stream.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use futures_lite::StreamExt;
use smol::channel::{self, Sender};
use tinyloop::{Listener, Report, Server};

use crate::server::{has_ended, is_silent_for};
use crate::support::{TempDir, ask, connect, echo, within_deadline};

/// Runs `serve` on a server with `listeners` in a thread, until the sender is dropped.
pub(crate) fn run<T: Send + 'static>(
    listeners: impl IntoIterator<Item = Listener>,
    serve: impl AsyncFnOnce(Server) -> io::Result<T> + Send + 'static,
) -> (Sender<()>, JoinHandle<io::Result<T>>) {
    let listeners: Vec<Listener> = listeners.into_iter().collect();
    let (shutdown, shut_down) = channel::bounded::<()>(1);
    let shut_down = async move { shut_down.recv().await.unwrap_or_default() };
    let thread = thread::spawn(move || {
        tinyloop::run(async {
            serve(Server::from_listeners(listeners)?.shutdown_on(shut_down)).await
        })
    });
    (shutdown, thread)
}

/// Shuts down and waits for the end.
pub(crate) fn stop<T: Send + 'static>(
    (shutdown, thread): (Sender<()>, JoinHandle<io::Result<T>>),
) -> T {
    drop(shutdown);
    within_deadline(|| thread.join().unwrap().unwrap())
}

async fn serve_echo(server: Server) -> io::Result<Report> {
    server.serve(echo).await
}

#[test]
fn a_tcp_listener_of_ones_own_is_served_with_what_it_has_queued() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let early = connect(listener.local_addr().unwrap());
    let running = run([listener.into()], serve_echo);
    assert_eq!(ask(&early, "hello"), "Got: hello");
    drop(early);
    assert_eq!(stop(running).accepted, 1);
}

#[test]
fn a_unix_listener_of_ones_own_is_served_and_keeps_its_file() {
    let dir = TempDir::new("own-listener");
    let path = dir.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let running = run([listener.into()], serve_echo);
    let connection = UnixStream::connect(&path).unwrap();
    assert_eq!(ask(&connection, "hello"), "Got: hello");
    drop(connection);
    assert_eq!(stop(running).accepted, 1);
    assert!(fs::exists(&path).unwrap(), "whose file it is, removes it");
}

#[test]
fn a_server_serves_several_listeners_at_once() {
    let dir = TempDir::new("several-listeners");
    let path = dir.path("socket");
    let tcp = ["127.0.0.1:0", "127.0.0.1:0"].map(|addr| TcpListener::bind(addr).unwrap());
    let addrs = tcp
        .each_ref()
        .map(|listener| listener.local_addr().unwrap());
    let unix = Listener::bind_unix(&path).unwrap();
    let listeners = tcp.map(Listener::from).into_iter().chain([unix]);
    let running = run(listeners, serve_echo);
    let (first, second) = (connect(addrs[0]), connect(addrs[1]));
    let third = UnixStream::connect(&path).unwrap();
    assert_eq!(ask(&first, "one"), "Got: one");
    assert_eq!(ask(&second, "two"), "Got: two");
    assert_eq!(ask(&third, "three"), "Got: three");
    drop((first, second, third));
    assert_eq!(stop(running).accepted, 3);
}

#[test]
fn the_connections_come_as_a_stream_that_keeps_the_limit_and_ends_with_the_shutdown() {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let addr = listener.local_addr().unwrap().tcp().unwrap();
    let running = run([listener], async |server: Server| {
        let mut incoming = server.max_connections(1).incoming()?;
        let mut served = 0;
        while let Some(connection) = incoming.next().await {
            tinyloop::spawn(echo(connection?)).detach();
            served += 1;
        }
        Ok(served)
    });
    let held = connect(addr);
    assert_eq!(ask(&held, "held"), "Got: held");
    let waiting = connect(addr);
    (&waiting).write_all(b"!").unwrap();
    assert!(is_silent_for(&waiting, Duration::from_millis(100)));
    drop(held);
    (&waiting)
        .read_exact(&mut [0; 6])
        .expect("its place is free");
    assert_eq!(stop(running), 2);
    assert!(
        has_ended(&waiting),
        "the loop ends with its main future, and cancels the rest"
    );
}
