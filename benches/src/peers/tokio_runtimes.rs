//! tokio's runtimes, as someone who knows them would write the server: a task for each
//! connection, and the prefix in the buffer already, so that one write answers one read.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, ErrorKind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use super::{CHUNK, PREFIX, announce};

/// Each connection holds a buffer of its own, as in nearly every program on tokio.
pub fn serve() -> anyhow::Result<()> {
    serve_each(Builder::new_current_thread(), echo)
}

/// The same on the runtime that moves tasks between threads.
pub fn serve_on_two_threads() -> anyhow::Result<()> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2);
    serve_each(builder, echo)
}

/// All connections share one buffer, so that one that waits holds none.
pub fn serve_from_one_buffer() -> anyhow::Result<()> {
    serve_each(Builder::new_current_thread(), echo_from_shared)
}

fn serve_each<F>(mut builder: Builder, handler: impl Fn(TcpStream) -> F) -> anyhow::Result<()>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let runtime = builder.enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            // A connection that fails ends its own task only.
            tokio::spawn(handler(stream));
        }
    })
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = new_buffer();
    loop {
        let count = stream.read(&mut buffer[PREFIX.len()..]).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..PREFIX.len() + count]).await?;
    }
}

fn new_buffer() -> Vec<u8> {
    let mut buffer = vec![0; PREFIX.len() + CHUNK];
    buffer[..PREFIX.len()].copy_from_slice(PREFIX);
    buffer
}

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(new_buffer());
}

async fn echo_from_shared(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        stream.readable().await?;
        match SHARED.with_borrow_mut(|buffer| answer(&stream, buffer))? {
            Some(unsent) => stream.write_all(&unsent).await?,
            None => return Ok(()),
        }
    }
}

/// Answers what is there, and returns what the socket did not take of the reply; `None` at the peer's end.
fn answer(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
    let count = match stream.try_read(&mut buffer[PREFIX.len()..]) {
        Ok(0) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Some(Vec::new())),
        outcome => outcome?,
    };
    let reply = &buffer[..PREFIX.len() + count];
    let sent = match stream.try_write(reply) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        outcome => outcome?,
    };
    Ok(Some(reply[sent..].to_vec()))
}
