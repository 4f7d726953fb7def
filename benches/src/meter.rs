//! Watches what a server uses over some time.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cases::Metric;
use crate::load::round_trips::Latencies;
use crate::process::Process;

pub type Figures = Vec<(Metric, f64)>;

pub struct Meter {
    began: Instant,
    cpu_before: Duration,
}

/// What a server has used.
pub struct Usage {
    pub seconds: f64,
    pub cpu_seconds: f64,
}

impl Meter {
    pub fn start(server: &Process) -> Result<Self> {
        Ok(Self {
            began: Instant::now(),
            cpu_before: server.cpu_time()?,
        })
    }

    pub fn stop(self, server: &Process) -> Result<Usage> {
        let cpu = server.cpu_time()? - self.cpu_before;
        Ok(Usage {
            seconds: self.began.elapsed().as_secs_f64(),
            cpu_seconds: cpu.as_secs_f64(),
        })
    }
}

impl Usage {
    /// What a load gives that got so much done: how much in a second, and the CPU time for each.
    pub fn figures(&self, done: f64, rate: Metric, cpu: Metric) -> Figures {
        vec![
            (rate, done / self.seconds),
            (cpu, self.cpu_seconds / done * 1e6),
            (Metric::Busy, self.cpu_seconds / self.seconds * 100.0),
        ]
    }
}

/// The median and the 99th percentile, in microseconds.
pub fn percentiles(latencies: &mut Latencies) -> Figures {
    let mut percentile = |percent: usize| {
        let rank = (latencies.len() * percent).div_ceil(100).max(1) - 1;
        let (_, &mut nanoseconds, _) = latencies.select_nth_unstable(rank);
        f64::from(nanoseconds) / 1e3
    };
    vec![
        (Metric::Median, percentile(50)),
        (Metric::Percentile99, percentile(99)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_latencies_that_so_many_do_not_exceed() {
        let mut hundred: Latencies = (1..=100).rev().map(|number| number * 1000).collect();
        assert_eq!(
            percentiles(&mut hundred),
            [(Metric::Median, 50.0), (Metric::Percentile99, 99.0)]
        );
        assert_eq!(
            percentiles(&mut vec![2000]),
            [(Metric::Median, 2.0), (Metric::Percentile99, 2.0)]
        );
    }
}
