//! What happened in a world, entry by entry.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use tinyloop::Report;

use super::plan::Millis;

/// A world's course.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Trace {
    pub(super) entries: Vec<Entry>,
    /// Which of the peers each visit is of. A peer that comes back visits again.
    pub(super) visitors: Vec<usize>,
    pub(super) report: Option<Report>,
    /// The most polls of others between a task's wake and its poll, beside how many tasks there were then.
    pub(super) waits: Vec<(u64, u64)>,
    /// Tasks and timers that were left when the server and everybody else had ended.
    pub(super) left: (usize, usize),
    /// Handlers and connections, futures, and wakers that were left when the loop was gone.
    pub(super) outlive: (usize, usize, usize),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// Since the world began.
    pub(super) at: Duration,
    /// The visit that it is about, if it is about one.
    pub(super) visit: Option<usize>,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    // The peer.
    Connects,
    IsRefused,
    Sends(usize),
    CannotSend(ErrorKind),
    Gets(usize),
    /// Something else than what was written.
    GetsWrongBytes,
    SeesEnd,
    SeesError(ErrorKind),
    HalfCloses,
    Closes,
    Resets,

    // The handler.
    Starts,
    WaitsToRead,
    Reads(usize),
    ReadsWrongBytes,
    ReadsEnd,
    CannotRead(Failure),
    WaitsToWrite,
    Writes(usize),
    CannotWrite(Failure),
    /// It writes no longer.
    WriteIsDropped,
    ShutsDownItsHalf,
    WaitsForever,
    Fails,
    Panics,
    Returns,
    /// Its future is gone.
    IsDropped,
    /// The connection is dropped.
    LetsGo,
    /// A line waited for so many others.
    Queues(usize),

    // The server.
    Connected,
    Rejected,
    Closed {
        reason: Reason,
        bytes_in: u64,
        bytes_out: u64,
        lasted: Duration,
    },
    LimitReached,
    LimitCleared(u64),
    AcceptPaused,
    AcceptResumed(u64),
    Draining(usize),
    ServeReturns,
    ServePanics,

    // The world.
    Serves,
    /// A task has computed for so long, or the process was stopped.
    TimePasses(Duration),
    LacksDescriptors,
    HasDescriptors,
    /// So many.
    FailAccepts(u64),
    ShutsDown,
    DropsServe,
    DropsLoop,
    /// A timer, so long after its deadline. None if it is before.
    Fires {
        due: Option<Duration>,
    },
    Yielded,
    Woken,
    Ends,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Failure {
    Idle,
    Stalled,
    Other(ErrorKind),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reason {
    Completed,
    Failed,
    TimedOut,
    Panicked,
    Aborted,
}

/// A promise that did not hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Violation {
    pub(super) promise: &'static str,
    pub(super) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.what)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.6} s  ", self.at.as_secs_f64())?;
        match self.visit {
            Some(visit) => write!(f, "{visit:>3}  {:?}", self.what),
            None => write!(f, "     {:?}", self.what),
        }
    }
}

/// A time in milliseconds, as the plan has it.
pub(super) fn millis(time: Millis) -> Duration {
    Duration::from_millis(time)
}
