//! Where a world is played: what its peers, handlers and tasks share, and note what happens to them in.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use fastrand::Rng;
use futures_lite::{AsyncRead, AsyncWrite};
use tinyloop::{Address, Connection};

use super::plan::{Peer, World};
use super::trace::{Entry, Failure, Trace, What};

/// Random bytes, from which all streams of bytes are cut: byte `i` of stream `key` is the same wherever it is needed.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = Rng::with_seed(0);
    let half: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(HALF).collect();
    [half.as_slice(), half.as_slice()].concat()
});
const HALF: usize = 65_536;

/// At most `most` bytes of stream `key` from `at` on.
pub(super) fn bytes(key: usize, at: usize, most: usize) -> &'static [u8] {
    let start = key.wrapping_mul(7_919).wrapping_add(at) % HALF;
    &BYTES[start..start + most.min(HALF)]
}

/// The stream of what a peer says.
pub(super) fn said(visit: usize) -> usize {
    2 * visit
}

/// The stream of what a handler says by itself.
pub(super) fn answered(visit: usize) -> usize {
    2 * visit + 1
}

/// The most that a handler reads at once.
const READ_MAX: usize = 10_000;

pub(super) struct Stage {
    pub(super) world: World,
    start: Instant,
    trace: RefCell<Trace>,
    /// What each visit's peer is to get: pieces of streams.
    written: RefCell<Vec<VecDeque<Piece>>>,
    /// The visits that the server has not accepted yet, with their ports on real sockets.
    queue: RefCell<VecDeque<(usize, u16)>>,
    /// The visits under their connections' ids.
    visits: RefCell<HashMap<u64, usize>>,
    /// Where handlers read to: of one only, so that their futures are small.
    buffer: RefCell<Vec<u8>>,
    /// How many handlers and connections there are.
    pub(super) alive: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Piece {
    key: usize,
    at: usize,
    len: usize,
}

impl Stage {
    pub(super) fn new(world: World) -> Stage {
        Stage {
            world,
            start: tinyloop::now(),
            trace: RefCell::default(),
            written: RefCell::default(),
            queue: RefCell::default(),
            visits: RefCell::default(),
            buffer: RefCell::new(vec![0; READ_MAX]),
            alive: Cell::new(0),
        }
    }

    pub(super) fn tell(&self, visit: impl Into<Option<usize>>, what: What) {
        let entry = Entry {
            at: tinyloop::now() - self.start,
            visit: visit.into(),
            what,
        };
        self.trace.borrow_mut().entries.push(entry);
    }

    pub(super) fn with_trace<T>(&self, body: impl FnOnce(&mut Trace) -> T) -> T {
        body(&mut self.trace.borrow_mut())
    }

    /// Another visit of a peer.
    pub(super) fn new_visit(&self, peer: usize) -> usize {
        self.written.borrow_mut().push(VecDeque::new());
        self.with_trace(|trace| {
            trace.visitors.push(peer);
            trace.visitors.len() - 1
        })
    }

    pub(super) fn peer_of(&self, visit: usize) -> &Peer {
        let peer = self.with_trace(|trace| trace.visitors[visit]);
        &self.world.peers[peer]
    }

    /// The server accepts in the order in which the peers connect. On real sockets their ports tell who they are.
    pub(super) fn enqueue(&self, visit: usize, port: u16) {
        self.queue.borrow_mut().push_back((visit, port));
    }

    pub(super) fn accepted(&self, id: Option<u64>, peer_addr: &Address) -> Option<usize> {
        let port = match peer_addr {
            Address::Tcp(addr) => addr.port(),
            _ => 0,
        };
        let mut queue = self.queue.borrow_mut();
        let place = queue.iter().position(|(_, of)| *of == port)?;
        let (visit, _) = queue.remove(place)?;
        if let Some(id) = id {
            self.visits.borrow_mut().insert(id, visit);
        }
        Some(visit)
    }

    pub(super) fn visit(&self, id: u64) -> Option<usize> {
        self.visits.borrow().get(&id).copied()
    }

    /// The handler has written a piece of a stream.
    pub(super) fn wrote(&self, visit: usize, key: usize, at: usize, len: usize) {
        let pieces = &mut self.written.borrow_mut()[visit];
        match pieces.back_mut() {
            Some(piece) if piece.key == key && piece.at + piece.len == at => piece.len += len,
            _ => pieces.push_back(Piece { key, at, len }),
        }
    }

