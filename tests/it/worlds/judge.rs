//! Judges what happened in a world by the promises of docs/promises.md.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::time::Duration;

use super::plan::{End, Peer, Reads, Step, World};
use super::trace::{Entry, Failure, Reason, Trace, Violation, What, millis};

/// What can be promised to every connection that was closed by us is a moment later, and not at once.
const MOMENT: Duration = Duration::from_millis(1);

/// The server's own patience where there is no stall timeout, and during a drain.
const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_WHILE_DRAINING: Duration = Duration::from_secs(1);

/// What the smallest send buffer holds (`SOCK_MIN_SNDBUF`; on Linux twice that is allocated).
const LEAST_BUFFER: u64 = 2 * 2_304;

/// After how many errors of single connections in a row the server pauses.
const ERRORS_MAX: u64 = 100;

/// How late things may be on the system's clock, and how much earlier than they were noted.
const TOLERANCE: Duration = Duration::from_secs(2);
const NOTED_LATE: Duration = Duration::from_millis(50);

/// More than the kernel lets lie between two sockets: it sizes their buffers as it sees fit.
const KERNELS_WINDOW: usize = 8 << 20;

type Judgement = Result<(), Violation>;

fn check(holds: bool, promise: &'static str, what: impl FnOnce() -> String) -> Judgement {
    match holds {
        true => Ok(()),
        false => Err(Violation {
            promise,
            what: what(),
        }),
    }
}

/// The first promise that does not hold.
pub(super) fn judge(world: &World, trace: &Trace) -> Judgement {
    let course = Course::new(world, trace);
    course.bytes_arrive_in_order()?;
    course.events_add_up()?;
    course.the_limit_holds()?;
    course.the_drain_ends()?;
    course.nothing_is_left()?;
    course.a_free_place_is_taken()?;
    course.who_closed_makes_room()?;
    course.timers_are_on_time()?;
    if !world.is_real {
        // How many polls there are between a wake and its turn is for the system's clock to say there.
        course.all_have_their_turn()?;
    }
    for visit in &course.visits {
        course.who_takes_gets_all(visit)?;
        course.who_is_cut_sees_no_end(visit)?;
        course.nobody_is_cut_early(visit)?;
        course.who_is_idle_or_stalled_is_cut(visit)?;
        if !world.is_real {
            // How much of a flood the kernel takes is not known there.
            course.a_failure_ends_a_flood(visit)?;
        }
        course.everybody_sees_an_end(visit)?;
    }
    Ok(())
}

/// A trace by its visits.
struct Course<'t> {
    world: &'t World,
    trace: &'t Trace,
    visits: Vec<Visit<'t>>,
    /// When the time passed within a poll, and how long.
    passed: Vec<(Duration, Duration)>,
    /// When there were no descriptors.
    short: Vec<(Duration, Duration)>,
    /// When the server told that it paused to accept.
    paused: Vec<(Duration, Duration)>,
    shut_down: Option<Duration>,
    dropped: Option<Duration>,
    returned: Option<Duration>,
    ended: Duration,
}

