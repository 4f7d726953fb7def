//! The task table: information about each task of a loop, if the program has asked for it.
//!
//! The table is off until [`task_table`](crate::task_table()) or [`on_slow_poll`](crate::on_slow_poll) is called on its
//! loop. Until then, tasks have no extra cost. From then on each new task is wrapped in a [`Watched`], which records in
//! the table what the task does. The records are atomic, so that another thread can read them while a task blocks the
//! loop.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use slab::Slab;

use crate::health::{Ailment, Servers};
use crate::report::{LiveReport, Report, Traffic, lock};

/// The threshold of asyncio's debug mode (`loop.slow_callback_duration`): 100 ms.
pub const SLOW_POLL: Duration = Duration::from_millis(100);

/// A loop's task table. Clones show the same table. It can be read from any thread, also while a task blocks the loop.
#[derive(Clone)]
pub struct TaskTable {
    shared: Arc<Shared>,
}

struct Shared {
    entries: Mutex<Slab<Arc<Entry>>>,
    last_id: AtomicU64,
    servers: Servers,
}

/// Information about a task at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TaskInfo {
    /// A number that is unique in this loop. The main future has 0.
    pub id: u64,
    /// The name that the task was spawned with. tinyloop itself uses `main` and `connection`.
    pub name: Option<Cow<'static, str>>,
    /// The place in the source where the task was spawned.
    pub place: &'static Location<'static>,
    /// The state of the task at this moment.
    pub state: TaskState,
    /// Time since the task was spawned.
    pub age: Duration,
    /// Number of polls of the task.
    pub polls: u64,
    /// Total time of all polls, including the running poll.
    pub busy: Duration,
    /// Duration of the longest poll. A running poll counts with its time so far.
    pub longest_poll: Duration,
    /// The connection, if this is a connection's task.
    pub connection: Option<ConnectionInfo>,
}

/// The state of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// The task is being polled.
    Running,
    /// The task was woken and has not been polled since.
    Ready,
    /// The task waits for a wake.
    Waiting,
}

/// The connection of a connection's task.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The peer's address, as [`Address`](crate::Address) displays it.
    pub peer_addr: String,
    /// Number of bytes read, at the end of the last poll.
    pub bytes_in: u64,
    /// Number of bytes written, at the end of the last poll.
    pub bytes_out: u64,
}

/// A poll that took too long. Displays as a line for a log.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SlowPoll {
    /// The task, as it was after the poll.
    pub task: TaskInfo,
    /// The duration of the poll.
    pub duration: Duration,
}

impl fmt::Display for SlowPoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskInfo {
            id, name, place, ..
        } = &self.task;
        let name = name.as_deref().unwrap_or("unnamed");
        let duration = self.duration;
        write!(
            f,
            "task {id} ({name}, spawned at {place}) blocked the event loop for {duration:.1?}"
        )
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TaskState::Running => "running",
            TaskState::Ready => "ready",
            TaskState::Waiting => "waiting",
        })
    }
}

impl TaskTable {
    pub(crate) fn new() -> TaskTable {
        let shared = Shared {
            entries: Mutex::default(),
            last_id: AtomicU64::new(0),
            servers: Servers::default(),
        };
        TaskTable {
            shared: Arc::new(shared),
        }
    }