    /// Whether this is what the peer is to get next.
    pub(super) fn is_written(&self, visit: usize, mut got: &[u8]) -> bool {
        let pieces = &mut self.written.borrow_mut()[visit];
        while !got.is_empty() {
            let Some(piece) = pieces.front_mut() else {
                return false;
            };
            let expected = bytes(piece.key, piece.at, piece.len.min(got.len()));
            if !got.starts_with(expected) {
                return false;
            }
            got = &got[expected.len()..];
            piece.at += expected.len();
            piece.len -= expected.len();
            if piece.len == 0 {
                pieces.pop_front();
            }
        }
        true
    }
}

/// A connection in the hands of its handler, which notes what goes through it.
pub(super) struct Held {
    connection: Connection,
    stage: Rc<Stage>,
    pub(super) visit: usize,
    received: Cell<usize>,
    sent: Cell<usize>,
}

impl Held {
    pub(super) fn new(connection: Connection, stage: Rc<Stage>, visit: usize) -> Held {
        stage.alive.set(stage.alive.get() + 1);
        Held {
            connection,
            stage,
            visit,
            received: Cell::new(0),
            sent: Cell::new(0),
        }
    }

    fn tell(&self, what: What) {
        self.stage.tell(self.visit, what);
    }

    /// Reads at most `most` bytes; 0 is the end. Returns where in the peer's stream they stand, too.
    pub(super) async fn read(&self, most: usize) -> io::Result<(usize, usize)> {
        let most = most.min(READ_MAX);
        let mut waits = false;
        let read = poll_fn(|cx| {
            let buffer = &mut self.stage.buffer.borrow_mut()[..most];
            let read = Pin::new(&mut &self.connection).poll_read(cx, buffer);
            if read.is_pending() && !waits {
                waits = true;
                self.tell(What::WaitsToRead);
            }
            read
        });
        match read.await {
            Ok(0) => {
                self.tell(What::ReadsEnd);
                Ok((self.received.get(), 0))
            }
            Ok(n) => {
                let at = self.received.get();
                self.received.set(at + n);
                let is_right = self.stage.buffer.borrow()[..n] == *bytes(said(self.visit), at, n);
                self.tell(What::Reads(n));
                if !is_right {
                    self.tell(What::ReadsWrongBytes);
                }
                Ok((at, n))
            }
            Err(error) => {
                self.tell(What::CannotRead(failure(&error)));
                Err(error)
            }
        }
    }

    /// Reads exactly so many. False if the input ends before.
    pub(super) async fn read_exactly(&self, mut left: usize) -> io::Result<bool> {
        while left > 0 {
            match self.read(left).await? {
                (_, 0) => return Ok(false),
                (_, n) => left -= n,
            }
        }
        Ok(true)
    }

    /// Writes so many bytes of the handler's own.
    pub(super) async fn write(&self, len: usize) -> io::Result<()> {
        let at = self.sent.get();
        self.sent.set(at + len);
        self.write_stream(answered(self.visit), at, len).await
    }

    /// Writes back what the peer said.
    pub(super) async fn write_back(&self, at: usize, len: usize) -> io::Result<()> {
        self.write_stream(said(self.visit), at, len).await
    }

