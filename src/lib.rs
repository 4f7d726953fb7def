//! A tiny single-threaded event loop and TCP server kit, on smol.

mod connection;
mod echo;
mod event_loop;
mod io_error;
pub mod monitor;
mod server;
pub mod signal;
mod task_group;
mod task_table;
#[cfg(feature = "testing")]
pub mod testing;
mod time;

pub use connection::{Address, Closing, Connection};
pub use echo::{CHUNK, Framer, Framing, echo, echo_framed};
pub use event_loop::{EventLoop, run, spawn, spawn_named};
pub use server::{CloseReason, Event, Incoming, Listener, OnPanic, Report, Server, WhenFull};
pub use smol::{Task, unblock};
pub use task_group::TaskGroup;
pub use task_table::{
    ConnectionInfo, SLOW_POLL, SlowPoll, TaskInfo, TaskState, TaskTable, on_slow_poll, task_table,
};
pub use time::{Interval, Sleep, TimedOut, interval, now, sleep, sleep_until, timeout};

/// The README's examples, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
