//! The task table: what is known of each task of a loop, when somebody asked for it.
//!
//! The table is off until [`task_table`](crate::task_table()) or [`on_slow_poll`](crate::on_slow_poll) is called on its
//! loop. Until then a task is spawned bare, and costs nothing more. From then on each new task is wrapped in a
//! [`Watched`], which notes in the table what it does. The notes are atomic, so that another thread can read them while
//! a task blocks the loop.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use slab::Slab;

use crate::connection::Traffic;
use crate::server::Report;

/// The threshold of asyncio's debug mode (`loop.slow_callback_duration`): 100 ms.
pub const SLOW_POLL: Duration = Duration::from_millis(100);

/// A loop's task table. A handle: clones show the same table, from any thread, also while a task blocks the loop.
#[derive(Clone)]
pub struct TaskTable {
    shared: Arc<Shared>,
}

struct Shared {
    entries: Mutex<Slab<Arc<Entry>>>,
    last_id: AtomicU64,
    /// The counters of the loop's servers, with the addresses that they listen on.
    servers: Mutex<Vec<(String, Weak<Mutex<Report>>)>>,
}

/// What the table knew of a task at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TaskInfo {
    /// A number that no other task of this loop has. The main future is 0.
    pub id: u64,
    /// The name that it was spawned with; `main` and `connection` are tinyloop's own.
    pub name: Option<Cow<'static, str>>,
    /// Where it was spawned.
    pub place: &'static Location<'static>,
    /// What it does at this moment.
    pub state: TaskState,
    /// How long ago it was spawned.
    pub age: Duration,
    /// How often it was polled.
    pub polls: u64,
    /// How long its polls took together, the running one too.
    pub busy: Duration,
    /// How long its longest poll took, or takes so far.
    pub longest_poll: Duration,
    /// For a connection's task: what it serves.
    pub connection: Option<ConnectionInfo>,
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// It is being polled.
    Running,
    /// It was woken and has not been polled since.
    Ready,
    /// It waits to be woken.
    Waiting,
}

/// The connection of a connection's task.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// From where, as [`Address`](crate::Address) displays it.
    pub peer_addr: String,
    /// How many bytes were read, as of the last poll.
    pub bytes_in: u64,
    /// How many bytes were written, as of the last poll.
    pub bytes_out: u64,
}

/// A poll that took long. Displays as a line for a log.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SlowPoll {
    /// The task, as it was after the poll.
    pub task: TaskInfo,
    /// How long the poll took.
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
            servers: Mutex::default(),
        };
        TaskTable {
            shared: Arc::new(shared),
        }
    }

    /// The tasks at this moment, longest poll first.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        let entries: Vec<Arc<Entry>> = lock(&self.shared.entries)
            .iter()
            .map(|(_, entry)| entry.clone())
            .collect();
        let mut tasks: Vec<TaskInfo> = entries.iter().map(|entry| entry.info()).collect();
        tasks.sort_by_key(|task| (std::cmp::Reverse(task.longest_poll), task.id));
        tasks
    }

    /// The counters so far of the loop's servers that were started since the table is on, with their addresses.
    pub fn servers(&self) -> Vec<(String, Report)> {
        let servers = lock(&self.shared.servers);
        let report = |report: &Weak<Mutex<Report>>| Some(lock(&*report.upgrade()?).clone());
        servers
            .iter()
            .filter_map(|(addrs, weak)| Some((addrs.clone(), report(weak)?)))
            .collect()
    }

    pub(crate) fn add_server(&self, addrs: String, report: &Arc<Mutex<Report>>) {
        let mut servers = lock(&self.shared.servers);
        servers.retain(|(_, report)| report.strong_count() > 0);
        servers.push((addrs, Arc::downgrade(report)));
    }

    /// Enters the main future, which may be running.
    pub(crate) fn enter_main(
        &self,
        place: &'static Location<'static>,
        running: bool,
        slow_polls: &Rc<SlowPolls>,
    ) -> Watch {
        let label = Label {
            name: Some("main".into()),
            ..Label::new(place)
        };
        let watch = self.enter_with_id(0, label, slow_polls);
        if running {
            watch.entry.begin_poll();
        }
        watch
    }

    fn enter(&self, label: Label, slow_polls: &Rc<SlowPolls>) -> Watch {
        let id = self.shared.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        self.enter_with_id(id, label, slow_polls)
    }

    fn enter_with_id(&self, id: u64, label: Label, slow_polls: &Rc<SlowPolls>) -> Watch {
        let entry = Arc::new(Entry {
            id,
            name: label.name,
            place: label.place,
            spawned: Instant::now(),
            state: AtomicU8::new(READY),
            polls: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            longest_nanos: AtomicU64::new(0),
            poll_start_nanos: AtomicU64::new(0),
            peer_addr: label
                .connection
                .as_ref()
                .map(|connection| connection.peer_addr.clone()),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        });
        let key = lock(&self.shared.entries).insert(entry.clone());
        Watch {
            entry,
            table: self.clone(),
            key,
            traffic: label.connection.map(|connection| connection.traffic),
            waker: None,
            slow_polls: slow_polls.clone(),
        }
    }
}

impl fmt::Debug for TaskTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskTable")
            .field("tasks", &lock(&self.shared.entries).len())
            .finish_non_exhaustive()
    }
}

/// What a task is spawned with, for the table.
pub(crate) struct Label {
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) place: &'static Location<'static>,
    pub(crate) connection: Option<ConnectionLabel>,
}

pub(crate) struct ConnectionLabel {
    pub(crate) peer_addr: String,
    pub(crate) traffic: ReadTraffic,
}

