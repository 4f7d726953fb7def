//! What is measured: the cases, and the figures that each gives.

use std::fmt;
use std::str::FromStr;

use crate::load::burst;
use crate::peers::{
    TINYLOOP_FORWARDER, TINYLOOP_HTTP, TINYLOOP_WITH_BUFFERS, TOKIO_FORWARDER, TOKIO_HTTP,
    TOKIO_WITHOUT_BUFFERS,
};
use crate::servers::Server;
use crate::system_calls::Group;

/// One thing that is measured on each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Case {
    /// Messages of some bytes, one outstanding on each connection.
    RoundTrips { bytes: usize, connections: usize },
    /// Connect, one small round trip, close.
    Connects,
    /// Clients that write as fast as they can and read the echo.
    Streams { connections: usize },
    /// Small round trips beside clients that stream.
    Probe { flooders: usize },
    /// Many connects at once to a stopped server.
    Burst,
    /// Small round trips by a client on tinyloop, in the main future and in a task.
    Client,
    /// Memory for each of many connections, where each holds a buffer of its own, or none does.
    Memory { own_buffers: bool },
    /// System calls for each small message, with a server that is slower than its clients.
    SystemCalls,
    /// HTTP/1.1 by hyper: small requests on connections that are kept alive.
    Http { connections: usize },
    /// HTTP/2 by hyper: small requests on ten streams of a connection.
    Http2,
    /// A stream through a forwarder, to an echo server and back.
    ForwardedStream,
    /// Connect, one small round trip, close, through a forwarder.
    ForwardedConnects { clients: usize },
    /// Small messages to servers of one and several processes or threads, which share all CPUs with the load generator.
    SharedRoundTrips { connections: usize },
    /// Connect, one small round trip, close, with so many connections open at once, on the same CPUs.
    SharedConnects { connections: usize },
    /// From the start of the process to the first reply.
    Start,
    /// What a server does that has nothing to do.
    Idle,
}

/// How many connections are open for [`Case::Memory`].
pub const IDLE_CONNECTIONS: usize = 10_000;

/// How many connections are busy in [`Case::SystemCalls`].
pub const SATURATING: usize = 100;

/// The connections of the small round trips, whose figures the chart shows.
pub const SMALL_ROUND_TRIPS: [usize; 5] = [1, 10, 100, 1000, 4000];

/// Small round trips on some connections.
pub const fn small(connections: usize) -> Case {
    Case::RoundTrips {
        bytes: crate::load::SMALL,
        connections,
    }
}

/// Messages as large as a server's chunk.
pub const LARGE_ROUND_TRIPS: Case = Case::RoundTrips {
    bytes: crate::peers::CHUNK,
    connections: 100,
};

impl Case {
    /// All cases, in the table's order.
    pub fn all() -> Vec<Self> {
        let mut cases: Vec<Self> = SMALL_ROUND_TRIPS.into_iter().map(small).collect();
        cases.extend([
            LARGE_ROUND_TRIPS,
            Self::SystemCalls,
            Self::Connects,
            Self::Burst,
            Self::Streams { connections: 1 },
            Self::Streams { connections: 8 },
            Self::Probe { flooders: 1 },
            Self::Probe { flooders: 8 },
            Self::Client,
            Self::Http { connections: 1 },
            Self::Http { connections: 10 },
            Self::Http { connections: 100 },
            Self::Http { connections: 1000 },
            Self::Http2,
            Self::ForwardedStream,
            Self::ForwardedConnects { clients: 1 },
            Self::ForwardedConnects { clients: 8 },
            Self::SharedRoundTrips { connections: 100 },
            Self::SharedRoundTrips { connections: 1000 },
            Self::SharedConnects { connections: 100 },
            Self::SharedConnects { connections: 1000 },
            Self::Memory { own_buffers: true },
            Self::Memory { own_buffers: false },
            Self::Start,
            Self::Idle,
        ]);
        cases
    }

    /// Those of a quick run.
    pub fn quick() -> Vec<Self> {
        vec![
            small(1),
            small(100),
            small(1000),
            LARGE_ROUND_TRIPS,
            Self::Connects,
            Self::Streams { connections: 1 },
            Self::Probe { flooders: 8 },
            Self::Memory { own_buffers: true },
            Self::Memory { own_buffers: false },
            Self::Start,
            Self::Idle,
        ]
    }

    pub fn family(self) -> Family {
        match self {
            Self::RoundTrips { .. } => Family::RoundTrip,
            Self::Connects => Family::Connect,
            Self::Streams { .. } => Family::Streaming,
            Self::Probe { .. } => Family::Prober,
            Self::Burst => Family::Burst,
            Self::Client => Family::Client,
            Self::Memory { .. } => Family::Memory,
            Self::SystemCalls => Family::SystemCalls,
            Self::Http { .. } | Self::Http2 => Family::Http,
            Self::ForwardedStream | Self::ForwardedConnects { .. } => Family::Forwarder,
            Self::SharedRoundTrips { .. } | Self::SharedConnects { .. } => Family::Workers,
            Self::Start => Family::Start,
            Self::Idle => Family::Idle,
        }
    }

