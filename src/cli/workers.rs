//! Several processes behind the same addresses (`--workers`): their parent.
//!
//! The parent holds the listening sockets until the drain, and accepts nothing. Each worker is this program once more,
//! which takes the sockets from `LISTEN_FDS`. So a worker that ends loses no connection that waits in a queue.

mod process;
mod worker_state;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::io;
use std::pin::Pin;
use std::process::ExitStatus;
use std::time::Duration;

use futures_lite::StreamExt;
use smol::channel::{self, Sender};
use tinyloop::signal::{self, Signal};
use tinyloop::{Listener, LiveReport, Report, sleep, spawn_named, yield_now};

use super::PATIENCE;
use super::args::Options;
use super::faulty;
use super::listen;
use super::log::Log;
use super::sums::{sum, sum_of_one};
use super::systemd;
use crate::DRAIN;
use process::{Launch, Process, Told};
use worker_state::WorkerState;

/// The longest time from the start of a process until it accepts connections.
const START_MAX: Duration = Duration::from_secs(30);

/// How much longer than its drain a process may take to end.
const END_MAX: Duration = Duration::from_secs(5);

/// Runs `count` workers until SIGINT or SIGTERM comes and they have drained. Then prints the sum of their reports.
///
/// Fails if a worker cannot start, or ends badly in the drain. A second signal kills all workers and exits.
pub(crate) async fn supervise(
    count: usize,
    options: &Options,
    listeners: Vec<(String, Listener)>,
    log: &Log,
) -> io::Result<()> {
    let (tell, told) = channel::unbounded();
    // Those that are ignored stay ignored: Ctrl-C is not meant for a background job, nor SIGHUP for one of nohup's.
    let known = [Signal::Int, Signal::Term, Signal::Hup];
    let mut signals = signal::signals(known.into_iter().filter(|&one| !signal::is_ignored(one)))?;
    let signalled = tell.clone();
    spawn_named("signals", async move {
        while let Some(signal) = signals.next().await {
            signalled.try_send(Step::Signal(signal)).ok();
        }
    })
    .detach();

    let addrs = listeners.iter().map(|(_, listener)| listener.local_addr());
    let addrs = addrs.collect::<io::Result<Vec<_>>>()?;
    let monitor = options.monitor.map(listen::monitor).transpose()?;
    // The first worker draws faults from this seed, the second from the next.
    let seed = options.seed.unwrap_or_else(faulty::draw_seed);
    let faults = faulty::plan(options.fault.clone(), Some(seed));
    let drawn = (faults.is_some() && options.seed.is_none()).then_some(seed);
    let mut supervisor = Supervisor {
        launch: Launch::new(drawn, listeners, count)?,
        log,
        tell,
        processes: BTreeMap::new(),
        last_id: 0,
        workers: (0..count).map(|_| WorkerState::default()).collect(),
        to_replace: VecDeque::new(),
        replacing: None,
        is_up: false,
        asked_to_end: false,
        draining: false,
        lame_duck: options.lame_duck.unwrap_or_default(),
        drain: options.drain.unwrap_or(DRAIN),
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
    // The driver waits on this loop for processes to end. Without it, smol starts a thread, and panics if the system
    // refuses the thread. The driver is never dropped: while a process runs, its drop starts the thread, too.
    let driver = Box::leak(Box::new(smol::process::driver()));
    spawn_named("processes", Pin::static_mut(driver)).detach();
    yield_now().await;
    for worker in 0..count {
        supervisor.start(worker).map_err(|error| {
            let text = format!("cannot start worker {}: {error}", worker + 1);
            io::Error::new(error.kind(), text)
        })?;
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
            let tell = supervisor.tell.clone();
            systemd::watch(move |limit| drop(tell.try_send(Step::Ask(limit))));
        }
    }
    if supervisor.is_up {
        let reports = supervisor.workers.iter().map(|worker| worker.live.report());
        log.report(&reports.fold(Report::default(), sum));
    }
    supervisor.failure.map_or(Ok(()), Err)
}

/// What the supervisor has to see to.
enum Step {
    Signal(Signal),
    /// Starts a worker again that has ended.
    Start(usize),
    /// The time is over in which the process of this id should accept connections.
    LateStart(u64),
    /// The time is over in which this process should have drained.
    LateEnd(u64),
    /// The lame duck is over, and the processes accept no new connections.
    Close,
    /// Asks all processes whether their loops come round, and kills those that have not answered for this time.
    Ask(Duration),
    /// The process of this id tells something.
    Told(u64, Told),
}

struct Supervisor<'a> {
    launch: Launch,
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
    /// SIGINT or SIGTERM has come.
    asked_to_end: bool,
    draining: bool,
    /// The time in which the processes still accept when they are asked to drain, and the time to drain.
    lame_duck: Duration,
    drain: Duration,
    /// What has the monitor's `/health` say that the workers drain.
    mark_draining: Vec<Box<dyn Fn()>>,
    failure: Option<io::Error>,
}

