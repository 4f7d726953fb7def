//! One server under a load that pauses between turns, so that other servers can take theirs.

use std::time::Duration;

use anyhow::Result;

use crate::cases::{Case, Metric};
use crate::cpus::Cpus;
use crate::load::connects::Connects;
use crate::load::round_trips::RoundTrips;
use crate::load::streams::Streams;
use crate::load::{Pattern, SMALL, SourceAddresses};
use crate::meter::{Figures, Meter, percentiles};
use crate::process::{Process, Program};

/// How many connections come and go at once, so that the server has always something to do.
const OPEN: usize = 16;

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

enum Load<'a> {
    RoundTrips(RoundTrips<'a>, Duration),
    Connects(Connects<'a>),
    Streams(Streams<'a>),
}

impl<'a> Session<'a> {
    /// Starts a server, and opens the connections of a load that lasts. `None` for a case whose load does not.
    pub fn open(bench: &'a Bench, case: Case, program: &Program) -> Result<Option<Self>> {
        if case.lasting_connections().is_none() {
            return Ok(None);
        }
        let server = if case.shares_cpus() {
            bench.cpus.use_all()?;
            Process::start_beside(program)?
        } else {
            Process::start(program, bench.cpus)?
        };
        let (address, pattern) = (server.address, &bench.pattern);
        let load = match case {
            Case::RoundTrips { bytes, connections } => {
                // Longer with many, so that each connection has several round trips in a turn.
                let turn = bench.turn + Duration::from_micros(25) * connections as u32;
                let load = RoundTrips::open(address, connections, bytes, pattern)?;
                Load::RoundTrips(load, turn)
            }
            Case::SharedRoundTrips { connections } => {
                let turn = bench.turn + Duration::from_micros(25) * connections as u32;
                let load = RoundTrips::open(address, connections, SMALL, pattern)?.sleeping();
                Load::RoundTrips(load, turn)
            }
            Case::SharedConnects { connections } => {
                let load = Connects::new(address, pattern, &bench.sources, connections);
                Load::Connects(load)
            }
            Case::Connects => Load::Connects(Connects::new(address, pattern, &bench.sources, OPEN)),
            Case::Streams { connections } => {
                Load::Streams(Streams::open(address, connections, pattern)?)
            }
            _ => return Ok(None),
        };
        Ok(Some(Self {
            bench,
            load,
            server,
        }))
    }

    /// Measures, and leaves the server with nothing to do.
    pub fn take_turn(&mut self) -> Result<Figures> {
        let turn = self.bench.turn;
        match &mut self.load {
            Load::RoundTrips(load, turn) => round_trips(load, &self.server, *turn),
            Load::Connects(load) => connects(load, &self.server, turn),
            Load::Streams(load) => streams(load, &self.server, turn),
        }
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

pub fn connects(load: &mut Connects<'_>, server: &Process, turn: Duration) -> Result<Figures> {
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

pub fn streams(load: &mut Streams<'_>, server: &Process, turn: Duration) -> Result<Figures> {
    load.run_for(warm_up(turn))?;
    let meter = Meter::start(server)?;
    let megabytes = load.run_for(turn)? as f64 / 1e6;
    let usage = meter.stop(server)?;
    load.pause()?;
    Ok(usage.figures(megabytes, Metric::BytesPerSecond, Metric::CpuPerMegabyte))
}
