//! tinyloop is a small event loop and a library for TCP and Unix-socket servers, on top of [smol].
//!
//! Use it for small tools that serve clients, probe hosts or wait for several things at once. You get a correct accept
//! loop, connection limits, timeouts, backpressure, graceful shutdown and fairness, without a large runtime. All your
//! code runs on one thread, so tasks and handlers do not have to be `Send`, and can share data in an `Rc`. The
//! [`tutorial`] begins with a blocking loop in std.
//!
//! # A server
//!
//! ```no_run
//! use std::time::Duration;
//!
//! fn main() -> std::io::Result<()> {
//!     tinyloop::run(async {
//!         let server = tinyloop::Server::bind("127.0.0.1:25000")
//!             .await?
//!             .max_connections(1024)
//!             .idle_timeout(Duration::from_secs(60))
//!             .stall_timeout(Duration::from_secs(60))
//!             .shutdown_on(tinyloop::signal::shutdown()?)
//!             .drain(Duration::from_secs(5));
//!         println!("listening on {}", server.local_addrs()[0]);
//!         let report = server.serve(async |connection| tinyloop::echo(connection, b"Got: ").await).await?;
//!         eprintln!("{report}");
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # A tool with tasks, timers and a limit
//!
//! ```
//! use std::time::Duration;
//! use futures_lite::StreamExt;
//!
//! # async fn probe(host: &str) -> bool { !host.is_empty() }
//! let answered = tinyloop::run(async {
//!     let mut probes = tinyloop::TaskGroup::new().limit(16);
//!     for host in ["one", "two", "three"] {
//!         let probe = async move { tinyloop::timeout(Duration::from_secs(2), probe(host)).await };
//!         probes.spawn(probe).await; // waits at the limit
//!     }
//!     probes.filter(|result| *result == Ok(true)).count().await // in the order of completion
//! });
//! assert_eq!(answered, 3);
//! ```
//!
//! # How it fits together
//!
//! ```text
//!             EventLoop  (one thread: executor, timers, and smol's reactor for the sockets)
//!                 │ one turn: run ready tasks for at most 100 to 400 µs, poll the sockets, fire timers; sleep only when idle
//! listener ─► Server ─► Connection ─► handler (echo, or yours) ─► reply
//!    accept errors      counts, timeouts,   an async function
//!    limits, drain      fairness
//!                 └────► Event (what happened, as it happens)   Report (what happened, at the end)
//! ```
//!
//! A handler is an async function that takes a [`Connection`]. `Connection` implements `AsyncRead` and `AsyncWrite` of
//! futures-io. All other parts of smol (channels, locks, files, processes, UDP) work inside the loop without changes,
//! and so do hyper and async-tungstenite: see [`works_with`]. smol starts one helper thread, which polls the sockets
//! when no event loop does.
//!
//! | asyncio | tinyloop |
//! |---|---|
//! | `asyncio.run(main())` | [`run`] |
//! | `loop.run_until_complete(f)` | [`EventLoop::run`] |
//! | `loop.create_task(f)` | [`spawn`], [`spawn_named`], [`EventLoop::spawn`] |
//! | `asyncio.TaskGroup` | [`TaskGroup`] |
//! | `asyncio.timeout`, `sleep` | [`timeout`], [`sleep`], [`interval`]; [`yield_now`] for `sleep(0)` |
//! | `asyncio.to_thread` | [`unblock`] |
//! | `loop.call_soon_threadsafe` | a [`Waker`](std::task::Waker) or a channel of smol's: see [below](#from-other-threads) |
//! | `loop.add_signal_handler` | [`signal::shutdown`], [`signal::signals`] |
//! | `asyncio.start_server` | [`Server::bind`], [`Server::serve`] |
//! | `asyncio.open_connection` | [`Connection::connect`]; [`copy_both`] for a proxy |
//! | `asyncio.all_tasks`, `python -m asyncio ps` | [`task_table`], [`monitor::serve`] |
//! | debug mode | [`on_slow_poll`] |
//!
//! # From other threads
//!
//! Tasks stay on the loop's thread, but other threads can wake them. For example, a thread that sends into a channel
//! wakes a sleeping loop.
//!
//! ```
//! let (sender, receiver) = smol::channel::bounded(1);
//! std::thread::spawn(move || sender.send_blocking("from a thread"));
//! assert_eq!(tinyloop::run(receiver.recv()), Ok("from a thread"));
//! ```
//!
//! # What it does not do
//!
//! - It does not spread tasks over threads. For more cores, run several processes that share a listening socket, as
//!   `examples/workers.rs` does, or use tokio or smol's `Executor`.
//! - It has no TLS of its own: wrap a [`Connection`] with futures-rustls.
//! - The library never prints and never reads arguments. It ends the process in one case only: at the second signal
//!   after [`signal::shutdown`].
//!
//! # Features
//!
//! - `cli` (default): builds the command-line program, with the crates that only the program needs (argh, serde_json and others).
//! - `faults` (enabled by `cli`): streams that misbehave on purpose, for tests of clients (the module `faults`).
//! - `inherit` (enabled by `cli`): the sockets that systemd or a parent process has passed on (the function `inherited`). It
//!   adds the dependency listenfd.
//! - `proxy-protocol` (enabled by `cli`): the client's address behind a balancer ([`Server::proxy_protocol`]). It adds the
//!   dependency proxy-header.
//! - `testing`: a mock clock, and in-memory connections that simulate I/O errors (the module `testing`).
//!
//! [smol]: https://docs.rs/smol

mod address;
mod connection;
mod echo;
mod endpoint;
mod event_loop;
mod executor;
#[cfg(feature = "faults")]
pub mod faults;
mod health;
#[cfg(feature = "inherit")]
mod inherited;
mod io_error;
pub mod monitor;
mod platform;
mod report;
mod server;
pub mod signal;
mod task_group;
mod task_table;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
mod unblock;

pub use address::Address;
pub use connection::chunk::Chunk;
pub use connection::copy::{CopyError, copy_both};
pub use connection::{Closing, Connection};
// Only for the program, the tests and the fuzz targets: not a part of the public API.
#[doc(hidden)]
pub use echo::{CHUNK, Framer};
pub use echo::{Framing, echo, echo_framed};
pub use endpoint::{Endpoint, ToEndpoint};
pub use event_loop::{EventLoop, on_slow_poll, run, spawn, spawn_named, task_table, yield_now};
#[cfg(feature = "inherit")]
pub use inherited::inherited;
pub use report::{LiveReport, Report};
pub use server::listener::bind::ListenOptions;
pub use server::{CloseReason, Event, Incoming, Listener, OnPanic, Server, WhenFull};
pub use smol::Task;
pub use task_group::TaskGroup;
pub use task_table::{ConnectionInfo, SLOW_POLL, SlowPoll, TaskInfo, TaskState, TaskTable};
pub use time::interval::{Interval, interval};
pub use time::{Sleep, TimedOut, now, sleep, sleep_until, timeout};
pub use unblock::unblock;

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/tutorial.md")]
pub mod tutorial {}

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/works-with.md")]
pub mod works_with {}

/// The README's examples, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