    async fn write_stream(&self, key: usize, mut at: usize, mut left: usize) -> io::Result<()> {
        let mut write = Write {
            held: self,
            waits: false,
        };
        while left > 0 {
            let chunk = bytes(key, at, left);
            let written = poll_fn(|cx| {
                let written = Pin::new(&mut &self.connection).poll_write(cx, chunk);
                if written.is_pending() && !write.waits {
                    write.waits = true;
                    self.tell(What::WaitsToWrite);
                }
                if let Poll::Ready(Ok(n)) = written {
                    // Noted before the peer can get it.
                    self.stage.wrote(self.visit, key, at, n);
                }
                written
            });
            let written = written.await;
            write.waits = false;
            match written {
                Ok(n) => {
                    self.tell(What::Writes(n));
                    at += n;
                    left -= n;
                }
                Err(error) => {
                    self.tell(What::CannotWrite(failure(&error)));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    pub(super) fn tell_queue(&self, most: usize) {
        self.tell(What::Queues(most));
    }

    pub(super) async fn half_close(&self) -> io::Result<()> {
        let closed = poll_fn(|cx| Pin::new(&mut &self.connection).poll_close(cx)).await;
        self.tell(What::ShutsDownItsHalf);
        closed
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stage.alive.set(self.stage.alive.get() - 1);
        self.tell(What::LetsGo);
    }
}

/// A write under way.
struct Write<'h> {
    held: &'h Held,
    waits: bool,
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.held.tell(What::WriteIsDropped);
        }
    }
}

fn failure(error: &io::Error) -> Failure {
    if error.kind() != ErrorKind::TimedOut {
        return Failure::Other(error.kind());
    }
    match error.to_string().contains("idle") {
        true => Failure::Idle,
        false => Failure::Stalled,
    }
}

thread_local! {
    /// How often one of the world's tasks was polled.
    static POLLS: Cell<u64> = const { Cell::new(0) };
    /// How many of them there are.
    static TASKS: Cell<u64> = const { Cell::new(0) };
    /// The wakers that were made.
    static WAKERS: RefCell<Vec<Weak<Noted>>> = const { RefCell::new(Vec::new()) };
    /// The longest wait from a wake to its poll, for each number of tasks (its logarithm).
    static WAITS: RefCell<[(u64, u64); 12]> = const { RefCell::new([(0, 0); 12]) };
}

/// Starts to count polls.
pub(super) fn reset_polls() {
    POLLS.set(0);
    TASKS.set(0);
    WAITS.set([(0, 0); 12]);
    WAKERS.take();
}

/// For each number of tasks, the most polls between a wake and its poll.
pub(super) fn waits() -> Vec<(u64, u64)> {
    WAITS
        .take()
        .into_iter()
        .filter(|&(_, polls)| polls > 0)
        .collect()
}

/// How many counted tasks there are.
pub(super) fn counted_tasks() -> u64 {
    TASKS.get()
}

/// How many of the wakers that were made are still there.
pub(super) fn wakers() -> usize {
    WAKERS.with_borrow_mut(|made| {
        made.retain(|waker| waker.strong_count() > 0);
        made.len()
    })
}

/// A task whose wakes and polls are counted, or whose waker is watched alone.
pub(super) struct Counted<F> {
    counts: bool,
    future: Pin<Box<F>>,
    waker: Option<(Arc<Noted>, Waker)>,
}

/// The waker of a counted task.
struct Noted {
    counts: bool,
    task: Mutex<Waker>,
    /// The poll at which it was woken, if it was since its own.
    woken: AtomicU64,
}

pub(super) fn counted<F: Future>(future: F) -> Counted<F> {
    TASKS.set(TASKS.get() + 1);
    Counted {
        counts: true,
        future: Box::pin(future),
        waker: None,
    }
}

/// A handler, which the server may well let wait for its turn.
pub(super) fn watched<F: Future>(future: F) -> Counted<F> {
    Counted {
        counts: false,
        future: Box::pin(future),
        waker: None,
    }
}

impl Wake for Noted {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let now = POLLS.get();
        if self.counts && now > 0 {
            self.woken
                .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed)
                .ok();
        }
        let task = self.task.lock().unwrap().clone();
        task.wake();
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let counts = self.counts;
        let now = POLLS.get() + u64::from(counts);
        POLLS.set(now);
        let (noted, waker) = self.waker.get_or_insert_with(|| {
            let noted = Arc::new(Noted {
                counts,
                task: Mutex::new(cx.waker().clone()),
                woken: AtomicU64::new(0),
            });
            WAKERS.with_borrow_mut(|wakers| wakers.push(Arc::downgrade(&noted)));
            (noted.clone(), Waker::from(noted))
        });
        noted.task.lock().unwrap().clone_from(cx.waker());
        let woken = noted.woken.swap(0, Ordering::Relaxed);
        if woken > 0 {
            let tasks = TASKS.get();
            WAITS.with_borrow_mut(|waits| {
                let slot = &mut waits[(tasks.ilog2() as usize).min(11)];
                let waited = now.saturating_sub(woken);
                if waited > slot.1 {
                    *slot = (tasks, waited);
                }
            });
        }
        let waker = waker.clone();
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

impl<F> Drop for Counted<F> {
    fn drop(&mut self) {
        TASKS.set(TASKS.get() - u64::from(self.counts));
    }
}
