//! One process of a worker, as its parent knows it: how it is started, asked and followed to its end.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use smol::Async;
use smol::process::Child;
use tinyloop::{Listener, Report, spawn_named};

use crate::cli::log::Log;
use crate::cli::sums;
use crate::cli::systemd;
use crate::cli::worker::{ASK, DRAIN, VARIABLE};

/// What all workers are started with.
pub(super) struct Launch {
    program: PathBuf,
    args: Vec<OsString>,
    listeners: Vec<(String, Listener)>,
    /// How many workers there are.
    count: usize,
}

/// A process that runs.
pub(super) struct Process {
    /// The place of its worker among the workers.
    pub(super) worker: usize,
    pub(super) pid: u32,
    pub(super) started: Instant,
    pub(super) report: Report,
    line: UnixStream,
    /// It has accepted connections.
    is_ready: bool,
    /// When it was asked first since it has said something.
    asked: Option<Instant>,
}

/// What a process tells.
pub(super) enum Told {
    /// It accepts connections.
    Ready,
    Report(Report),
    /// It was asked, and its event loop still runs.
    Answer,
    Ended(io::Result<ExitStatus>),
}

impl Launch {
    /// Each process gets the arguments of this one, and the seed, if there is one.
    pub(super) fn new(
        seed: Option<u64>,
        listeners: Vec<(String, Listener)>,
        count: usize,
    ) -> io::Result<Launch> {
        let seed = seed.map(|seed| format!("--seed={seed}").into());
        Ok(Launch {
            program: env::current_exe()?,
            args: seed.into_iter().chain(env::args_os().skip(1)).collect(),
            listeners,
            count,
        })
    }

    /// Closes the sockets. No process can be started any more, and those that run have the sockets until they drain.
    pub(super) fn close(&mut self) {
        self.listeners.clear();
    }

    /// Starts a process of the worker at a place among the workers, and tells what it tells.
    pub(super) fn start(
        &self,
        worker: usize,
        tell: impl Fn(Told) + Clone + 'static,
    ) -> io::Result<Process> {
        let (line, workers_end) = UnixStream::pair()?;
        let mut sockets = Vec::new();
        for ((_, listener), child_fd) in self.listeners.iter().zip(3..) {
            let parent_fd = listener.as_fd().try_clone_to_owned()?;
            sockets.push(FdMapping {
                parent_fd,
                child_fd,
            });
        }
        let names: Vec<&str> = self.listeners.iter().map(|(name, _)| &name[..]).collect();
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env("LISTEN_FDS", sockets.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env_remove("LISTEN_PID")
            .env_remove(systemd::SOCKET)
            .env(VARIABLE, format!("{}/{}", worker + 1, self.count))
            .fd_mappings(sockets)
            .map_err(io::Error::other)?;
        let mut command = smol::process::Command::from(command);
        let child = command
            .stdin(Stdio::from(OwnedFd::from(workers_end)))
            .spawn()?;
        let process = Process {
            worker,
            pid: child.id(),
            started: Instant::now(),
            report: Report::default(),
            line: line.try_clone()?,
            is_ready: false,
            asked: None,
        };
        let follow = follow(worker + 1, Async::new(line)?, child, tell);
        spawn_named(format!("worker {}", worker + 1), follow).detach();
        Ok(process)
    }
}

impl Process {
    /// It has said something.
    pub(super) fn answered(&mut self) {
        self.is_ready = true;
        self.asked = None;
    }

    /// Whether it has accepted connections.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Asks whether its event loop still runs, if the process accepts connections.
    pub(super) fn ask(&mut self) {
        if self.is_ready {
            self.asked.get_or_insert_with(Instant::now);
            self.write(ASK);
        }
    }

    /// Whether it has not answered for `limit` since it was asked first. If so, it counts as not asked.
    pub(super) fn is_silent(&mut self, limit: Duration) -> bool {
        self.asked
            .take_if(|asked| asked.elapsed() >= limit)
            .is_some()
    }

    /// Ends it at once, also if it is stopped.
    pub(super) fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid as i32) {
            kill_process(pid, Signal::KILL).ok();
        }
    }

    /// Kills the process, and says why.
    pub(super) fn kill_because(&self, log: &Log, reason: &str) {
        let number = self.worker + 1;
        let text = format!("worker {number} ({}) {reason} and is killed", self.pid);
        log.worker(number, &text);
        self.kill();
    }

    pub(super) fn drain(&self) {
        self.write(DRAIN);
    }

    fn write(&self, message: &[u8]) {
        // One that has ended needs not be told.
        (&self.line).write_all(message).ok();
    }
}

/// Tells what a process writes, and how it ends.
async fn follow(
    number: usize,
    line: Async<UnixStream>,
    mut child: Child,
    tell: impl Fn(Told) + Clone + 'static,
) {
    let mut lines = BufReader::new(line).lines();
    let mut monitor = None;
    while let Some(Ok(line)) = lines.next().await {
        let message: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(addr) = message.get("ready") {
            monitor = addr.as_str().map(|addr| format!("worker {number} {addr}"));
            tell(Told::Ready);
            break;
        }
    }
    let reports = {
        let tell = tell.clone();
        async move {
            while let Some(Ok(line)) = lines.next().await {
                let message: Value = serde_json::from_str(&line).unwrap_or_default();
                tell(match message.get("report") {
                    Some(report) => Told::Report(sums::report(report)),
                    None => Told::Answer,
                });
            }
        }
    };
    match monitor {
        // The task's name shows where the worker's own monitor is.
        Some(name) => spawn_named(name, reports).await,
        None => reports.await,
    }
    let status = child.status().await;
    tell(Told::Ended(status));
}
