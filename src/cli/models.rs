//! The two simple servers for comparison, with std alone: one connection at a time, and a thread for each connection.
//!
//! They are as short as those of the tutorial. Limits, timeouts and graceful shutdown exist only in the async model.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tinyloop::{Framer, Framing};

use super::output::Output;
use super::start_thread;

/// Time until the next try if no connection can be accepted, for example for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The state that the connections share.
#[derive(Clone)]
pub(crate) struct Echo {
    pub(crate) prefix: Arc<[u8]>,
    pub(crate) framing: Framing,
    /// The output for lines about connections.
    pub(crate) output: Option<Output>,
}

/// Serves each connection to its end before the next one. With several listeners, there is still only one connection at
/// a time.
///
/// Begins when another thread waits on the result, too.
pub(crate) fn serve_sequentially(
    listeners: Vec<TcpListener>,
    echo: Echo,
) -> io::Result<Arc<Barrier>> {
    let turn = Arc::new(Mutex::new(()));
    accept_in_threads(listeners, move |stream, peer_addr| {
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        echo.serve(&stream, peer_addr);
    })
}

/// Serves each connection in its own thread.
///
/// Begins when another thread waits on the result, too. Fails if there is no thread for a connection besides those that
/// accept.
pub(crate) fn serve_in_threads(
    listeners: Vec<TcpListener>,
    echo: Echo,
) -> io::Result<Arc<Barrier>> {
    let begin = accept_in_threads(listeners, move |stream, peer_addr| {
        let echo = echo.clone();
        // If no thread can be started, the connection is closed.
        start_thread("connection", move || echo.serve(&stream, peer_addr)).ok();
    })?;
    start_thread("connection", || {})?.join().ok();
    Ok(begin)
}

/// Starts a thread for each listener. It accepts connections and calls `serve` for each of them.
///
/// The threads begin together, when another thread waits on the result, too.
fn accept_in_threads(
    listeners: Vec<TcpListener>,
    serve: impl Fn(TcpStream, SocketAddr) + Clone + Send + 'static,
) -> io::Result<Arc<Barrier>> {
    let begin = Arc::new(Barrier::new(listeners.len() + 1));
    for listener in listeners {
        let (serve, begin) = (serve.clone(), begin.clone());
        let accept = move || {
            begin.wait();
            loop {
                match listener.accept() {
                    Ok((stream, peer_addr)) => serve(stream, peer_addr),
                    Err(_) => thread::sleep(ACCEPT_PAUSE),
                }
            }
        };
        start_thread("accept", accept)?;
    }
    Ok(begin)
}

impl Echo {
    /// Answers a connection until its end. Its errors end only this connection.
    fn serve(&self, stream: &TcpStream, peer_addr: SocketAddr) {
        self.tell(format_args!("Connection from {peer_addr}"));
        self.answer(stream).ok();
        self.tell(format_args!("Connection closed {peer_addr}"));
    }

    fn answer(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut framer = Framer::new(&self.prefix, self.framing);
        let mut chunk = vec![0; framer.chunk_max()];
        let mut reply = Vec::new();
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => return stream.shutdown(Shutdown::Write),
                Ok(received) => {
                    reply.clear();
                    framer.frame(&chunk[..received], &mut reply);
                    stream.write_all(&reply)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn tell(&self, line: impl std::fmt::Display) {
        if let Some(output) = &self.output {
            output.line(line);
        }
    }
}
