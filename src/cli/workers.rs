//! Several processes behind the same addresses (`--workers`): their parent.
//!
//! The parent holds the listening sockets and accepts nothing. Each worker is this program once more, which takes the
//! sockets from `LISTEN_FDS`. So a worker that ends loses no connection that waits in a queue.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, StreamExt};
use serde_json::Value;
use smol::Async;
use smol::channel::{self, Sender};
use smol::process::Child;
use tinyloop::signal::{self, Signal};
use tinyloop::{Listener, LiveReport, Report, sleep, spawn_named};

use super::PATIENCE;
use super::args::Options;
use super::faulty;
use super::listen;
use super::log::Log;
use super::sums::{self, sum, sum_of_one};
use super::systemd;
use super::worker::{DRAIN, VARIABLE};

/// How long to wait before a worker that has died young is started again: at first, and at most.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// A worker that has lived so long is started again at once.
const GROWN_UP: Duration = Duration::from_secs(10);

/// Runs `count` workers until `shutdown` resolves and they have drained. Returns the sum of their reports.
///
/// Fails if a worker cannot start, or ends badly in the drain.
pub(crate) async fn supervise(
    count: usize,
    options: &Options,
    listeners: &[(String, Listener)],
    shutdown: impl Future<Output = ()> + 'static,
    log: &Log,
) -> io::Result<Report> {
    let (tell, told) = channel::unbounded();
    let mut hangups = signal::signals([Signal::Hup])?;
    let (hangup, end) = (tell.clone(), tell.clone());
    spawn_named("SIGHUP", async move {
        while hangups.next().await.is_some() {
            hangup.try_send(Step::Restart).ok();
        }
    })
    .detach();
    spawn_named("shutdown", async move {
        shutdown.await;
        end.try_send(Step::ShutDown).ok();
    })
    .detach();

    let addrs = listeners.iter().map(|(_, listener)| listener.local_addr());
    let addrs = addrs.collect::<io::Result<Vec<_>>>()?;
    let monitor = options.monitor.map(listen::monitor).transpose()?;
    let mut args: Vec<OsString> = env::args_os().skip(1).collect();
    // The first worker draws faults from this seed, the second from the next.
    let seed = options.seed.unwrap_or_else(faulty::draw_seed);
    let faults = faulty::plan(options.fault.clone(), Some(seed));
    if faults.is_some() && options.seed.is_none() {
        args.insert(0, format!("--seed={seed}").into());
    }
    let mut supervisor = Supervisor {
        program: env::current_exe()?,
        args,
        listeners,
        log,
        tell,
        processes: BTreeMap::new(),
        last_id: 0,
        workers: (0..count).map(|_| WorkerState::default()).collect(),
        to_replace: VecDeque::new(),
        replacing: None,
        is_up: false,
        draining: false,
        mark_draining: Vec::new(),
        failure: None,
    };
    if monitor.is_some() {
        let table = tinyloop::task_table();
        let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        for (worker, number) in supervisor.workers.iter().zip(1..) {
            let mark = table.add_worker(&addrs.join(" "), number, &worker.live);
            supervisor.mark_draining.push(Box::new(mark));
        }
    }
    for worker in 0..count {
        supervisor.start(worker)?;
    }
    while let Ok(step) = told.recv().await {
        supervisor.take(step);
        if supervisor.draining && supervisor.processes.is_empty() {
            break;
        }
        if !supervisor.is_up
            && supervisor
                .workers
                .iter()
                .all(|worker| worker.current.is_some())
        {
            supervisor.is_up = true;
            log.listening(&addrs, PATIENCE);
            if let Some(faults) = &faults {
                log.notice("faults", "misbehaving on purpose:", faults);
            }
            if let Some(monitor) = &monitor {
                listen::tell_monitor(monitor, log);
            }
            log.output.flush(PATIENCE);
            systemd::ready(supervisor.status());
        }
    }
    let reports = supervisor.workers.iter().map(|worker| worker.live.report());
    let report = reports.fold(Report::default(), sum);
    supervisor.failure.map_or(Ok(report), Err)
}

/// What the supervisor has to see to.
enum Step {
    ShutDown,
    /// Replaces the workers, one after another.
    Restart,
    /// Starts a worker again that has ended.
    Start(usize),
    /// A process accepts connections.
    Ready(u64),
    Report(u64, Report),
    Ended(u64, io::Result<ExitStatus>),
}

