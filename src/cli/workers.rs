//! Several processes behind the same addresses (`--workers`): their parent.
//!
//! The parent holds the listening sockets and accepts nothing. Each worker is this program once more, which takes the
//! sockets from `LISTEN_FDS`. So a worker that ends loses no connection that waits in a queue.

mod process;

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use futures_lite::StreamExt;
use smol::channel::{self, Sender};
use tinyloop::signal::{self, Signal};
use tinyloop::{Listener, LiveReport, Report, sleep, spawn_named};

use super::PATIENCE;
use super::args::Options;
use super::faulty;
use super::listen;
use super::log::Log;
use super::sums::{sum, sum_of_one};
use super::systemd;
use process::{Launch, Process, Told};

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
        launch: Launch::new(args, listeners, count)?,
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
            supervisor.watch();
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
    /// Asks all processes whether their loops come round.
    Ask,
    /// The process of this id tells something.
    Told(u64, Told),
}

struct Supervisor<'a> {
    launch: Launch<'a>,
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
            Step::Ask => self.ask(),
            Step::Told(id, Told::Ended(status)) => self.ended(id, status),
            Step::Told(id, told) => self.told(id, told),
        }
    }

    fn told(&mut self, id: u64, told: Told) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        process.answered();
        match told {
            Told::Ready => self.ready(id),
            Told::Report(report) => {
                process.report = report;
                let worker = process.worker;
                self.sum_up(worker);
            }
            Told::Answer | Told::Ended(_) => {}
        }
    }

    /// While systemd runs a watchdog, kills workers whose loop does not come round in its time.
    fn watch(&self) {
        let Some(limit) = systemd::watchdog() else {
            return;
        };
        // A worker is asked twice in vain, and then the time is over.
        let mut ticks = tinyloop::interval(limit / 2);
        let tell = self.tell.clone();
        spawn_named("watchdog", async move {
            while ticks.next().await.is_some() {
                tell.try_send(Step::Ask).ok();
            }
        })
        .detach();
    }

    fn ask(&mut self) {
        for process in self.processes.values_mut() {
            if process.ask_or_kill() {
                let number = process.worker + 1;
                let text = format!(
                    "worker {number} ({}) has not answered within the watchdog's time and is killed",
                    process.pid
                );
                self.log.worker(number, &text);
            }
        }
    }

    /// Starts a process. Returns its id.
    fn start(&mut self, worker: usize) -> io::Result<u64> {
        self.last_id += 1;
        let id = self.last_id;
        let tell = self.tell.clone();
        let process = self.launch.start(worker, move |told| {
            tell.try_send(Step::Told(id, told)).ok();
        })?;
        if let Some(ended) = self.workers[worker].ended.take() {
            let again = format!(
                "worker {} {ended}; started again as {}",
                worker + 1,
                process.pid
            );
            self.log.worker(worker + 1, &again);
        }
        self.processes.insert(id, process);
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