struct Visit<'t> {
    number: usize,
    peer: &'t Peer,
    /// How many bytes may lie between the two ends, in one direction.
    window: usize,
    /// Its entries, with their places in the trace.
    entries: Vec<(usize, &'t Entry)>,
    connected: Option<Duration>,
    handled: Option<Duration>,
    /// When its handler ended, and how.
    ended: Option<(Duration, &'t What)>,
    let_go: Option<Duration>,
    closed: Option<(Duration, Reason, u64, u64)>,
    rejected: bool,
    /// How many bytes each side has got or handed over.
    peer_sent: u64,
    peer_got: u64,
    handler_read: u64,
    handler_wrote: u64,
    /// The end that its peer saw: in order, or with an error.
    saw: Option<(Duration, Option<ErrorKind>)>,
    /// When its peer left, and whether that was before it saw an end.
    left: Option<(Duration, bool)>,
    last_got: Option<Duration>,
}

impl<'t> Course<'t> {
    fn new(world: &'t World, trace: &'t Trace) -> Course<'t> {
        let mut course = Course {
            world,
            trace,
            visits: trace
                .visitors
                .iter()
                .enumerate()
                .map(|(number, &peer)| Visit::new(number, &world.peers[peer], world.is_real))
                .collect(),
            passed: Vec::new(),
            short: Vec::new(),
            paused: Vec::new(),
            shut_down: None,
            dropped: None,
            returned: None,
            ended: Duration::ZERO,
        };
        for (place, entry) in trace.entries.iter().enumerate() {
            match &entry.what {
                What::TimePasses(time) => course.passed.push((entry.at, *time)),
                What::LacksDescriptors => course.short.push((entry.at, Duration::MAX)),
                What::AcceptPaused => course.paused.push((entry.at, Duration::MAX)),
                What::AcceptResumed(_) => course.paused.last_mut().unwrap().1 = entry.at,
                What::HasDescriptors => course.short.last_mut().unwrap().1 = entry.at,
                What::ShutsDown => course.shut_down = Some(entry.at),
                What::DropsServe | What::DropsLoop | What::ServePanics => {
                    course.dropped = course.dropped.or(Some(entry.at));
                }
                What::ServeReturns => course.returned = Some(entry.at),
                _ => {}
            }
            course.ended = entry.at;
            if let Some(visit) = entry.visit {
                course.visits[visit].note(place, entry);
            }
        }
        course
    }

    /// How much time passed within polls from `from` to `to`. The server could do nothing meanwhile. On the system's clock
    /// it may have passed elsewhere.
    fn passed(&self, from: Duration, to: Duration) -> Duration {
        let within = self
            .passed
            .iter()
            .filter(|(at, _)| (from..=to).contains(at));
        self.elsewhere() + within.map(|(_, time)| *time).sum::<Duration>()
    }

    /// How much time may pass elsewhere: in other processes, and in the kernel.
    fn elsewhere(&self) -> Duration {
        match self.world.is_real {
            true => TOLERANCE,
            false => Duration::ZERO,
        }
    }

    /// The most time that passed within polls in any stretch of `length`, from `from` to `to`.
    fn passed_at_most(&self, length: Duration, from: Duration, to: Duration) -> Duration {
        let ends = self.passed.iter().map(|(at, _)| *at);
        let ends = ends.filter(|at| (from..=to).contains(at));
        let sums = ends.map(|end| self.passed(end.saturating_sub(length).max(from), end));
        sums.max().unwrap_or_else(|| self.passed(from, from))
    }

    /// Whether time passed within a poll, at most so long before.
    fn has_passed(&self, at: Duration, before: Duration) -> bool {
        self.passed(at.saturating_sub(before), at) > self.elsewhere()
    }

    fn bytes_arrive_in_order(&self) -> Judgement {
        for visit in &self.visits {
            for (_, entry) in &visit.entries {
                let wrong = matches!(entry.what, What::GetsWrongBytes | What::ReadsWrongBytes);
                check(!wrong, "every byte arrives once and in order", || {
                    entry.to_string()
                })?;
            }
        }
        Ok(())
    }

    fn events_add_up(&self) -> Judgement {
        const PROMISE: &str = "counters and events add up and agree with what peers saw";
        let mut sums = BTreeMap::new();
        let (mut total_in, mut total_out) = (0, 0);
        let mut open = 0_i64;
        for entry in &self.trace.entries {
            match &entry.what {
                What::Connected => open += 1,
                What::Closed {
                    reason,
                    bytes_in,
                    bytes_out,
                    ..
                } => {
                    open -= 1;
                    *sums.entry(format!("{reason:?}")).or_insert(0) += 1;
                    total_in += bytes_in;
                    total_out += bytes_out;
                }
                _ => {}
            }
            check(open >= 0, PROMISE, || {
                format!("{entry}: more ends than beginnings")
            })?;
        }
        for visit in &self.visits {
            let count = |wanted: fn(&What) -> bool| {
                visit
                    .entries
                    .iter()
                    .filter(|(_, entry)| wanted(&entry.what))
                    .count()
            };
            let beginnings = count(|what| *what == What::Connected);
            let ends = count(|what| matches!(what, What::Closed { .. }));
            let told = beginnings == ends || (self.dropped.is_some() && ends < beginnings);
            check(told && beginnings <= 1, PROMISE, || {
                format!(
                    "visit {}: {beginnings} beginnings and {ends} ends",
                    visit.number
                )
            })?;
            if let Some((_, reason, bytes_in, bytes_out)) = visit.closed {
                let is_library = visit.peer.handler.first() == Some(&Step::LibraryEcho);
                let agrees = is_library
                    || (bytes_in == visit.handler_read && bytes_out == visit.handler_wrote);
                check(agrees, PROMISE, || {
                    format!(
                        "visit {}: {bytes_in} B in and {bytes_out} B out are told, the handler had {} and {}",
                        visit.number, visit.handler_read, visit.handler_wrote
                    )
                })?;
                let agrees = bytes_in <= visit.peer_sent && visit.peer_got <= bytes_out;
                check(agrees, PROMISE, || {
                    format!(
                        "visit {}: {bytes_in} B in and {bytes_out} B out are told, the peer sent {} and got {}",
                        visit.number, visit.peer_sent, visit.peer_got
                    )
                })?;
                // It is not known to have all, or has said too much after the end.
                let is_cut_by_peer = visit.peer_got < bytes_out
                    || visit.has(|what| *what == What::Resets)
                    || visit.peer_sent > bytes_in;
                let fits = match visit.ended.map(|(_, what)| what) {
                    Some(What::Returns) => {
                        matches!(
                            reason,
                            Reason::Completed | Reason::TimedOut | Reason::Aborted
                        ) || reason == Reason::Failed && is_cut_by_peer
                    }
                    Some(What::Fails) => matches!(reason, Reason::Failed | Reason::TimedOut),
                    Some(What::Panics) => reason == Reason::Panicked,
                    _ => matches!(reason, Reason::Aborted | Reason::TimedOut),
                };
                check(fits, PROMISE, || {
                    format!("visit {}: {reason:?} after {:?}", visit.number, visit.ended)
                })?;
            }
        }
        let Some(report) = &self.trace.report else {
            return Ok(());
        };
        let of = |reason: &str| sums.get(reason).copied().unwrap_or(0);
        let agrees = report.accepted as usize
            == self
                .visits
                .iter()
                .filter(|visit| visit.handled.is_some())
                .count()
            && report.rejected as usize
                == self.visits.iter().filter(|visit| visit.rejected).count()
            && report.completed == of("Completed")
            && report.failed == of("Failed")
            && report.timed_out == of("TimedOut")
            && report.panicked == of("Panicked")
            && report.aborted == of("Aborted")
            && report.bytes_in == total_in
            && report.bytes_out == total_out
            && self
                .world
                .settings
                .limit
                .is_none_or(|limit| report.peak_connections <= limit);
        check(agrees, PROMISE, || format!("the report says: {report}"))
    }

    /// The number of places that are taken after each entry.
    fn places(&self) -> impl Iterator<Item = (usize, &'t Entry, usize)> {
        let mut holders = vec![Holder::default(); self.visits.len()];
        let mut taken = 0;
        self.trace
            .entries
            .iter()
            .enumerate()
            .map(move |(place, entry)| {
                if let Some(visit) = entry.visit {
                    let holder = &mut holders[visit];
                    let held = holder.holds();
                    holder.note(&entry.what);
                    taken += usize::from(holder.holds());
                    taken -= usize::from(held);
                }
                (place, entry, taken)
            })
    }

    fn the_limit_holds(&self) -> Judgement {
        let Some(limit) = self.world.settings.limit else {
            return Ok(());
        };
        for (_, entry, taken) in self.places() {
            check(taken <= limit, "the limit is never exceeded", || {
                format!("{entry}: {taken} places are taken of {limit}")
            })?;
        }
        Ok(())
    }

    fn a_free_place_is_taken(&self) -> Judgement {
        let limit = self.world.settings.limit.unwrap_or(usize::MAX);
        // After the last error the server tries again within a tenth of a second.
        let pause = millis(100) + MOMENT;
        let is_short = |at: Duration| {
            let mut short = self.short.iter();
            short.any(|&(from, to)| (from..=to.saturating_add(pause)).contains(&at))
        };
        let (mut waiting, mut serves, mut paused, mut failures) = (0_usize, false, false, 0);
        let mut before: Option<(Duration, usize)> = None;
        for (_, entry, taken) in self.places() {
            if let Some((at, taken)) = before {
                let passes = entry.at > at + self.elsewhere().max(Duration::from_micros(1))
                    && !matches!(entry.what, What::TimePasses(_));
                let is_open = serves && self.shut_down.is_none_or(|end| at < end);
                // After so many errors in a row the server pauses at each, and how many are left is not known.
                let is_paused = (paused && failures > ERRORS_MAX) || is_short(at);
                let idles = passes && is_open && !is_paused && waiting > 0 && taken < limit;
                check(!idles, "a free place is taken before time passes", || {
                    format!("{waiting} wait and {taken} places are taken, before {entry}")
                })?;
            }
            match entry.what {
                What::Connects => waiting += 1,
                What::Connected | What::Rejected => waiting = waiting.saturating_sub(1),
                What::Serves => serves = true,
                What::ServeReturns | What::ServePanics | What::DropsServe | What::DropsLoop => {
                    serves = false;
                }
                What::FailAccepts(count) => failures += count,
                What::AcceptPaused => {
                    paused = true;
                    check(
                        failures > ERRORS_MAX || is_short(entry.at),
                        "accepts pause for a reason",
                        || entry.to_string(),
                    )?;
                }
                What::AcceptResumed(_) => paused = false,
                _ => {}
            }
            before = Some((entry.at, taken));
        }
        Ok(())
    }

    /// Who has closed its connection and comes back is not rejected for its own old place.
    fn who_closed_makes_room(&self) -> Judgement {
        let Some(limit) = self.world.settings.limit else {
            return Ok(());
        };
        for (place, entry) in self.trace.entries.iter().enumerate() {
            if entry.what != What::Rejected || self.shut_down.is_some_and(|end| end <= entry.at) {
                continue;
            }
            let came = self.visits[entry.visit.unwrap()].place_of(|what| *what == What::Connects);
            let justified = self
                .visits
                .iter()
                .filter(|visit| visit.holds_in_earnest(place, came));
            let count = justified.count();
            check(count >= limit, "a place that was left is free", || {
                format!("{entry}: only {count} of {limit} places are in use")
            })?;
        }
        Ok(())
    }

    fn the_drain_ends(&self) -> Judgement {
        const PROMISE: &str = "the drain ends at its deadline, or as soon as it can";
        let Some(shut_down) = self.shut_down else {
            return Ok(());
        };
        let drain = millis(self.world.settings.drain);
        let Some(returned) = self.returned.or(self.dropped) else {
            return check(false, PROMISE, || "serve does not return".to_owned());
        };
        let late = self.passed(shut_down, returned);
        check(returned <= shut_down + drain + late, PROMISE, || {
            format!("from {shut_down:?} to {returned:?}, and {drain:?} were given")
        })?;
        if self.dropped.is_some() {
            return Ok(());
        }
        let ends = self.visits.iter();
        let last = ends.filter_map(|visit| self.holds_up_until(visit, returned));
        let busy = last.max().unwrap_or(shut_down);
        let end = busy + MOMENT + self.passed(shut_down, returned);
        check(returned <= end, PROMISE, || {
            format!("nobody is waited for from {busy:?} on, and serve returns at {returned:?}")
        })?;
        let mut entries = self.trace.entries.iter();
        entries.find(|entry| matches!(entry.what, What::Draining(_) | What::ServeReturns));
        let late = entries.find(|entry| entry.what == What::Connects);
        check(
            late.is_none(),
            "after the shutdown connections are refused",
            || late.unwrap().to_string(),
        )
    }

    /// Until when a visit may hold up the end of the drain. None if it was never a connection of the server's.
    fn holds_up_until(&self, visit: &Visit<'_>, returned: Duration) -> Option<Duration> {
        visit.handled?;
        let mut entries = visit.entries.iter().rev().map(|(_, entry)| entry);
        let sent =
            entries.find(|entry| matches!(entry.what, What::Sends(_)) && entry.at <= returned);
        let ends = [
            visit.closed.map(|closed| closed.0),
            visit.let_go,
            sent.map(|entry| entry.at),
        ];
        let last = ends
            .into_iter()
            .flatten()
            .filter(|&at| at <= returned)
            .max();
        // Of a handler that has closed its half itself, and returned Ok, the kernel does not tell when the peer has all:
        // the server waits for that peer as without a drain. For others a second, in which the peer may close, too.
        let returned_ok = matches!(visit.ended, Some((_, What::Returns)));
        let half_closed = visit.has(|what| *what == What::ShutsDownItsHalf);
        // After an idle timeout the peer gets what the kernel holds, until that gives up.
        let timed_out = visit
            .closed
            .is_some_and(|closed| closed.1 == Reason::TimedOut);
        let patience = match returned_ok && half_closed {
            _ if timed_out => 3 * self.patience() + PATIENCE_WHILE_DRAINING,
            true => self.patience().max(PATIENCE_WHILE_DRAINING),
            false => PATIENCE_WHILE_DRAINING,
        };
        let takes = visit.peer.wire.takes(visit.peer_sent as usize);
        // Who has waited for its peer since before counts anew from the beginning of the drain.
        Some(last?.max(self.shut_down?) + takes + patience)
    }

    /// How long a peer may take nothing.
    fn patience(&self) -> Duration {
        self.world.settings.stall.map_or(PATIENCE, millis)
    }

    fn timers_are_on_time(&self) -> Judgement {
        for entry in &self.trace.entries {
            if let What::Fires { due } = entry.what {
                check(due.is_some(), "no timer fires early", || entry.to_string())?;
                let due = due.unwrap_or_default();
                let late = self.passed(entry.at - due, entry.at);
                check(due <= late, "timers fire in order and on time", || {
                    format!("{entry}, and {late:?} passed within polls")
                })?;
            }
        }
        Ok(())
    }

    fn nothing_is_left(&self) -> Judgement {
        const PROMISE: &str = "afterwards nothing is left";
        if let Some(returned) = self.returned {
            for visit in self
                .visits
                .iter()
                .filter(|visit| visit.has(|what| *what == What::Starts))
            {
                let over = visit.ended.is_some_and(|(at, _)| at <= returned);
                check(over, PROMISE, || {
                    format!("the handler of visit {} outlives serve", visit.number)
                })?;
            }
        }
        let (tasks, timers) = self.trace.left;
        check((tasks, timers) == (0, 0), PROMISE, || {
            format!("{tasks} tasks and {timers} timers outlive the server and its peers")
        })?;
        let (handlers, futures, wakers) = self.trace.outlive;
        check((handlers, futures, wakers) == (0, 0, 0), PROMISE, || {
            format!(
                "{handlers} handlers and connections, {futures} futures and {wakers} wakers outlive the loop"
            )
        })
    }

    fn all_have_their_turn(&self) -> Judgement {
        for &(tasks, polls) in &self.trace.waits {
            let most = 24 * (tasks + 4);
            check(polls <= most, "everybody who is ready has a turn", || {
                format!("one of {tasks} tasks had its turn after {polls} polls of others")
            })?;
        }
        for entry in &self.trace.entries {
            if let (What::Queues(lines), Some(visit)) = (&entry.what, entry.visit) {
                let peer = self.visits[visit].peer;
                let flows = peer.reads == Reads::Eagerly && peer.wire.buffers.is_none();
                check(
                    *lines <= 8 || !flows || !peer.wire.is_at_once(),
                    "everybody who is ready has a turn",
                    || format!("{entry}: the lines of a task that yields queue up"),
                )?;
            }
        }
        Ok(())
    }

    /// Every byte that a handler wrote before it returned `Ok` arrives, if the peer goes on taking.
    fn who_takes_gets_all(&self, visit: &Visit<'_>) -> Judgement {
        const PROMISE: &str = "who goes on taking gets all";
        let Some((closed, Reason::Completed, _, bytes_out)) = visit.closed else {
            return Ok(());
        };
        // A peer that has left takes nothing more, and who drops the server cuts all.
        let left_early = visit.left.is_some_and(|(_, early)| early);
        if left_early || self.dropped.is_some() {
            return Ok(());
        }
        // Time that passes within a poll stops the peer, too, and the kernel's patience with it goes on. So the peer has to
        // take in what is left of that.
        let (from, to) = (closed, visit.left.map_or(self.ended, |left| left.0));
        let handled = visit.handled.unwrap_or_default();
        let passed = self.passed_at_most(self.patience(), handled, to);
        if !visit.takes(self.patience().saturating_sub(passed)) {
            return Ok(());
        }
        // Where an accept finds no descriptor, the oldest of the connections that are being closed gives up its own.
        let is_short = self.paused.iter().any(|&(paused, resumed)| {
            let overlaps = |&(at, until): &(Duration, Duration)| {
                at.max(paused).max(from) <= until.min(resumed).min(to)
            };
            self.short.iter().any(overlaps)
        });
        if is_short {
            return Ok(());
        }
        // What is not taken by the end of the drain is left to the kernel.
        let drained = self
            .shut_down
            .map(|at| at + millis(self.world.settings.drain));
        if drained.is_some_and(|end| closed + PATIENCE_WHILE_DRAINING >= end) {
            return Ok(());
        }
        // A drain waits for a second for a peer that has all but what the smallest buffer holds. When it is closed by then,
        // one more line of the peer's resets it.
        let leaves = self
            .shut_down
            .map(|at| closed.max(at) + PATIENCE_WHILE_DRAINING);
        let is_late = |entry: &Entry| {
            matches!(entry.what, What::Sends(_)) && leaves.is_some_and(|leaves| entry.at >= leaves)
        };
        let says_more = visit.entries.iter().any(|(_, entry)| is_late(entry));
        let lost = bytes_out - visit.peer_got;
        check(
            lost == 0 || says_more && lost < LEAST_BUFFER,
            PROMISE,
            || {
                format!(
                    "visit {}: {} of {bytes_out} B arrived, and then {:?}",
                    visit.number, visit.peer_got, visit.saw
                )
            },
        )
    }

    /// A peer that was cut never sees a clean end behind a part.
    fn who_is_cut_sees_no_end(&self, visit: &Visit<'_>) -> Judgement {
        let cut = match (visit.closed, visit.ended) {
            (Some((_, reason, ..)), _) => reason != Reason::Completed,
            (None, Some((_, what))) => *what != What::Returns,
            _ => false,
        };
        let said_so = visit.has(|what| *what == What::ShutsDownItsHalf) || visit.peer.wire.unix;
        // Linux tells of a reset once: a send that fails leaves a clean end for the read.
        let told = visit.has(|what| matches!(what, What::CannotSend(_)));
        let clean = matches!(visit.saw, Some((_, None))) && !told;
        check(
            !cut || said_so || !clean,
            "who is cut sees no clean end",
            || format!("visit {}: {:?}", visit.number, visit.closed),
        )
    }

    /// Nobody is cut before a timeout's full time, and nobody who made progress.
    fn nobody_is_cut_early(&self, visit: &Visit<'_>) -> Judgement {
        const IDLE: &str = "nobody is idle before the full time";
        const STALL: &str = "nobody is stalled before the full time";
        if visit.peer.handler.first() == Some(&Step::LibraryEcho) {
            return self.an_echo_is_not_cut_early(visit);
        }
        let idle = self.world.settings.idle.map(millis);
        let stall = self.world.settings.stall.map(millis);
        let early = if self.world.is_real {
            NOTED_LATE
        } else {
            Duration::ZERO
        };
        let mut last = visit.handled;
        let mut write: Option<Duration> = None;
        let (mut waits, mut sent, mut read) = (0, 0, 0);
        let mut outstanding: Option<Duration> = None;
        for &(place, entry) in &visit.entries {
            if matches!(entry.what, What::Writes(_) | What::ShutsDownItsHalf) {
                outstanding.get_or_insert(entry.at);
            }
            match &entry.what {
                What::Sends(n) => sent += n,
                What::Reads(n) => {
                    read += n;
                    last = Some(entry.at);
                }
                What::Writes(_) => {
                    last = Some(entry.at);
                    write = None;
                }
                What::WaitsToWrite => {
                    write = Some(entry.at);
                    waits = place;
                }
                What::WriteIsDropped => write = None,
                What::CannotRead(Failure::Idle) => {
                    let lasted = entry.at - last.unwrap_or_default();
                    check(
                        idle.is_some_and(|idle| lasted + early >= idle),
                        IDLE,
                        || format!("{entry}, {lasted:?} after the last byte"),
                    )?;
                    // With faults the last look may find nothing though there is something.
                    let is_plain = visit.peer.wire.is_at_once() && visit.peer.faults.is_none();
                    check(!is_plain || sent <= read, IDLE, || {
                        format!("{entry}, and {} B lie unread", sent - read)
                    })?;
                    check(write.is_none(), IDLE, || {
                        format!("{entry}, and a write waits")
                    })?;
                    last = Some(entry.at);
                }
                What::CannotWrite(Failure::Stalled) | What::CannotRead(Failure::Stalled) => {
                    let patience = 3 * stall.unwrap_or_default();
                    let kernel = entry.at.saturating_sub(patience);
                    // Time that passes within a poll stops the peer, too: what it took says nothing then.
                    let stopped = self.has_passed(entry.at, patience);
                    let took_little = |from, places| {
                        stopped || visit.got_within(from, entry.at, places) < visit.window
                    };
                    // The kernel's own timeout counts also where no write waits, but not before something was sent.
                    let by_kernel = outstanding.is_some_and(|at| at <= kernel + early)
                        && took_little(kernel, 0..place);
                    let lasted = write.map_or(Duration::ZERO, |write| entry.at - write);
                    let by_write = stall.is_some_and(|stall| lasted + early >= stall)
                        && took_little(Duration::ZERO, waits..place);
                    check(by_kernel || by_write, STALL, || {
                        format!("{entry}, {lasted:?} after a write waits")
                    })?;
                    write = None;
                }
                What::Closed {
                    reason: Reason::TimedOut,
                    ..
                } => {
                    let dropped = matches!(visit.ended, Some((_, What::IsDropped)));
                    let lasted = entry.at - last.unwrap_or_default();
                    let idle_is_over = idle.is_some_and(|idle| lasted + early >= idle);
                    if dropped {
                        check(idle_is_over && write.is_none(), IDLE, || {
                            format!("{entry}, {lasted:?} after the last byte")
                        })?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What the library's echo does is not noted. So its peer has to have been silent.
    fn an_echo_is_not_cut_early(&self, visit: &Visit<'_>) -> Judgement {
        let Some((at, Reason::TimedOut, ..)) = visit.closed else {
            return Ok(());
        };
        let settings = &self.world.settings;
        let shortest = [settings.idle, settings.stall].into_iter().flatten().min();
        // It may have answered before; what it cannot have done is to be silent for longer than its peer.
        let came = visit.handled.unwrap_or_default();
        let enough = shortest.is_some_and(|time| at - came >= millis(time));
        check(enough, "nobody is idle before the full time", || {
            format!("visit {}: closed at {at:?}", visit.number)
        })
    }

    /// Who should be cut is, within a tenth of the time.
    fn who_is_idle_or_stalled_is_cut(&self, visit: &Visit<'_>) -> Judgement {
        let settings = &self.world.settings;
        let (Some(handled), false) = (
            visit.handled,
            visit.peer.handler.first() == Some(&Step::LibraryEcho),
        ) else {
            return Ok(());
        };
        let mut last = None;
        let mut write: Option<Duration> = None;
        let end = self.returned.or(self.dropped).unwrap_or(self.ended);
        let entries = visit.entries.iter();
        for &(place, entry) in entries.filter(|(_, entry)| (handled..=end).contains(&entry.at)) {
            let from_last = last.map(|last| (last, entry.at));
            if let (Some((from, to)), Some(idle), None) = (from_last, settings.idle, write) {
                let idle = millis(idle);
                let chance = (idle / 20).clamp(MOMENT, Duration::from_millis(100));
                let most = idle + chance + MOMENT + self.passed(from, to);
                let is_of_server = !matches!(
                    entry.what,
                    What::Gets(_)
                        | What::SeesEnd
                        | What::SeesError(_)
                        | What::Closes
                        | What::Resets
                        | What::Sends(_)
                        | What::CannotSend(_)
                        | What::HalfCloses
                        | What::GetsWrongBytes
                        | What::LetsGo
                );
                check(
                    !is_of_server || to - from <= most,
                    "who is idle is cut",
                    || format!("{entry}, {:?} after the last byte", to - from),
                )?;
            }
            if let (Some(from), Some(stall)) = (write, settings.stall) {
                let most = millis(stall) + MOMENT + self.passed(from, entry.at);
                let ends = matches!(
                    entry.what,
                    What::Writes(_) | What::CannotWrite(_) | What::WriteIsDropped
                );
                check(
                    !ends || entry.at - from <= most,
                    "who is stalled is cut",
                    || format!("{entry}, {:?} after it waits", entry.at - from),
                )?;
            }
            match &entry.what {
                What::Connected | What::Reads(_) | What::CannotRead(Failure::Idle) => {
                    last = Some(entry.at);
                }
                What::Writes(_) => {
                    last = Some(entry.at);
                    write = None;
                }
                What::WaitsToWrite => write = Some(entry.at),
                What::WriteIsDropped | What::CannotWrite(_) => {
                    write = None;
                    last = None;
                }
                What::Closed { .. } => last = None,
                // What happens from here on is the server's, which has other times for it.
                What::Returns | What::Fails | What::Panics | What::IsDropped | What::LetsGo
                    if visit.is_let_go(place) =>
                {
                    last = None;
                }
                _ => {}
            }
        }
        // And whoever was not cut at all.
        if let (Some(from), Some(idle), None) = (last, settings.idle, write)
            && visit.closed.is_none()
            && self.dropped.is_none()
        {
            let most = 2 * millis(idle) + self.passed(from, end);
            check(end <= from + most, "who is idle is cut", || {
                format!(
                    "visit {} is open, {:?} after the last byte",
                    visit.number,
                    end - from
                )
            })?;
        }
        Ok(())
    }

    /// After a handler's error the server reads 64 KiB at most.
    fn a_failure_ends_a_flood(&self, visit: &Visit<'_>) -> Judgement {
        let failed = visit.place_of(|what| *what == What::Fails);
        let sent: usize = visit
            .entries
            .iter()
            .filter(|(place, _)| *place > failed)
            .filter_map(|(_, entry)| match entry.what {
                What::Sends(n) => Some(n),
                _ => None,
            })
            .sum();
        let most = 64 * 1024 + visit.window + 8_192;
        check(sent <= most, "a failed handler leaves no flood", || {
            format!(
                "visit {}: its peer sent {sent} B after the error",
                visit.number
            )
        })
    }

    /// Everybody who waits is served or told.
    fn everybody_sees_an_end(&self, visit: &Visit<'_>) -> Judgement {
        let waits = visit.connected.is_some() && visit.left.is_none();
        let reads = visit.peer.reads != Reads::Never;
        let told = !waits || !reads || self.world.end.1 == End::DropLoop;
        // A slow reader may still be at it.
        let is_slow = visit
            .last_got
            .is_some_and(|at| self.ended - at < Duration::from_secs(30));
        check(
            told || is_slow,
            "everybody who waits is served or told",
            || format!("visit {} sees no end", visit.number),
        )
    }
}

/// Whether a visit holds a place.
#[derive(Clone, Copy, Default)]
struct Holder {
    connected: bool,
    ended: bool,
    let_go: bool,
    closed: bool,
}

impl Holder {
    fn note(&mut self, what: &What) {
        match what {
            What::Connected => self.connected = true,
            What::Returns | What::Fails | What::Panics | What::IsDropped => self.ended = true,
            What::LetsGo => self.let_go = true,
            What::Closed { .. } => self.closed = true,
            _ => {}
        }
    }

    fn holds(&self) -> bool {
        self.connected && !self.closed && !(self.ended && self.let_go)
    }
}

impl<'t> Visit<'t> {
    fn new(number: usize, peer: &'t Peer, is_real: bool) -> Visit<'t> {
        Visit {
            number,
            peer,
            window: match is_real {
                true => KERNELS_WINDOW,
                false => peer.wire.window(),
            },
            entries: Vec::new(),
            connected: None,
            handled: None,
            ended: None,
            let_go: None,
            closed: None,
            rejected: false,
            peer_sent: 0,
            peer_got: 0,
            handler_read: 0,
            handler_wrote: 0,
            saw: None,
            left: None,
            last_got: None,
        }
    }

    fn note(&mut self, place: usize, entry: &'t Entry) {
        self.entries.push((place, entry));
        let at = Some(entry.at);
        match &entry.what {
            What::Connects => self.connected = at,
            What::Connected => self.handled = at,
            What::Rejected => self.rejected = true,
            What::Sends(n) => {
                self.peer_sent += *n as u64;
            }
            What::Gets(n) => {
                self.peer_got += *n as u64;
                self.last_got = at;
            }
            What::Reads(n) => self.handler_read += *n as u64,
            What::Writes(n) => self.handler_wrote += *n as u64,
            What::SeesEnd => self.saw = Some((entry.at, None)),
            What::SeesError(kind) => self.saw = Some((entry.at, Some(*kind))),
            What::Closes | What::Resets => self.left = Some((entry.at, self.saw.is_none())),
            What::Returns | What::Fails | What::Panics | What::IsDropped => {
                self.ended = Some((entry.at, &entry.what));
            }
            What::LetsGo => self.let_go = at,
            What::Closed {
                reason,
                bytes_in,
                bytes_out,
                ..
            } => self.closed = Some((entry.at, *reason, *bytes_in, *bytes_out)),
            _ => {}
        }
    }

    fn has(&self, wanted: impl Fn(&What) -> bool) -> bool {
        self.entries.iter().any(|(_, entry)| wanted(&entry.what))
    }

    /// Whether its handler has ended by this place in the trace, and let the connection go.
    fn is_let_go(&self, place: usize) -> bool {
        let mut holder = Holder::default();
        let before = self.entries.iter().take_while(|(at, _)| *at <= place);
        before.for_each(|(_, entry)| holder.note(&entry.what));
        holder.ended && holder.let_go
    }

    fn place_of(&self, wanted: impl Fn(&What) -> bool) -> usize {
        let found = self.entries.iter().find(|(_, entry)| wanted(&entry.what));
        found.map_or(usize::MAX, |(place, _)| *place)
    }

    /// How much its peer got, of which the server could know.
    fn got_within(&self, from: Duration, to: Duration, places: Range<usize>) -> usize {
        let to = to.saturating_sub(self.peer.wire.takes(0));
        let before = self.entries.iter().filter(|(at, _)| places.contains(at));
        let within = before.filter(|(_, entry)| (from..=to).contains(&entry.at));
        within
            .filter_map(|(_, entry)| match entry.what {
                What::Gets(n) => Some(n),
                _ => None,
            })
            .sum()
    }

    /// Whether its peer goes on taking: within `patience` it takes more than lies on the way.
    fn takes(&self, patience: Duration) -> bool {
        let window = self.window as u32;
        let time = match self.peer.reads {
            Reads::Eagerly => Duration::ZERO,
            Reads::Slowly { piece, every } => millis(every) * window.div_ceil(piece as u32),
            Reads::After(time) => millis(time),
            Reads::Never => return false,
        };
        let wire = &self.peer.wire;
        let rate = wire.rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs_f64(f64::from(window) / rate as f64)
        });
        10 * (time + rate + millis(4 * wire.latency)) < 8 * patience
    }

    /// Whether at this place of the trace it holds a place that is not about to be free: neither had its peer left when
    /// another came, at `came`, nor does its handler wait to read what would be the end.
    fn holds_in_earnest(&self, place: usize, came: usize) -> bool {
        let mut holder = Holder::default();
        let (mut left, mut reads) = (false, false);
        for (at, entry) in self.entries.iter().take_while(|(at, _)| *at < place) {
            holder.note(&entry.what);
            match entry.what {
                What::Closes | What::Resets | What::HalfCloses if *at < came => left = true,
                What::WaitsToRead => reads = true,
                What::Reads(_) | What::ReadsEnd | What::CannotRead(_) => reads = false,
                _ => {}
            }
        }
        holder.holds() && !(left && reads && self.peer.wire.is_at_once())
    }
}