    /// Whether the server can do this at all: a sequential one serves a connection at a time, and for memory there is
    /// not each server with buffers and without.
    pub fn suits(self, server: Server) -> bool {
        use Server::{Asyncio, Epoll, Go, Sequential, Smol, Threaded, Tinyloop, Tokio, Uvloop};
        match self {
            Self::Memory { own_buffers: true } => {
                return [Tinyloop, Threaded, Tokio, Smol, Go].contains(&server);
            }
            Self::Memory { own_buffers: false } => {
                return [Tinyloop, Tokio, Epoll, Asyncio, Uvloop].contains(&server);
            }
            Self::Client => return server == Tinyloop,
            Self::Http { .. } | Self::Http2 => return [Tinyloop, Tokio].contains(&server),
            _ if self.is_forwarded() => return [Tinyloop, Tokio].contains(&server),
            _ if self.shares_cpus() => return server == Tinyloop || server.is_for_all_cpus(),
            _ if server.is_for_all_cpus() => return false,
            _ => {}
        }
        let one_at_a_time = match self {
            Self::RoundTrips { connections, .. } | Self::Streams { connections } => {
                connections == 1
            }
            Self::Connects | Self::Burst | Self::Start | Self::Idle => true,
            _ => false,
        };
        one_at_a_time || server != Sequential
    }

    /// The peer that stands for the server in this case. Memory is compared like with like: the tinyloop program lends
    /// all connections one buffer, and the tokio peer does not.
    pub fn peer(self, server: Server) -> Option<&'static str> {
        match (self, server) {
            (Self::Memory { own_buffers: true }, Server::Tinyloop) => Some(TINYLOOP_WITH_BUFFERS),
            (Self::Memory { own_buffers: false }, Server::Tokio) => Some(TOKIO_WITHOUT_BUFFERS),
            (Self::Http { .. } | Self::Http2, Server::Tinyloop) => Some(TINYLOOP_HTTP),
            (Self::Http { .. } | Self::Http2, Server::Tokio) => Some(TOKIO_HTTP),
            (_, Server::Tinyloop) if self.is_forwarded() => Some(TINYLOOP_FORWARDER),
            (_, Server::Tokio) if self.is_forwarded() => Some(TOKIO_FORWARDER),
            _ => None,
        }
    }

    /// Whether the server is a forwarder, which needs an echo server behind it.
    pub fn is_forwarded(self) -> bool {
        matches!(self, Self::ForwardedStream | Self::ForwardedConnects { .. })
    }

    /// Whether the server and the load generator may use all CPUs, both.
    pub fn shares_cpus(self) -> bool {
        self.family() == Family::Workers
    }

    /// The program that makes this case's load, if the load generator does not.
    pub fn tool(self) -> Option<&'static str> {
        match self {
            Self::Http { .. } => Some("wrk"),
            Self::Http2 => Some("h2load"),
            _ => None,
        }
    }

    /// How many turns each server takes in a round.
    pub fn turns(self) -> usize {
        match self {
            Self::RoundTrips { .. } | Self::Connects | Self::Streams { .. } => 6,
            Self::ForwardedStream | Self::ForwardedConnects { .. } => 6,
            Self::SharedRoundTrips { .. } | Self::SharedConnects { .. } => 6,
            Self::Probe { .. } | Self::Client | Self::Http { .. } | Self::Http2 => 3,
            Self::SystemCalls => 2,
            Self::Start => 5,
            Self::Burst | Self::Memory { .. } | Self::Idle => 1,
        }
    }

    /// How many connections are open between turns, if the load lasts over several of them.
    /// For any other case each turn needs a new process.
    pub fn lasting_connections(self) -> Option<usize> {
        match self {
            Self::RoundTrips { connections, .. }
            | Self::Streams { connections }
            | Self::SharedRoundTrips { connections } => Some(connections),
            Self::Connects | Self::SharedConnects { .. } => Some(0),
            _ => None,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RoundTrips { bytes, connections } => {
                write!(
                    formatter,
                    "{bytes} B, {}",
                    plural(*connections, "connection")
                )
            }
            Self::Connects => write!(formatter, "connect-echo-close"),
            Self::Streams { connections } => {
                write!(
                    formatter,
                    "streaming, {}",
                    plural(*connections, "connection")
                )
            }
            Self::Probe { flooders } => {
                write!(formatter, "64 B beside {}", plural(*flooders, "flooder"))
            }
            Self::Burst => write!(formatter, "burst of {} connects", burst::CONNECTS),
            Self::Client => write!(formatter, "64 B client on tinyloop"),
            Self::Memory { own_buffers } => {
                let buffers = if *own_buffers { "with" } else { "without" };
                write!(
                    formatter,
                    "{IDLE_CONNECTIONS} idle connections {buffers} buffers"
                )
            }
            Self::SystemCalls => write!(formatter, "64 B, {SATURATING} connections, saturated"),
            Self::Http { connections } => {
                write!(
                    formatter,
                    "HTTP/1.1, {}",
                    plural(*connections, "connection")
                )
            }
            Self::Http2 => write!(formatter, "HTTP/2, 10 streams"),
            Self::ForwardedStream => write!(formatter, "forwarding, 1 stream"),
            Self::ForwardedConnects { clients } => {
                write!(
                    formatter,
                    "forwarding, connect-echo-close, {}",
                    plural(*clients, "client")
                )
            }
            Self::SharedRoundTrips { connections } => write!(
                formatter,
                "all CPUs, 64 B, {}",
                plural(*connections, "connection")
            ),
            Self::SharedConnects { connections } => write!(
                formatter,
                "all CPUs, connect-echo-close, {}",
                plural(*connections, "connection")
            ),
            Self::Start => write!(formatter, "start to first echo"),
            Self::Idle => write!(formatter, "no connections"),
        }
    }
}

