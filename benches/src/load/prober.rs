//! A prober beside flooding connections: how long a small round trip takes while others stream.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::Pattern;
use super::priority::outrank_all_others;
use super::round_trips::Latencies;
use super::socket::{connect_and_echo, receive_small, send_small};
use super::streams::Streams;

/// How often the prober sends.
const PACE: Duration = Duration::from_millis(1);

/// Probes a server for a while, on a connection and from a thread of its own, beside `flooders`
/// streaming connections, which get `warm_up` alone with it first.
pub fn probe_beside(
    server: SocketAddrV4,
    flooders: usize,
    pattern: &Pattern,
    warm_up: Duration,
    duration: Duration,
) -> Result<Latencies> {
    let mut streams = Streams::open(server, flooders, pattern)?;
    let socket = connect_and_echo(server, pattern)?;
    let flooding = AtomicBool::new(true);
    streams.run_for(warm_up)?;
    thread::scope(|scope| {
        let prober = scope.spawn(|| {
            // Its reply must not wait for the flooding thread, which is on the same CPU and always has work.
            outrank_all_others();
            let mut latencies = Vec::new();
            while flooding.load(Ordering::Relaxed) {
                let start = Instant::now();
                send_small(&socket, pattern, 0)?;
                receive_small(&socket, pattern, 0)?;
                latencies.push(start.elapsed().as_nanos() as u32);
                thread::sleep(PACE.saturating_sub(start.elapsed()));
            }
            Ok(latencies)
        });
        let flooded = streams.run_for(duration);
        flooding.store(false, Ordering::Relaxed);
        // A probe that is still outstanding is answered sooner without the flood.
        drop(streams);
        let latencies = prober
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the prober panicked")))?;
        flooded?;
        Ok(latencies)
    })
}
