//! One server under the load of one case: how each case is measured.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::cases::{Case, IDLE_CONNECTIONS, Metric, SATURATING};
use crate::cpus::Cpus;
use crate::load::burst::burst;
use crate::load::connects::Connects;
use crate::load::prober::probe_beside;
use crate::load::round_trips::RoundTrips;
use crate::load::streams::Streams;
use crate::load::{Pattern, SMALL, SourceAddresses, echo_once};
use crate::meter::{Figures, Meter, percentiles};
use crate::process::{Process, Program};
use crate::system_calls::Tracer;

/// How long a server gets to come to rest.
const REST: Duration = Duration::from_millis(300);

/// What all sessions share.
pub struct Bench {
    pub cpus: Cpus,
    pub pattern: Pattern,
    pub sources: SourceAddresses,
    /// How long a turn is measured; some cases take a multiple of it.
    pub turn: Duration,
}

/// A running server with its load.
pub struct Session<'a> {
    bench: &'a Bench,
    load: Load<'a>,
    server: Process,
}

/// What a turn does. The first three pause between turns, so that other servers can take theirs;
/// the others need a new process for each turn.
enum Load<'a> {
    RoundTrips(RoundTrips<'a>, Duration),
    Connects(Connects<'a>),
    Streams(Streams<'a>),
    Probe { flooders: usize },
    Burst,
    Memory,
    SystemCalls,
    Start { launched: Instant },
    Idle,
}

impl<'a> Session<'a> {
    /// Starts a server, and opens the connections of a load that lasts.
    pub fn open(bench: &'a Bench, case: Case, program: &Program) -> Result<Self> {
        let launched = Instant::now();
        let server = Process::start(program, bench.cpus)?;
        let (address, pattern) = (server.address, &bench.pattern);
        let load = match case {
            Case::RoundTrips { bytes, connections } => {
                // Longer with many, so that each connection has several round trips in a turn.
                let turn = bench.turn + Duration::from_micros(25) * connections as u32;
                let load = RoundTrips::open(address, connections, bytes, pattern)?;
                Load::RoundTrips(load, turn)
            }
            Case::Connects => Load::Connects(Connects::new(address, pattern, &bench.sources)),
            Case::Streams { connections } => {
                Load::Streams(Streams::open(address, connections, pattern)?)
            }
            Case::Probe { flooders } => Load::Probe { flooders },
            Case::Burst => Load::Burst,
            Case::Memory => Load::Memory,
            Case::SystemCalls => Load::SystemCalls,
            Case::Start => Load::Start { launched },
            Case::Idle => Load::Idle,
        };
        Ok(Self {
            bench,
            load,
            server,
        })
    }

    /// Measures, and leaves the server with nothing to do.
    pub fn take_turn(&mut self) -> Result<Figures> {
        let turn = self.bench.turn;
        match &mut self.load {
            Load::RoundTrips(load, turn) => round_trips(load, &self.server, *turn),
            Load::Connects(load) => connects(load, &self.server, turn),
            Load::Streams(load) => streams(load, &self.server, turn),
            Load::Probe { flooders } => {
                let flooders = *flooders;
                self.probe(flooders)
            }
            Load::Burst => self.burst(),
            Load::Memory => self.memory(),
            Load::SystemCalls => self.system_calls(),
            Load::Start { launched } => {
                echo_once(self.server.address, &self.bench.pattern)?;
                let milliseconds = launched.elapsed().as_secs_f64() * 1e3;
                Ok(vec![(Metric::FirstEcho, milliseconds)])
            }
            Load::Idle => self.idle(),
        }
    }

    fn probe(&self, flooders: usize) -> Result<Figures> {
        let mut latencies = probe_beside(
            self.server.address,
            flooders,
            &self.bench.pattern,
            self.bench.turn,
            // The prober sends once in a millisecond, so it needs long for a steady figure.
            self.bench.turn * 6,
        )?;
        ensure!(!latencies.is_empty(), "no probe was answered");
        Ok(percentiles(&mut latencies))
    }

    fn burst(&self) -> Result<Figures> {
        let burst = burst(&self.server, &self.bench.pattern)?;
        Ok(vec![
            (Metric::Waited, burst.waited as f64),
            (Metric::Slowest, burst.slowest.as_secs_f64() * 1e3),
        ])
    }

    /// The connections are idle, but each has made a small round trip before: what a server keeps
    /// for that counts.
    fn memory(&self) -> Result<Figures> {
        let (address, pattern) = (self.server.address, &self.bench.pattern);
        echo_once(address, pattern)?;
        thread::sleep(REST);
        let before = self.server.resident_bytes()? as f64;
        let _connections = RoundTrips::open(address, IDLE_CONNECTIONS, SMALL, pattern)?;
        thread::sleep(REST);
        let after = self.server.resident_bytes()? as f64;
        let each = (after - before) / IDLE_CONNECTIONS as f64;
        Ok(vec![(Metric::BytesPerConnection, each)])
    }

    /// A traced server is so slow that it always has all connections to serve.
    fn system_calls(&self) -> Result<Figures> {
        let (address, pattern) = (self.server.address, &self.bench.pattern);
        let mut load = RoundTrips::open(address, SATURATING, SMALL, pattern)?;
        thread::sleep(REST);
        let tracer = Tracer::attach(&self.server)?;
        // All that is sent under the tracer is answered under it too.
        let answered = load.run_for(self.bench.turn * 8)?.len();
        let messages = answered + load.pause()?;
        let calls = tracer.detach()?;
        Ok(vec![(
            Metric::CallsPerMessage,
            calls as f64 / messages as f64,
        )])
    }

    /// Connections have come and gone before, which a server may still have in mind.
    fn idle(&self) -> Result<Figures> {
        for _ in 0..10 {
            echo_once(self.server.address, &self.bench.pattern)?;
        }
        thread::sleep(REST);
        let sleeps = self.server.sleeps()?;
        let meter = Meter::start(&self.server)?;
        thread::sleep(self.bench.turn * 10);
        let usage = meter.stop(&self.server)?;
        let woken = (self.server.sleeps()? - sleeps) as f64;
        Ok(vec![
            (Metric::WakeUps, woken / usage.seconds),
            (
                Metric::CpuWhileIdle,
                usage.cpu_seconds / usage.seconds * 1e6,
            ),
        ])
    }
}

/// How long a server is under load in a turn before it is measured.
fn warm_up(turn: Duration) -> Duration {
    turn / 4
}

fn round_trips(load: &mut RoundTrips<'_>, server: &Process, turn: Duration) -> Result<Figures> {
    load.run_for(warm_up(turn))?;
    let meter = Meter::start(server)?;
    let mut latencies = load.run_for(turn)?;
    while latencies.is_empty() {
        // The machine had better things to do than this server.
        latencies = load.run_for(turn)?;
    }
    let usage = meter.stop(server)?;
    load.pause()?;
    let messages = latencies.len() as f64;
    let mut figures = usage.figures(messages, Metric::MessagesPerSecond, Metric::CpuPerMessage);
    figures.extend(percentiles(&mut latencies));
    Ok(figures)
}

fn connects(load: &mut Connects<'_>, server: &Process, turn: Duration) -> Result<Figures> {
    load.run_for(warm_up(turn))?;
    let meter = Meter::start(server)?;
    let connections = load.run_for(turn)? as f64;
    let usage = meter.stop(server)?;
    load.pause()?;
    Ok(usage.figures(
        connections,
        Metric::ConnectionsPerSecond,
        Metric::CpuPerConnection,
    ))
}

fn streams(load: &mut Streams<'_>, server: &Process, turn: Duration) -> Result<Figures> {
    load.run_for(warm_up(turn))?;
    let meter = Meter::start(server)?;
    let megabytes = load.run_for(turn)? as f64 / 1e6;
    let usage = meter.stop(server)?;
    load.pause()?;
    Ok(usage.figures(megabytes, Metric::BytesPerSecond, Metric::CpuPerMegabyte))
}