    /// The tasks at this moment. The task with the longest poll comes first.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        let entries: Vec<Arc<Entry>> = lock(&self.shared.entries)
            .iter()
            .map(|(_, entry)| entry.clone())
            .collect();
        let mut tasks: Vec<TaskInfo> = entries.iter().map(|entry| entry.info()).collect();
        tasks.sort_by_key(|task| (std::cmp::Reverse(task.longest_poll), task.id));
        tasks
    }

    /// The counters of the servers that were started after the table was turned on, with the servers' addresses.
    pub fn servers(&self) -> Vec<(String, Report)> {
        self.shared.servers.reports()
    }

    /// Adds a worker process to the servers. The result marks it as draining. Only for the program.
    #[doc(hidden)]
    pub fn add_worker(&self, addrs: &str, number: usize, report: &LiveReport) -> impl Fn() + use<> {
        let name = format!("{addrs} worker {number}");
        let health = self.entered_servers().enter(name, report.shared());
        move || health.set(Some(Ailment::Draining))
    }

    pub(crate) fn entered_servers(&self) -> &Servers {
        &self.shared.servers
    }

    /// A task whose poll takes `threshold` or longer so far, and how long it takes.
    pub(crate) fn blocked(&self, threshold: Duration) -> Option<(TaskInfo, Duration)> {
        lock(&self.shared.entries).iter().find_map(|(_, entry)| {
            let running = entry.running().filter(|running| *running >= threshold)?;
            Some((entry.info(), running))
        })
    }

    /// Adds a task.
    pub(crate) fn show(&self, entry: Arc<Entry>) -> Line {
        Line {
            key: lock(&self.shared.entries).insert(entry),
            table: self.clone(),
        }
    }

    fn new_id(&self) -> u64 {
        self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl fmt::Debug for TaskTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskTable")
            .field("tasks", &lock(&self.shared.entries).len())
            .finish_non_exhaustive()
    }
}

/// Information about a task that is spawned, for the table.
pub(crate) struct Label {
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) place: &'static Location<'static>,
    pub(crate) connection: Option<ConnectionLabel>,
}

pub(crate) struct ConnectionLabel {
    pub(crate) peer_addr: String,
    pub(crate) traffic: ReadTraffic,
}

/// Reads a connection's traffic, while the connection exists.
type ReadTraffic = Box<dyn Fn() -> Option<Traffic>>;

impl Label {
    pub(crate) fn new(place: &'static Location<'static>) -> Label {
        Label {
            name: None,
            place,
            connection: None,
        }
    }
}

/// Information about a task.
pub(crate) struct Entry {
    id: u64,
    name: Option<Cow<'static, str>>,
    place: &'static Location<'static>,
    spawned: Instant,
    /// One of the four constants below.
    state: AtomicU8,
    polls: AtomicU64,
    /// Total time of the polls that have ended.
    busy_nanos: AtomicU64,
    longest_nanos: AtomicU64,
    /// The beginning of the running poll, counted from `spawned`.
    poll_start_nanos: AtomicU64,
    peer_addr: Option<String>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

const WAITING: u8 = 0;
const READY: u8 = 1;
const RUNNING: u8 = 2;
/// Woken while it runs: it will be ready after the poll.
const RUNNING_WOKEN: u8 = 3;

impl Entry {
    fn new(id: u64, label: &mut Label) -> Arc<Entry> {
        let connection = label.connection.as_ref();
        Arc::new(Entry {
            id,
            name: label.name.take(),
            place: label.place,
            spawned: Instant::now(),
            state: AtomicU8::new(READY),
            polls: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            longest_nanos: AtomicU64::new(0),
            poll_start_nanos: AtomicU64::new(0),
            peer_addr: connection.map(|connection| connection.peer_addr.clone()),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        })
    }

    /// The entry of a main future that was started at `place`.
    pub(crate) fn of_main(place: &'static Location<'static>) -> Arc<Entry> {
        let mut label = Label {
            name: Some("main".into()),
            ..Label::new(place)
        };
        Entry::new(0, &mut label)
    }

    fn nanos_now(&self) -> u64 {
        self.spawned.elapsed().as_nanos() as u64
    }