struct Supervisor<'a> {
    program: PathBuf,
    args: Vec<OsString>,
    listeners: &'a [(String, Listener)],
    log: &'a Log,
    tell: Sender<Step>,
    /// All that run, by their ids.
    processes: BTreeMap<u64, Process>,
    last_id: u64,
    workers: Vec<WorkerState>,
    /// The workers that a restart has still to replace, and the process that is to replace the first of them.
    to_replace: VecDeque<usize>,
    replacing: Option<u64>,
    /// All workers have been ready once.
    is_up: bool,
    draining: bool,
    /// What has the monitor's `/health` say that the workers drain.
    mark_draining: Vec<Box<dyn Fn()>>,
    failure: Option<io::Error>,
}

/// One of the processes that are the same worker one after another.
struct Process {
    worker: usize,
    pid: u32,
    started: Instant,
    line: UnixStream,
    report: Report,
}

#[derive(Default)]
struct WorkerState {
    /// The process that accepts connections and is to go on.
    current: Option<u64>,
    /// How many processes in a row have died young.
    died_young: u32,
    /// How the last one ended, until it is started again.
    ended: Option<String>,
    /// The sum of those that have ended, and of all.
    past: Report,
    live: LiveReport,
}

impl Supervisor<'_> {
    fn take(&mut self, step: Step) {
        match step {
            Step::ShutDown => self.drain(),
            Step::Restart if self.is_up && !self.draining => {
                // A worker whose new process is starting has its turn once more.
                let starting = self.to_replace.pop_front();
                self.to_replace = starting.into_iter().chain(0..self.workers.len()).collect();
                if starting.is_none() {
                    self.replace_next();
                }
            }
            Step::Start(worker) if !self.draining && self.workers[worker].current.is_none() => {
                if let Err(error) = self.start(worker) {
                    self.workers[worker].ended = Some(format!("cannot be started: {error}"));
                    self.start_later(worker, Duration::ZERO);
                }
            }
            Step::Restart | Step::Start(_) => {}
            Step::Ready(id) => self.ready(id),
            Step::Report(id, report) => {
                if let Some(process) = self.processes.get_mut(&id) {
                    process.report = report;
                    let worker = process.worker;
                    self.sum_up(worker);
                }
            }
            Step::Ended(id, status) => self.ended(id, status),
        }
    }

    /// Starts a process. Returns its id.
    fn start(&mut self, worker: usize) -> io::Result<u64> {
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
            .env(VARIABLE, format!("{}/{}", worker + 1, self.workers.len()))
            .fd_mappings(sockets)
            .map_err(io::Error::other)?;
        let mut command = smol::process::Command::from(command);
        let child = command
            .stdin(Stdio::from(OwnedFd::from(workers_end)))
            .spawn()?;
        self.last_id += 1;
        let id = self.last_id;
        let process = Process {
            worker,
            pid: child.id(),
            started: Instant::now(),
            line: line.try_clone()?,
            report: Report::default(),
        };
        if let Some(ended) = self.workers[worker].ended.take() {
            let again = format!(
                "worker {} {ended}; started again as {}",
                worker + 1,
                process.pid
            );
            self.log.worker(worker + 1, &again);
        }
        self.processes.insert(id, process);
        let follow = follow(id, worker + 1, Async::new(line)?, child, self.tell.clone());
        spawn_named(format!("worker {}", worker + 1), follow).detach();
        Ok(id)
    }

    /// Starts a process after a pause, if the last one has lived for a short time only.
    fn start_later(&mut self, worker: usize, lived: Duration) {
        let died_young = &mut self.workers[worker].died_young;
        let pause = if lived >= GROWN_UP {
            *died_young = 0;
            Duration::ZERO
        } else {
            *died_young += 1;
            BACK_OFF
                .saturating_mul(1 << (*died_young - 1).min(16))
                .min(BACK_OFF_MAX)
        };
        let tell = self.tell.clone();
        spawn_named("restart", async move {
            sleep(pause).await;
            tell.try_send(Step::Start(worker)).ok();
        })
        .detach();
    }

    /// A process accepts connections: the one before it may end.
    fn ready(&mut self, id: u64) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let worker = process.worker;
        let old = self.workers[worker].current.replace(id);
        if let Some(old) = old.and_then(|old| self.processes.get(&old)) {
            old.drain();
        }
        if self.replacing == Some(id) {
            self.to_replace.pop_front();
            self.replace_next();
        }
    }

    /// Starts the new process of the next worker that is to be replaced.
    fn replace_next(&mut self) {
        self.replacing = None;
        if let Some(&worker) = self.to_replace.front()
            && !self.draining
        {
            match self.start(worker) {
                Ok(id) => self.replacing = Some(id),
                Err(error) => self.give_up_restart(worker, &error),
            }
        }
    }

    fn give_up_restart(&mut self, worker: usize, reason: &dyn Display) {
        self.to_replace.clear();
        self.replacing = None;
        let number = worker + 1;
        let text =
            format!("worker {number} cannot be replaced, so the restart is given up: {reason}");
        self.log.worker(number, &text);
    }

    fn ended(&mut self, id: u64, status: io::Result<ExitStatus>) {
        let Some(process) = self.processes.remove(&id) else {
            return;
        };
        let (worker, lived) = (process.worker, process.started.elapsed());
        let (status, is_good) = match status {
            Ok(status) => (status.to_string(), status.success()),
            Err(error) => (error.to_string(), false),
        };
        let mut last = process.report;
        // Those that were open when it was killed.
        last.aborted += last.open();
        let state = &mut self.workers[worker];
        state.past = sum_of_one(state.past.clone(), last);
        // An old one that was asked to drain is missed by nobody.
        let is_missed = state.current.is_none_or(|current| current == id);
        state.current = state.current.filter(|current| *current != id);
        self.sum_up(worker);
        let number = worker + 1;
        let ended = format!("({}) ended: {status}", process.pid);
        if self.draining || !self.is_up {
            if !is_good {
                let error = io::Error::other(format!("worker {number} {ended}"));
                self.failure.get_or_insert(error);
            }
            self.drain();
            return;
        }
        if self.replacing == Some(id) {
            self.give_up_restart(worker, &ended);
        }
        if is_missed {
            self.workers[worker].ended = Some(ended);
            self.start_later(worker, lived);
        }
    }

    /// Asks all processes to drain.
    fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            systemd::stopping();
            self.mark_draining.iter().for_each(|mark| mark());
            self.processes.values().for_each(Process::drain);
        }
    }

    /// Brings a worker's report up to date.
    fn sum_up(&self, worker: usize) {
        let state = &self.workers[worker];
        let processes = self
            .processes
            .values()
            .filter(|process| process.worker == worker);
        let reports = processes.map(|process| process.report.clone());
        state
            .live
            .replace(reports.fold(state.past.clone(), sum_of_one));
    }

    /// What systemd is told of the workers.
    fn status(&self) -> impl Fn() -> String + use<> {
        let workers: Vec<LiveReport> = self
            .workers
            .iter()
            .map(|worker| worker.live.clone())
            .collect();
        move || {
            let report = workers
                .iter()
                .map(LiveReport::report)
                .fold(Report::default(), sum);
            format!("{} workers, {}", workers.len(), systemd::status(&report))
        }
    }
}

impl Process {
    fn drain(&self) {
        // One that has ended needs not be asked.
        (&self.line).write_all(DRAIN).ok();
    }
}

/// Tells what a process writes, and how it ends.
async fn follow(
    id: u64,
    number: usize,
    line: Async<UnixStream>,
    mut child: Child,
    tell: Sender<Step>,
) {
    let mut lines = BufReader::new(line).lines();
    let mut monitor = None;
    while let Some(Ok(line)) = lines.next().await {
        let message: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(addr) = message.get("ready") {
            monitor = addr.as_str().map(|addr| format!("worker {number} {addr}"));
            tell.try_send(Step::Ready(id)).ok();
            break;
        }
    }
    let reports = {
        let tell = tell.clone();
        async move {
            while let Some(Ok(line)) = lines.next().await {
                let message: Value = serde_json::from_str(&line).unwrap_or_default();
                tell.try_send(Step::Report(id, sums::report(&message["report"])))
                    .ok();
            }
        }
    };
    match monitor {
        // The task's name shows where the worker's own monitor is.
        Some(name) => spawn_named(name, reports).await,
        None => reports.await,
    }
    let status = child.status().await;
    tell.try_send(Step::Ended(id, status)).ok();
}
