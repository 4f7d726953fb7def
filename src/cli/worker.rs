//! A worker: one of several processes behind the same addresses, and its line to the parent that has started it.
//!
//! It takes its listening sockets from `LISTEN_FDS`. Its stdin is a Unix socket to the parent. The worker writes a JSON
//! object a line there: that it is ready, and its report. The parent writes `drain`, and `ask` for an answer.

use std::env;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process;
use std::time::Duration;

use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, StreamExt};
use serde_json::{Map, Value, json};
use smol::{Async, channel};
use tinyloop::signal::{self, Signal};
use tinyloop::{LiveReport, Report};

use super::args::Options;
use super::log::counters;

/// The variable that makes a process a worker: its number, a slash, and how many there are.
pub(crate) const VARIABLE: &str = "TINYLOOP_WORKER";

/// What the parent writes: that the worker has to drain, or has to answer.
pub(crate) const DRAIN: &[u8] = b"drain\n";
pub(crate) const ASK: &[u8] = b"ask\n";

/// How often the parent is told the report, if it has changed.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// A worker, as it knows itself.
pub(crate) struct Worker {
    /// From 1 on.
    pub(crate) number: usize,
    of: usize,
    parent: UnixStream,
}

impl Worker {
    /// What the environment says, if it makes this process a worker.
    pub(crate) fn from_env() -> io::Result<Option<Worker>> {
        let Some(text) = env::var_os(VARIABLE) else {
            return Ok(None);
        };
        let numbers = text.to_str().and_then(|text| text.split_once('/'));
        let numbers =
            numbers.and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        let (Some((number, of)), Ok(stdin)) = (numbers, io::stdin().as_fd().try_clone_to_owned())
        else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{VARIABLE} is for the workers that --workers starts"),
            ));
        };
        Ok(Some(Worker {
            number,
            of,
            parent: UnixStream::from(stdin),
        }))
    }

    /// Runs one of several workers under SCHED_BATCH. A worker that wakes up then does not interrupt a client on the
    /// same core, and finds more messages at once. If the program was started with another policy than the usual one,
    /// the program keeps it. To call before there is another thread: new threads inherit the policy.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    pub(crate) fn interrupt_nobody(&self) {
        const SCHED_OTHER: &str = "0";
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The policy is the 41st field. The second one, the program's name in brackets, may contain spaces.
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields);
        let policy = fields.and_then(|fields| fields.split_whitespace().nth(38));
        if self.of > 1 && policy == Some(SCHED_OTHER) {
            // If the system refuses this, the worker still works.
            scheduler::set_self_policy(scheduler::Policy::Batch, 0).ok();
        }
    }

    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    pub(crate) fn interrupt_nobody(&self) {}

    /// Makes the options those of one worker of several: with its share of the connections, a seed of its own, and a
    /// monitor on a port that the system chooses.
    pub(crate) fn take_share(&self, options: &mut Options) {
        let rest = |most: usize| usize::from(self.number <= most % self.of);
        options.max_connections = options
            .max_connections
            .map(|most| most / self.of + rest(most));
        options.seed = options
            .seed
            .map(|seed| seed.wrapping_add(self.number as u64 - 1));
        options.monitor = options.monitor.map(|addr| SocketAddr::new(addr.ip(), 0));
    }

    /// Tells the parent that this worker accepts connections, and from now on what happens in it.
    pub(crate) fn ready(
        &self,
        monitor: Option<SocketAddr>,
        live_report: LiveReport,
    ) -> io::Result<()> {
        // A terminal that closes sends it to all. To the parent it means something else.
        drop(signal::signals([Signal::Hup])?);
        if self
            .tell("ready", json!(monitor.map(|addr| addr.to_string())))
            .is_err()
        {
            // The parent is gone, and has told why.
            process::exit(1);
        }
        let worker = self.try_clone()?;
        let mut ticks = tinyloop::interval(REPORT_PERIOD);
        let report = async move {
            let mut told = Report::default();
            while ticks.next().await.is_some() {
                let report = live_report.report();
                if report != told {
                    worker.report(&report);
                    told = report;
                }
            }
        };
        tinyloop::spawn_named("reports", report).detach();
        Ok(())
    }

    /// Tells the parent what has happened so far.
    pub(crate) fn report(&self, report: &Report) {
        let counters = counters(report).into_iter();
        let report: Map<_, _> = counters
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
        // A parent that is gone needs no report.
        self.tell("report", report.into()).ok();
    }

    fn try_clone(&self) -> io::Result<Worker> {
        Ok(Worker {
            parent: self.parent.try_clone()?,
            ..*self
        })
    }

    fn tell(&self, name: &str, value: Value) -> io::Result<()> {
        (&self.parent).write_all(format!("{}\n", json!({ name: value })).as_bytes())
    }

    /// Resolves when the parent asks for the drain, or is gone. If the parent goes after it has asked, the process ends
    /// at once: that is a second signal.
    pub(crate) fn end(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        let parent = Async::new(self.parent.try_clone()?)?;
        let worker = self.try_clone()?;
        let (drain, drained) = channel::bounded::<()>(1);
        let listen = async move {
            let mut lines = BufReader::new(parent).lines();
            let mut drains = false;
            while let Some(Ok(line)) = lines.next().await {
                if line.as_bytes() == ASK.trim_ascii_end() {
                    // A parent that is gone needs no answer.
                    worker.tell("answer", json!("ask")).ok();
                } else {
                    // Asked twice by a restart and a shutdown, it still drains.
                    drain.close();
                    drains = true;
                }
            }
            if drains {
                process::exit(1);
            }
            drain.close();
        };
        tinyloop::spawn_named("parent", listen).detach();
        Ok(async move {
            drained.recv().await.ok();
        })
    }
}