impl Supervisor<'_> {
    fn take(&mut self, step: Step) {
        match step {
            Step::Signal(Signal::Hup) => self.restart(),
            Step::Signal(signal) if self.asked_to_end => {
                self.processes.values().for_each(Process::kill);
                std::process::exit(128 + signal as i32);
            }
            Step::Signal(_) => {
                self.asked_to_end = true;
                self.drain();
            }
            Step::Start(worker) if !self.draining && self.workers[worker].current.is_none() => {
                if let Err(error) = self.start(worker) {
                    self.tell_failed_start(worker, &error);
                    self.start_later(worker, Duration::ZERO);
                }
            }
            Step::Start(_) => {}
            Step::LateStart(id) => {
                let process = self.processes.get(&id);
                if let Some(process) = process.filter(|process| !process.is_ready()) {
                    process.kill_because(self.log, "does not accept connections in time");
                }
            }
            Step::LateEnd(id) => {
                if let Some(process) = self.processes.get(&id) {
                    process.kill_because(self.log, "has not ended in time");
                }
            }
            Step::Close => self.launch.close(),
            Step::Ask(limit) => self.ask(limit),
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

    /// Kills the processes that have not answered for `limit`, and asks all.
    fn ask(&mut self, limit: Duration) {
        for process in self.processes.values_mut() {
            if process.is_silent(limit) {
                process.kill_because(self.log, "has not answered within the watchdog's time");
            }
            process.ask();
        }
    }

    /// Replaces the workers, one after another.
    fn restart(&mut self) {
        if self.is_up && !self.draining {
            // A worker whose new process is starting has its turn once more.
            let starting = self.to_replace.pop_front();
            self.to_replace = starting.into_iter().chain(0..self.workers.len()).collect();
            if starting.is_none() {
                self.replace_next();
            }
        }
    }

    /// Tells once that a worker is gone and cannot be started again for now.
    fn tell_failed_start(&mut self, worker: usize, error: &io::Error) {
        let state = &mut self.workers[worker];
        if !std::mem::replace(&mut state.cannot_start, true) {
            let number = worker + 1;
            let ended = state.ended.as_deref().unwrap_or_default();
            let text = format!("worker {number} {ended}; cannot be started again yet: {error}");
            self.log.worker(number, &text);
        }
    }

    fn tell_later(&self, pause: Duration, step: Step) {
        let tell = self.tell.clone();
        spawn_named("timer", async move {
            sleep(pause).await;
            tell.try_send(step).ok();
        })
        .detach();
    }

    /// Starts a process. Returns its id.
    fn start(&mut self, worker: usize) -> io::Result<u64> {
        self.last_id += 1;
        let id = self.last_id;
        let tell = self.tell.clone();
        let process = self.launch.start(worker, move |told| {
            tell.try_send(Step::Told(id, told)).ok();
        })?;
        self.workers[worker].cannot_start = false;
        if let Some(ended) = self.workers[worker].ended.take() {
            let again = format!(
                "worker {} {ended}; started again as {}",
                worker + 1,
                process.pid
            );
            self.log.worker(worker + 1, &again);
        }
        self.processes.insert(id, process);
        self.tell_later(START_MAX, Step::LateStart(id));
        Ok(id)
    }

    /// Starts a process after a pause, if the last one has lived for a short time only.
    fn start_later(&mut self, worker: usize, lived: Duration) {
        let pause = self.workers[worker].pause_before_start(lived);
        self.tell_later(pause, Step::Start(worker));
    }

    /// A process accepts connections: the one before it may end.
    fn ready(&mut self, id: u64) {
        let Some(process) = self.processes.get(&id) else {
            return;
        };
        let worker = process.worker;
        if let Some(old) = self.workers[worker].current.replace(id) {
            self.drain_one(old);
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
                self.fail(number, &ended);
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
            // The workers take what is in the queues, and are the last to close the sockets.
            match self.lame_duck {
                Duration::ZERO => self.launch.close(),
                lame_duck => self.tell_later(lame_duck, Step::Close),
            }
            let ids: Vec<u64> = self.processes.keys().copied().collect();
            ids.into_iter().for_each(|id| self.drain_one(id));
            // Those that wait to be started again.
            for worker in 0..self.workers.len() {
                if let Some(ended) = self.workers[worker].ended.take() {
                    self.fail(worker + 1, &ended);
                }
            }
        }
    }

    fn drain_one(&self, id: u64) {
        if let Some(process) = self.processes.get(&id) {
            process.drain();
            let most = END_MAX
                .saturating_add(self.lame_duck)
                .saturating_add(self.drain);
            self.tell_later(most, Step::LateEnd(id));
        }
    }

    /// The program's last line and status tell of the first failure.
    fn fail(&mut self, number: usize, ended: &str) {
        let text = format!("worker {number} {ended}");
        match self.failure {
            Some(_) => self.log.worker(number, &text),
            None => self.failure = Some(io::Error::other(text)),
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
