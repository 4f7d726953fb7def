//! The load generator: one thread and a raw epoll loop, so that it costs as little as the
//! fastest server. It checks every byte of every reply.

pub mod burst;
pub mod client;
pub mod connects;
pub mod http;
pub mod priority;
pub mod prober;
pub mod round_trips;
pub mod streams;

mod echo_check;
mod pattern;
mod poller;
mod socket;
mod source_addresses;

pub use pattern::Pattern;
pub use socket::echo_once;
pub use source_addresses::SourceAddresses;

/// The size of a small message.
pub const SMALL: usize = 64;

/// How long the load generator waits for a server that has fallen silent.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