    pub(crate) fn begin_poll(&self) {
        self.poll_start_nanos
            .store(self.nanos_now(), Ordering::Relaxed);
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Returns the duration of the poll.
    pub(crate) fn end_poll(&self) -> Duration {
        let nanos = self.nanos_now() - self.poll_start_nanos.load(Ordering::Relaxed);
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.longest_nanos.fetch_max(nanos, Ordering::Relaxed);
        if self
            .state
            .compare_exchange(RUNNING, WAITING, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            self.state.store(READY, Ordering::Release);
        }
        Duration::from_nanos(nanos)
    }

    pub(crate) fn woken(&self) {
        let change = |from, to| {
            self.state
                .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        // If both fail, the task was already woken.
        let _ = change(WAITING, READY) || change(RUNNING, RUNNING_WOKEN);
    }

    /// How long its running poll takes so far.
    fn running(&self) -> Option<Duration> {
        let is_running = matches!(self.state.load(Ordering::Acquire), RUNNING | RUNNING_WOKEN);
        is_running.then(|| {
            let start = self.poll_start_nanos.load(Ordering::Relaxed);
            Duration::from_nanos(self.nanos_now().saturating_sub(start))
        })
    }

    fn info(&self) -> TaskInfo {
        let state = match self.state.load(Ordering::Acquire) {
            WAITING => TaskState::Waiting,
            READY => TaskState::Ready,
            _ => TaskState::Running,
        };
        let running = self.running().unwrap_or_default();
        TaskInfo {
            id: self.id,
            name: self.name.clone(),
            place: self.place,
            state,
            age: self.spawned.elapsed(),
            polls: self.polls.load(Ordering::Relaxed),
            busy: Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed)) + running,
            longest_poll: Duration::from_nanos(self.longest_nanos.load(Ordering::Relaxed))
                .max(running),
            connection: self.peer_addr.as_ref().map(|peer_addr| ConnectionInfo {
                peer_addr: peer_addr.clone(),
                bytes_in: self.bytes_in.load(Ordering::Relaxed),
                bytes_out: self.bytes_out.load(Ordering::Relaxed),
            }),
        }
    }
}

/// A task's row in the table. Dropping it removes the row.
pub(crate) struct Line {
    table: TaskTable,
    key: usize,
}

impl Drop for Line {
    fn drop(&mut self) {
        lock(&self.table.shared.entries).remove(self.key);
    }
}

pin_project! {
    /// A task with a row in the table, from its spawn until its future is dropped.
    pub(crate) struct Watched<F> {
        #[pin]
        future: F,
        watch: Watch,
    }
}

struct Watch {
    entry: Arc<Entry>,
    /// Kept only for its drop.
    _line: Line,
    traffic: Option<ReadTraffic>,
    slow_polls: Rc<SlowPolls>,
}

impl<F: Future> Watched<F> {
    pub(crate) fn new(
        table: &TaskTable,
        mut label: Label,
        slow_polls: &Rc<SlowPolls>,
        future: F,
    ) -> Watched<F> {
        let entry = Entry::new(table.new_id(), &mut label);
        let watch = Watch {
            _line: table.show(entry.clone()),
            entry,
            traffic: label.connection.map(|connection| connection.traffic),
            slow_polls: slow_polls.clone(),
        };
        Watched { future, watch }
    }

    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.watch.entry
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.watch.entry.begin_poll();
        // Ends the poll even after a panic.
        let _poll = PollInProgress(this.watch);
        this.future.poll(cx)
    }
}

struct PollInProgress<'a>(&'a Watch);

impl Drop for PollInProgress<'_> {
    fn drop(&mut self) {
        let Watch {
            entry,
            traffic,
            slow_polls,
            ..
        } = self.0;
        if let Some(traffic) = traffic.as_ref().and_then(|read| read()) {
            entry.bytes_in.store(traffic.bytes_in, Ordering::Relaxed);
            entry.bytes_out.store(traffic.bytes_out, Ordering::Relaxed);
        }
        slow_polls.check(entry, entry.end_poll());
    }
}

type Watcher = Box<dyn FnMut(&SlowPoll)>;

/// The callback for slow polls.
#[derive(Default)]
pub(crate) struct SlowPolls {
    watcher: RefCell<Option<(Duration, Watcher)>>,
}

impl SlowPolls {
    pub(crate) fn set(&self, threshold: Duration, report: impl FnMut(&SlowPoll) + 'static) {
        self.watcher.replace(Some((threshold, Box::new(report))));
    }

    pub(crate) fn check(&self, entry: &Entry, duration: Duration) {
        // Taken out while it is called: it may set another callback, or be slow itself.
        let Some((threshold, mut report)) = self.watcher.take() else {
            return;
        };
        let call = || {
            let task = entry.info();
            report(&SlowPoll { task, duration });
        };
        // A panic of the callback is not a panic of the task. async-task would end the task, or the process if the task
        // has panicked, too.
        let is_sound = duration < threshold || panic::catch_unwind(AssertUnwindSafe(call)).is_ok();
        if is_sound && self.watcher.borrow().is_none() {
            self.watcher.replace(Some((threshold, report)));
        }
    }
}
