//! The cases that need a new process for each turn: how each is measured.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::cases::{Case, IDLE_CONNECTIONS, Metric, SATURATING};
use crate::load::burst::burst;
use crate::load::prober::probe_beside;
use crate::load::round_trips::RoundTrips;
use crate::load::{SMALL, echo_once};
use crate::meter::{Figures, Meter, percentiles};
use crate::process::{Process, Program};
use crate::session::Bench;
use crate::system_calls::Tracer;

/// How long a server gets to come to rest.
const REST: Duration = Duration::from_millis(300);

/// Starts a server, and measures it.
pub fn measure(bench: &Bench, case: Case, program: &Program) -> Result<Figures> {
    let launched = Instant::now();
    let server = Process::start(program, bench.cpus)?;
    match case {
        Case::Probe { flooders } => probe(bench, &server, flooders),
        Case::Burst => connect_at_once(bench, &server),
        Case::Memory => memory(bench, &server),
        Case::SystemCalls => system_calls(bench, &server),
        Case::Idle => idle(bench, &server),
        Case::Start => {
            echo_once(server.address, &bench.pattern)?;
            let milliseconds = launched.elapsed().as_secs_f64() * 1e3;
            Ok(vec![(Metric::FirstEcho, milliseconds)])
        }
        _ => Err(anyhow!("this case's load lasts over several turns")),
    }
}

fn probe(bench: &Bench, server: &Process, flooders: usize) -> Result<Figures> {
    let mut latencies = probe_beside(
        server.address,
        flooders,
        &bench.pattern,
        bench.turn,
        // The prober sends once in a millisecond, so it needs long for a steady figure.
        bench.turn * 6,
    )?;
    ensure!(!latencies.is_empty(), "no probe was answered");
    Ok(percentiles(&mut latencies))
}

fn connect_at_once(bench: &Bench, server: &Process) -> Result<Figures> {
    let burst = burst(server, &bench.pattern)?;
    Ok(vec![
        (Metric::Waited, burst.waited as f64),
        (Metric::Slowest, burst.slowest.as_secs_f64() * 1e3),
    ])
}

/// The connections are idle, but each has made a small round trip before: what a server keeps
/// for that counts.
fn memory(bench: &Bench, server: &Process) -> Result<Figures> {
    echo_once(server.address, &bench.pattern)?;
    thread::sleep(REST);
    let before = server.resident_bytes()? as f64;
    let _connections = RoundTrips::open(server.address, IDLE_CONNECTIONS, SMALL, &bench.pattern)?;
    thread::sleep(REST);
    let after = server.resident_bytes()? as f64;
    let each = (after - before) / IDLE_CONNECTIONS as f64;
    Ok(vec![(Metric::BytesPerConnection, each)])
}

/// A traced server is so slow that it always has all connections to serve.
fn system_calls(bench: &Bench, server: &Process) -> Result<Figures> {
    let mut load = RoundTrips::open(server.address, SATURATING, SMALL, &bench.pattern)?;
    thread::sleep(REST);
    let tracer = Tracer::attach(server)?;
    // All that is sent under the tracer is answered under it too.
    let answered = load.run_for(bench.turn * 8)?.len();
    let messages = answered + load.pause()?;
    let calls = tracer.detach()?;
    Ok(vec![(
        Metric::CallsPerMessage,
        calls as f64 / messages as f64,
    )])
}

/// Connections have come and gone before, which a server may still have in mind.
fn idle(bench: &Bench, server: &Process) -> Result<Figures> {
    for _ in 0..10 {
        echo_once(server.address, &bench.pattern)?;
    }
    thread::sleep(REST);
    let sleeps = server.sleeps()?;
    let meter = Meter::start(server)?;
    thread::sleep(bench.turn * 10);
    let usage = meter.stop(server)?;
    let woken = (server.sleeps()? - sleeps) as f64;
    Ok(vec![
        (Metric::WakeUps, woken / usage.seconds),
        (
            Metric::CpuWhileIdle,
            usage.cpu_seconds / usage.seconds * 1e6,
        ),
    ])
}