/// Reads a connection's traffic, while it is there.
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

/// A task's line in the table.
struct Entry {
    id: u64,
    name: Option<Cow<'static, str>>,
    place: &'static Location<'static>,
    spawned: Instant,
    /// One of the four below.
    state: AtomicU8,
    polls: AtomicU64,
    /// Of the polls that have ended.
    busy_nanos: AtomicU64,
    longest_nanos: AtomicU64,
    /// When the running poll began, after `spawned`.
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
    fn nanos_now(&self) -> u64 {
        self.spawned.elapsed().as_nanos() as u64
    }

    fn begin_poll(&self) {
        self.poll_start_nanos
            .store(self.nanos_now(), Ordering::Relaxed);
        self.state.store(RUNNING, Ordering::Release);
    }

    /// Returns how long the poll took.
    fn end_poll(&self) -> Duration {
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

    fn woken(&self) {
        let change = |from, to| {
            self.state
                .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        // If neither holds, it was woken before.
        let _ = change(WAITING, READY) || change(RUNNING, RUNNING_WOKEN);
    }

    fn info(&self) -> TaskInfo {
        let state = match self.state.load(Ordering::Acquire) {
            WAITING => TaskState::Waiting,
            READY => TaskState::Ready,
            _ => TaskState::Running,
        };
        let running = match state {
            TaskState::Running => self
                .nanos_now()
                .saturating_sub(self.poll_start_nanos.load(Ordering::Relaxed)),
            _ => 0,
        };
        TaskInfo {
            id: self.id,
            name: self.name.clone(),
            place: self.place,
            state,
            age: self.spawned.elapsed(),
            polls: self.polls.load(Ordering::Relaxed),
            busy: Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed) + running),
            longest_poll: Duration::from_nanos(
                self.longest_nanos.load(Ordering::Relaxed).max(running),
            ),
            connection: self.peer_addr.as_ref().map(|peer_addr| ConnectionInfo {
                peer_addr: peer_addr.clone(),
                bytes_in: self.bytes_in.load(Ordering::Relaxed),
                bytes_out: self.bytes_out.load(Ordering::Relaxed),
            }),
        }
    }
}

/// A task's presence in the table: there from its spawn until its future is dropped.
pub(crate) struct Watch {
    entry: Arc<Entry>,
    table: TaskTable,
    key: usize,
    traffic: Option<ReadTraffic>,
    /// Made at the first poll: notes that the task is ready before it wakes it.
    waker: Option<Waker>,
    slow_polls: Rc<SlowPolls>,
}

impl Watch {
    /// Polls `future`, and notes what there is to note.
    pub(crate) fn poll<F: Future>(
        &mut self,
        future: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let entry = &self.entry;
        let note = || {
            Waker::from(Arc::new(NotingWaker {
                entry: entry.clone(),
                task: cx.waker().clone(),
            }))
        };
        let waker = self.waker.get_or_insert_with(note).clone();
        self.entry.begin_poll();
        // Ends the poll in a panic, too.
        let poll = PollInProgress(self);
        let result = future.poll(&mut Context::from_waker(&waker));
        drop(poll);
        result
    }

    pub(crate) fn end_poll(&self) {
        let entry = &self.entry;
        if let Some(traffic) = self.traffic.as_ref().and_then(|read| read()) {
            entry.bytes_in.store(traffic.bytes_in, Ordering::Relaxed);
            entry.bytes_out.store(traffic.bytes_out, Ordering::Relaxed);
        }
        let duration = entry.end_poll();
        self.slow_polls.check(entry, duration);
    }
}

struct PollInProgress<'a>(&'a Watch);

impl Drop for PollInProgress<'_> {
    fn drop(&mut self) {
        self.0.end_poll();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.table.shared.entries).remove(self.key);
    }
}

struct NotingWaker {
    entry: Arc<Entry>,
    task: Waker,
}

impl Wake for NotingWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.entry.woken();
        self.task.wake_by_ref();
    }
}

pin_project! {
    /// A task that is in the table.
    pub(crate) struct Watched<F> {
        #[pin]
        future: F,
        watch: Watch,
    }
}

impl<F: Future> Watched<F> {
    pub(crate) fn new(
        table: &TaskTable,
        label: Label,
        slow_polls: &Rc<SlowPolls>,
        future: F,
    ) -> Watched<F> {
        Watched {
            future,
            watch: table.enter(label, slow_polls),
        }
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.watch.poll(this.future, cx)
    }
}

type Watcher = Box<dyn FnMut(&SlowPoll)>;

/// Whom to tell of slow polls.
#[derive(Default)]
pub(crate) struct SlowPolls {
    watcher: RefCell<Option<(Duration, Watcher)>>,
}

impl SlowPolls {
    pub(crate) fn set(&self, threshold: Duration, report: impl FnMut(&SlowPoll) + 'static) {
        self.watcher.replace(Some((threshold, Box::new(report))));
    }

    fn check(&self, entry: &Entry, duration: Duration) {
        // Out of its place while it is called: it may set another, or be what is slow.
        let Some((threshold, mut report)) = self.watcher.take() else {
            return;
        };
        let call = || {
            let task = entry.info();
            report(&SlowPoll { task, duration });
        };
        // Its panic is not the task's. async-task would end the task, or the process if the task has panicked, too.
        let is_sound = duration < threshold || panic::catch_unwind(AssertUnwindSafe(call)).is_ok();
        if is_sound && self.watcher.borrow().is_none() {
            self.watcher.replace(Some((threshold, report)));
        }
    }
}

/// Locks what is whole after every statement, so that a panic with the lock held harms nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
