//! A tiny single-threaded async event loop and TCP server kit, on [smol].
//!
//! For small tools that serve, probe or wait for several things at once, and want an accept loop, limits, a shutdown
//! and fairness that are right without a large runtime. Everything runs on one thread, so tasks and handlers need not
//! be `Send` and may share data in an `Rc`. The [`tutorial`] begins with a blocking loop in std.
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
//!             EventLoop  (one thread: ready tasks, timers, and smol's reactor for the sockets)
//!                 │ a turn: run what is ready for 100 to 400 µs, look at the sockets, fire timers; sleep only when idle
//! listener ─► Server ─► Connection ─► handler (echo, or yours) ─► reply
//!    accept errors      counts, timeouts,   an async function
//!    limits, drain      fairness
//!                 └────► Event (what happened, as it happens)   Report (what happened, at the end)
//! ```
//!
//! A handler is a plain async function of a [`Connection`], which is an ordinary `AsyncRead + AsyncWrite`. Everything
//! else of smol (channels, locks, files, processes, UDP) works inside the loop as it is. smol keeps one helper thread
//! of its own, which looks at the sockets while no loop does.
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
//! | `asyncio.all_tasks`, `python -m asyncio ps` | [`task_table`], [`monitor::serve`] |
//! | debug mode | [`on_slow_poll`] |
//!
//! # From other threads
//!
//! Tasks stay on the loop's thread, but their wakers may go anywhere: a thread that sends into a channel wakes the
//! loop, also out of its sleep.
//!
//! ```
//! let (sender, receiver) = smol::channel::bounded(1);
//! std::thread::spawn(move || sender.send_blocking("from a thread"));
//! assert_eq!(tinyloop::run(receiver.recv()), Ok("from a thread"));
//! ```
//!
//! # What it does not do
//!
//! - Spread tasks over threads. For more cores, run several processes with a port each behind a balancer, or use tokio or
//!   smol's `Executor`.
//! - TLS of its own: futures-rustls goes on top of a [`Connection`].
//! - Print, read arguments or end the process, but for the second signal after [`signal::shutdown`]. The program of
//!   the same name does, on top of the public API.
//!
//! # Features
//!
//! - `cli` (default): the program. Without it, argh is not compiled.
//! - `testing`: a clock that jumps, and connections in memory that fail as real ones do (the module `testing`).
//!
//! [smol]: https://docs.rs/smol

mod address;
mod connection;
mod echo;
mod event_loop;
mod executor;
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

pub use address::Address;
pub use connection::{Closing, Connection};
// For the program, the tests and the fuzz targets alone: no promise.
#[doc(hidden)]
pub use echo::{CHUNK, Framer};
pub use echo::{Framing, echo, echo_framed};
pub use event_loop::{EventLoop, on_slow_poll, run, spawn, spawn_named, task_table, yield_now};
pub use report::Report;
pub use server::{CloseReason, Event, Incoming, Listener, OnPanic, Server, WhenFull};
pub use smol::Task;
/// Runs blocking work on a thread of smol's pool, beside the event loop.
///
/// The pool starts a thread when all of its threads are busy, or when more than five pieces of work wait for each idle
/// one. **If the system refuses that thread** (a container's limit on processes, `ulimit -u`), the call tries again on
/// the calling thread, without a pause and until there is a thread. So the loop stands still with its CPU at 100 %, and
/// a [`timeout`] around the call does not fire. The same holds for all of smol that uses the pool: files, processes,
/// stdin, and names of hosts. [`Server::bind`] checks for a thread first, and returns an error.
///
/// Below is smol's own documentation.
pub use smol::unblock;
pub use task_group::TaskGroup;
pub use task_table::{ConnectionInfo, SLOW_POLL, SlowPoll, TaskInfo, TaskState, TaskTable};
pub use time::{Interval, Sleep, TimedOut, interval, now, sleep, sleep_until, timeout};

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/tutorial.md")]
pub mod tutorial {}

/// The README's examples, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