fn plural(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

/// What `--case` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    RoundTrip,
    Connect,
    Streaming,
    Prober,
    Burst,
    Client,
    Memory,
    SystemCalls,
    Http,
    Forwarder,
    Workers,
    Start,
    Idle,
    /// The size of the binary and of the tree of crates.
    Size,
}

impl Family {
    const NAMED: [(&str, Self); 14] = [
        ("roundtrip", Self::RoundTrip),
        ("connect", Self::Connect),
        ("streaming", Self::Streaming),
        ("prober", Self::Prober),
        ("burst", Self::Burst),
        ("client", Self::Client),
        ("memory", Self::Memory),
        ("syscalls", Self::SystemCalls),
        ("http", Self::Http),
        ("forwarder", Self::Forwarder),
        ("workers", Self::Workers),
        ("start", Self::Start),
        ("idle", Self::Idle),
        ("size", Self::Size),
    ];
}

impl FromStr for Family {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::NAMED
            .into_iter()
            .find_map(|(known, family)| (known == name).then_some(family))
            .ok_or_else(|| {
                let names = Self::NAMED.map(|(known, _)| known).join(", ");
                format!("there is no case `{name}`; there are {names}")
            })
    }
}

/// A figure that a case gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    MessagesPerSecond,
    Median,
    Percentile99,
    CpuPerMessage,
    ConnectionsPerSecond,
    CpuPerConnection,
    BytesPerSecond,
    CpuPerMegabyte,
    /// The server's CPU time over the time that passed: where this is well below one, the load
    /// generator was the slower side.
    Busy,
    Waited,
    Slowest,
    RoundTripInMain,
    RoundTripInTask,
    MainToTask,
    BytesPerConnection,
    CallsPerMessage,
    Calls(Group),
    FirstEcho,
    WakeUps,
    CpuWhileIdle,
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Self::MessagesPerSecond => "messages per second",
            Self::Median => "p50",
            Self::Percentile99 => "p99",
            Self::CpuPerMessage => "CPU per message",
            Self::ConnectionsPerSecond => "connections per second",
            Self::CpuPerConnection => "CPU per connection",
            Self::BytesPerSecond => "MB per second",
            Self::CpuPerMegabyte => "CPU per MB",
            Self::Busy => "server busy",
            Self::Waited => "waited 1 s",
            Self::Slowest => "slowest",
            Self::BytesPerConnection => "memory per connection",
            Self::RoundTripInMain => "round trip in main",
            Self::RoundTripInTask => "round trip in a task",
            Self::MainToTask => "main over task",
            Self::CallsPerMessage => "system calls per message",
            Self::Calls(group) => group.figure_name(),
            Self::FirstEcho => "first echo",
            Self::WakeUps => "wake-ups per second",
            Self::CpuWhileIdle => "CPU per second",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::MessagesPerSecond | Self::ConnectionsPerSecond | Self::WakeUps => "1/s",
            Self::Median
            | Self::Percentile99
            | Self::CpuPerMessage
            | Self::CpuPerConnection
            | Self::CpuPerMegabyte
            | Self::RoundTripInMain
            | Self::RoundTripInTask => "µs",
            Self::CpuWhileIdle => "µs/s",
            Self::BytesPerSecond => "MB/s",
            Self::Busy => "%",
            Self::Slowest | Self::FirstEcho => "ms",
            Self::BytesPerConnection => "B",
            Self::Waited | Self::MainToTask | Self::CallsPerMessage | Self::Calls(_) => "",
        }
    }

    pub fn more_is_better(self) -> bool {
        matches!(
            self,
            Self::MessagesPerSecond | Self::ConnectionsPerSecond | Self::BytesPerSecond
        )
    }
}
