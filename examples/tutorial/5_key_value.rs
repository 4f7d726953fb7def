//! Step 5 of docs/tutorial.md: a key-value store with a protocol of text lines.

use std::cell::RefCell;
use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, io};

use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tinyloop::{Connection, Server, signal};

/// The longest line in bytes, and the most keys. Together they limit the memory of the store.
const LINE_MAX: u64 = 1024;
const KEYS_MAX: usize = 10_000;

type Store = HashMap<String, String>;

fn main() -> ExitCode {
    match tinyloop::run(serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> io::Result<()> {
    let addr = env::args().nth(1);
    let store = RefCell::new(Store::new());
    Server::bind(addr.as_deref().unwrap_or("127.0.0.1:25000"))
        .await?
        .max_connections(1000)
        .stall_timeout(Duration::from_secs(60))
        .shutdown_on(signal::shutdown()?)
        .observe(|event| println!("{event}"))
        .serve(async move |connection| talk(connection, &store).await)
        .await?;
    Ok(())
}

/// Answers each line until the peer closes. A line that is too long or not valid UTF-8 ends the connection.
async fn talk(connection: Connection, store: &RefCell<Store>) -> io::Result<()> {
    let (mut input, mut output) = (BufReader::new(&connection), &connection);
    let mut line = String::new();
    while (&mut input).take(LINE_MAX).read_line(&mut line).await? > 0 {
        let request = line.strip_suffix('\n').ok_or(io::ErrorKind::InvalidData)?;
        let reply = answer(request.trim_end(), &mut store.borrow_mut());
        output.write_all(format!("{reply}\n").as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

fn answer(request: &str, store: &mut Store) -> String {
    let reply = match request.splitn(3, ' ').collect::<Vec<_>>()[..] {
        ["get", key] => store.get(key).map_or("no such key", String::as_str),
        ["del", key] => store.remove(key).map_or("no such key", |_| "ok"),
        ["set", key, value] if store.contains_key(key) || store.len() < KEYS_MAX => {
            store.insert(key.into(), value.into());
            "ok"
        }
        ["set", _, _] => "the store is full",
        _ => "try: set KEY VALUE, get KEY, del KEY",
    };
    reply.to_owned()
}
