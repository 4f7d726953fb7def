//! The cases that need a new process for each turn: how each is measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::cases::{Case, IDLE_CONNECTIONS, Metric, SATURATING};
use crate::load::burst::burst;
use crate::load::client::{self, Place};
use crate::load::connects::Connects;
use crate::load::http;
use crate::load::priority::{brake, outrank_all_others};
use crate::load::prober::probe_beside;
use crate::load::round_trips::RoundTrips;
use crate::load::streams::Streams;
use crate::load::{SMALL, echo_once};
use crate::meter::{Figures, Meter, percentiles};
use crate::process::{Process, Program};
use crate::servers::program_of_this_binary;
use crate::session::{Bench, connects, streams};
use crate::system_calls::{Counter, Counts, Group};

/// How long a server gets to come to rest.
const REST: Duration = Duration::from_millis(300);

/// Starts a server, and measures it.
pub fn measure(bench: &Bench, case: Case, program: &Program) -> Result<Figures> {
    let launched = Instant::now();
    let mut program = program.clone();
    let upstream = match case.is_forwarded() {
        true => Some(Process::start_beside(&program_of_this_binary("epoll")?)?),
        false => None,
    };
    program
        .arguments
        .extend(upstream.iter().map(|upstream| upstream.address.to_string()));
    let server = Process::start(&program, bench.cpus)?;
    match case {
        Case::Http { connections } => http::over_1(&server, connections),
        Case::Http2 => http::over_2(&server),
        Case::ForwardedStream => {
            let mut load = Streams::open(server.address, 1, &bench.pattern)?;
            streams(&mut load, &server, bench.turn * 3)
        }
        Case::ForwardedConnects { clients } => {
            let (pattern, sources) = (&bench.pattern, &bench.sources);
            let mut load = Connects::new(server.address, pattern, sources, clients);
            connects(&mut load, &server, bench.turn * 3)
        }
        Case::Client => client(&server),
        Case::Probe { flooders } => probe(bench, &server, flooders),
        Case::Burst => connect_at_once(bench, &server),
        Case::Memory { .. } => memory(bench, &server),
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

fn client(server: &Process) -> Result<Figures> {
    let in_main = client::time(Place::Main, server.address)?;
    let in_task = client::time(Place::Task, server.address)?;
    Ok(vec![
        (Metric::RoundTripInMain, in_main),
        (Metric::RoundTripInTask, in_task),
        (Metric::MainToTask, in_main / in_task),
    ])
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

/// How many calls a message costs, of each group and of all.
fn system_calls(bench: &Bench, server: &Process) -> Result<Figures> {
    let (messages, counts) = saturate(bench, server)?;
    let each = |calls: u64| calls as f64 / messages as f64;
    // The load generator has counted the messages, and each has cost a receive and a send at least.
    for (groups, calls) in [
        ([Group::Receive, Group::Read], "receives"),
        ([Group::Send, Group::Write], "sends"),
    ] {
        let counted: u64 = groups.map(|group| counts.of(group)).iter().sum();
        ensure!(each(counted) >= 1.0, "perf missed some of the {calls}");
    }
    let mut figures = vec![(Metric::CallsPerMessage, each(counts.all))];
    figures.extend(Group::ALL.map(|group| (Metric::Calls(group), each(counts.of(group)))));
    Ok(figures)
}

/// Keeps round trips going for a while, and returns how many there were, and the server's calls.
///
/// The server is saturated only if the next messages are there before it has answered the last. A load generator that
/// is no faster than the server, or has to wait for its CPU, leaves it to look at connections without one: each look
/// costs a receive in vain and an `epoll_ctl`, and tinyloop then seems to make up to 2.9 calls a message. So the load
/// generator outranks other processes, and the server has half of its CPU.
fn saturate(bench: &Bench, server: &Process) -> Result<(usize, Counts)> {
    let (pattern, duration) = (&bench.pattern, bench.turn * 16);
    let cpus = bench.cpus;
    let is_running = AtomicBool::new(true);
    let (messages, counter) = thread::scope(|scope| {
        let saturating = scope.spawn(|| {
            let mut load = RoundTrips::open(server.address, SATURATING, SMALL, pattern)?;
            thread::sleep(REST);
            let counter = Counter::attach(server)?;
            outrank_all_others();
            // All that is sent while perf counts is answered while it counts, too.
            let answered = load.run_for(duration)?.len();
            let messages = answered + load.pause()?;
            Ok((messages, counter))
        });
        let braking = scope.spawn(|| {
            cpus.use_server()?;
            brake(&is_running);
            Ok(())
        });
        let outcome = saturating.join();
        is_running.store(false, Ordering::Relaxed);
        let braked = braking.join();
        let panicked = || anyhow!("the load generator panicked");
        braked.unwrap_or_else(|_| Err(panicked()))?;
        outcome.unwrap_or_else(|_| Err(panicked()))
    })?;
    thread::sleep(REST);
    Ok((messages, counter.detach()?))
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
