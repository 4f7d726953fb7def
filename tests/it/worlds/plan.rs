//! A world as plain data, and how a seed draws one. Plain, so that it can be replayed, shrunk and told.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use super::trace::millis;

/// How many listeners a server has at most.
pub(super) const LISTENERS: usize = 3;

/// How many requests one peer makes at most, so that no world takes long.
const ROUNDS_MAX: usize = 100;

/// Milliseconds on the test clock.
pub(super) type Millis = u64;

/// Everything that happens to one server.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct World {
    pub(super) seed: u64,
    /// On real sockets and the system's clock.
    pub(super) is_real: bool,
    pub(super) settings: Settings,
    pub(super) peers: Vec<Peer>,
    pub(super) beside: Vec<(Millis, Beside)>,
    pub(super) happenings: Vec<(Millis, Happening)>,
    pub(super) end: (Millis, End),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    /// The peers take turns in connecting to them. On real sockets the second is a Unix one.
    pub(super) listeners: usize,
    pub(super) limit: Option<usize>,
    pub(super) reject: bool,
    pub(super) idle: Option<Millis>,
    pub(super) stall: Option<Millis>,
    pub(super) drain: Millis,
    pub(super) propagate: bool,
    /// For how long the program computes before it serves, after the first peers have connected.
    pub(super) set_up: Millis,
}

/// Somebody who connects, and the handler of that connection.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Peer {
    pub(super) at: Millis,
    pub(super) wire: Wire,
    /// Short, interrupted and untimely calls on the server's end, drawn from this.
    pub(super) faults: Option<u64>,
    /// Events of the server's end that are told a turn late, drawn from this, where there are no faults.
    pub(super) late_events: Option<u64>,
    pub(super) reads: Reads,
    pub(super) says: Vec<Say>,
    /// How long it stays after it has seen the end.
    pub(super) stays: Millis,
    /// How often it connects again when its connection has ended.
    pub(super) returns: u32,
    pub(super) handler: Vec<Step>,
    /// The handler ends its input when the server drains and the connection is quiet.
    pub(super) ends_when_draining: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wire {
    pub(super) unix: bool,
    /// The sizes of a send and a receive buffer, in bytes.
    pub(super) buffers: Option<(usize, usize)>,
    pub(super) segment: Option<usize>,
    pub(super) latency: Millis,
    /// In bytes a second.
    pub(super) rate: Option<u64>,
}

/// How a peer reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reads {
    Eagerly,
    Slowly { piece: usize, every: Millis },
    After(Millis),
    Never,
}

/// What a peer does beside reading, one thing after another. Then it waits for the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Say {
    Send(usize),
    Wait(Millis),
    HalfClose,
    Close,
    Reset,
}

/// What a handler does, one thing after another. It returns `Ok` after the last, or when the input ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    /// Answers every chunk with itself, to the end of the input.
    Echo,
    /// The library's.
    LibraryEcho,
    Read(usize),
    Write(usize),
    Think(Millis),
    Compute(Millis),
    /// Reads requests of this size, thinks, and replies, to the end of the input.
    Serve {
        request: usize,
        think: Millis,
        reply: usize,
    },
    /// Writes, and reads to the end of the input at the same time.
    WriteWhileReading(usize),
    /// Reads requests of this size, and asks another server for the reply.
    Ask(usize),
    /// Writes lines that another task makes, which yields after each.
    Feed(usize),
    /// Reads; when that fails, writes a farewell and returns `Ok`.
    ReadOrTakeLeave(usize),
    /// For something that never comes.
    WaitForever,
    /// Gives the connection to another task, which writes so many bytes after a while and drops it.
    PassOn {
        after: Millis,
        write: usize,
    },
    HalfClose,
    Fail,
    Panic,
    /// Before its future is made, in the closure that is given to `serve`. Only as the first.
    PanicAtOnce,
    /// From here on it holds a value that panics when it is dropped.
    HoldBomb,
}

/// Tasks beside the server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Beside {
    /// Is always ready, for so many polls.
    Yields(u32),
    /// Two tasks that wake each other, so many times.
    PingPong(u32),
    /// So many timers, within a time.
    Timers(u32, Millis),
    /// A task that another thread wakes.
    Thread,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Happening {
    /// The process stands still for so long.
    Stop(Millis),
    /// There are no descriptors for so long.
    NoDescriptors(Millis),
    /// So many accepts fail, each with an error of its own connection.
    FailedAccepts(u64),
}

/// How the world ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    ShutDown,
    /// The drain is cut short after this time: `serve` is dropped.
    SecondSignal(Millis),
    DropServe,
    DropLoop,
}

impl World {
    pub(super) fn from_seed(seed: u64) -> World {
        let rng = &mut Rng::with_seed(seed);
        let settings = Settings {
            listeners: if one_in(rng, 4) {
                rng.usize(2..=LISTENERS)
            } else {
                1
            },
            limit: one_in(rng, 2).then(|| {
                let most = pick(rng, &[1, 3, 20]);
                rng.usize(1..=most)
            }),
            reject: one_in(rng, 2),
            idle: one_in(rng, 2).then(|| pick(rng, &[100, 500, 2_000, 10_000])),
            stall: one_in(rng, 2).then(|| pick(rng, &[200, 1_000, 5_000, 60_000])),
            drain: pick(rng, &[0, 300, 2_000, 5_000, 60_000]),
            propagate: one_in(rng, 20),
            set_up: if one_in(rng, 8) { rng.u64(1..5_000) } else { 0 },
        };
        let count = match rng.u8(..100) {
            0..2 => rng.usize(21..=200),
            2..15 => rng.usize(5..=20),
            _ => rng.usize(1..=4),
        };
        let span = pick(rng, &[1, 500, 3_000]);
        let at = match rng.u8(..10) {
            0..6 => rng.u64(..6_000),
            _ => rng.u64(6_000..120_000),
        };
        let peers = (0..count).map(|_| match one_in(rng, 12) {
            true => late_peer(rng, &settings, at),
            false => peer(rng, &settings, span, count),
        });
        let peers = peers.collect();
        let beside = some(rng, 3, |rng| (rng.u64(..3_000), beside(rng)));
        let happenings = some(rng, 4, |rng| (rng.u64(..4_000), happening(rng)));
        let end = match rng.u8(..20) {
            0 => End::SecondSignal(rng.u64(..2_000)),
            1 => End::DropServe,
            2 => End::DropLoop,
            _ => End::ShutDown,
        };
        World {
            seed,
            is_real: false,
            settings,
            peers,
            beside,
            happenings,
            end: (at, end),
        }
    }
}

/// The longest wait on the system's clock.
const LONGEST: Millis = 300;

impl World {
    /// The same world on real sockets, with short times and few peers.
    pub(super) fn made_real(mut self) -> World {
        let short = |time: &mut Millis| *time = (*time / 10).min(LONGEST);
        let timeout = |time: &mut Millis| *time = (*time / 10).clamp(100, LONGEST);
        self.is_real = true;
        self.peers.truncate(8);
        self.beside.truncate(2);
        self.happenings
            .retain(|(_, happening)| matches!(happening, Happening::Stop(_)));
        self.settings.listeners = self.settings.listeners.min(2);
        self.settings.idle.iter_mut().for_each(timeout);
        self.settings.stall.iter_mut().for_each(timeout);
        self.settings.drain = self.settings.drain.min(2_500);
        short(&mut self.settings.set_up);
        short(&mut self.end.0);
        if let End::SecondSignal(time) = &mut self.end.1 {
            short(time);
        }
        let times = self.beside.iter_mut().map(|(at, _)| at);
        times
            .chain(self.happenings.iter_mut().map(|(at, _)| at))
            .for_each(short);
        for (_, happening) in &mut self.happenings {
            if let Happening::Stop(time) = happening {
                short(time);
            }
        }
        for (_, beside) in &mut self.beside {
            if let Beside::Timers(_, within) = beside {
                short(within);
            }
        }
        for (index, peer) in self.peers.iter_mut().enumerate() {
            peer.wire = Wire {
                unix: index % self.settings.listeners == 1,
                ..Wire::default()
            };
            (peer.faults, peer.late_events) = (None, None);
            short(&mut peer.at);
            short(&mut peer.stays);
            if let Reads::Slowly { every: time, .. } | Reads::After(time) = &mut peer.reads {
                short(time);
            }
            for say in &mut peer.says {
                if let Say::Wait(time) = say {
                    short(time);
                }
            }
            for step in &mut peer.handler {
                if let Step::Think(time)
                | Step::Compute(time)
                | Step::Serve { think: time, .. }
                | Step::PassOn { after: time, .. } = step
                {
                    short(time);
                }
            }
        }
        self
    }
}

fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(..n) == 0
}

fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(..choices.len())]
}

/// None, as often as not; up to `most` otherwise.
fn some<T>(rng: &mut Rng, most: usize, mut draw: impl FnMut(&mut Rng) -> T) -> Vec<T> {
    let count = if one_in(rng, 2) {
        0
    } else {
        rng.usize(1..=most)
    };
    (0..count).map(|_| draw(rng)).collect()
}

/// A size: often a few bytes, now and then more than all buffers hold.
fn size(rng: &mut Rng, most: usize) -> usize {
    let most = match rng.u8(..10) {
        0..4 => 20,
        4..8 => 5_000,
        _ => most,
    };
    rng.usize(1..=most)
}

/// A time near the timeouts of the server, since that is where they are to be right.
fn moment(rng: &mut Rng, settings: &Settings) -> Millis {
    let near = [settings.idle, settings.stall, Some(1_000), Some(300)];
    match near[rng.usize(..near.len())] {
        Some(time) => match rng.u8(..4) {
            0 => time * rng.u64(50..100) / 100,
            1 => time * rng.u64(100..150) / 100,
            2 => rng.u64(..=time),
            _ => time * rng.u64(1..4),
        },
        None => rng.u64(..1_000),
    }
}

fn beside(rng: &mut Rng) -> Beside {
    match rng.u8(..10) {
        0..4 => Beside::Yields(rng.u32(1..500)),
        4..6 => Beside::PingPong(rng.u32(1..300)),
        6..9 => Beside::Timers(rng.u32(1..40), rng.u64(1..5_000)),
        _ => Beside::Thread,
    }
}

fn happening(rng: &mut Rng) -> Happening {
    match rng.u8(..4) {
        0 => Happening::NoDescriptors(rng.u64(1..2_000)),
        1 => Happening::FailedAccepts(rng.u64(1..150)),
        _ => Happening::Stop(rng.u64(1..6_000)),
    }
}

fn wire(rng: &mut Rng) -> Wire {
    Wire {
        unix: one_in(rng, 5),
        buffers: (!one_in(rng, 3)).then(|| {
            let size = |rng: &mut Rng| pick(rng, &[4_096, 16_384, 65_536, 200_000]);
            (size(rng), size(rng))
        }),
        segment: one_in(rng, 3).then(|| pick(rng, &[500, 1_448, 16_000])),
        latency: pick(rng, &[0, 0, 0, 1, 20, 150]),
        rate: one_in(rng, 5).then(|| pick(rng, &[20_000, 200_000, 5_000_000])),
    }
}

fn peer(rng: &mut Rng, settings: &Settings, span: Millis, count: usize) -> Peer {
    // A crowd says little each, so that no world takes long.
    let most = if count > 20 { 2_000 } else { 300_000 };
    let (says, handler) = exchange(rng, settings, most);
    let reads = match rng.u8(..10) {
        0..5 => Reads::Eagerly,
        5..8 => Reads::Slowly {
            piece: pick(rng, &[500, 2_000, 10_000, 40_000]),
            every: pick(rng, &[1, 10, 50, 200, 1_000]),
        },
        8 => Reads::After(moment(rng, settings)),
        _ => Reads::Never,
    };
    let most = says.iter().map(|say| match say {
        Say::Send(n) => *n,
        _ => 0,
    });
    // One byte at a time, much takes long.
    let is_short = most.sum::<usize>() < 20_000;
    Peer {
        at: rng.u64(..span),
        wire: wire(rng),
        faults: one_in(rng, if is_short { 3 } else { 12 }).then(|| rng.u64(..)),
        late_events: one_in(rng, 2).then(|| rng.u64(..)),
        reads,
        says,
        stays: if one_in(rng, 4) {
            moment(rng, settings)
        } else {
            0
        },
        returns: if one_in(rng, 4) { rng.u32(1..4) } else { 0 },
        handler,
        ends_when_draining: one_in(rng, 2),
    }
}

/// A peer that reads a reply slowly while the server drains, and says one more line meanwhile.
fn late_peer(rng: &mut Rng, settings: &Settings, end: Millis) -> Peer {
    let most = 80_000;
    let (before, reply) = (rng.u64(..1_000), rng.usize(2_000..most));
    let request = rng.usize(1..20);
    Peer {
        at: end.saturating_sub(before),
        wire: Wire {
            buffers: one_in(rng, 2).then_some((most, most)),
            ..Wire::default()
        },
        reads: Reads::Slowly {
            piece: reply.div_ceil(rng.usize(1..50)),
            every: pick(rng, &[50, 200, 1_000]),
        },
        says: vec![
            Say::Send(request),
            Say::Wait(before + rng.u64(..4_000)),
            Say::Send(rng.usize(1..20)),
        ],
        handler: vec![Step::Serve {
            request,
            think: 0,
            reply,
        }],
        ends_when_draining: true,
        ..peer(rng, settings, 1, 1)
    }
}

/// What a peer says, and what its handler makes of it.
fn exchange(rng: &mut Rng, settings: &Settings, most: usize) -> (Vec<Say>, Vec<Step>) {
    let mut says = Vec::new();
    let mut steps = Vec::new();
    let bomb = one_in(rng, 12);
    match rng.u8(..14) {
        13 => steps.push(Step::PanicAtOnce),
        0 => steps.push(if one_in(rng, 2) {
            Step::Echo
        } else {
            Step::LibraryEcho
        }),
        1 => {
            let (request, reply) = (size(rng, 20), size(rng, most));
            let think = if one_in(rng, 2) {
                moment(rng, settings)
            } else {
                0
            };
            steps.push(Step::Serve {
                request,
                think,
                reply,
            });
        }
        // Pushes, whatever the peer says.
        2 => {
            for _ in 0..rng.u8(1..6) {
                steps.push(Step::Write(size(rng, most / 4)));
                steps.push(Step::Think(moment(rng, settings)));
            }
        }
        // A large reply to a line.
        3 | 4 => steps.extend([Step::Read(1), Step::Write(rng.usize(1..=most))]),
        5 => steps.push(Step::WriteWhileReading(rng.usize(1..=most))),
        6 => steps.extend([Step::Read(1), Step::WaitForever]),
        7 => {
            for _ in 0..rng.u8(1..4) {
                let compute = Step::Compute(moment(rng, settings));
                steps.extend([
                    Step::Read(size(rng, 20)),
                    compute,
                    Step::Write(size(rng, most)),
                ]);
            }
        }
        8 => {
            let after = moment(rng, settings);
            let write = size(rng, most);
            steps.extend([Step::Read(1), Step::PassOn { after, write }]);
        }
        // A failure, and a flood.
        9 => {
            steps.extend([Step::Write(size(rng, most)), Step::Read(size(rng, 5_000))]);
            steps.push(Step::Fail);
            says.push(Say::Send(rng.usize(1..=2 * most)));
        }
        10 => steps.push(Step::Ask(size(rng, 5_000))),
        11 => steps.push(Step::Feed(rng.usize(1..300))),
        _ => steps.extend((0..rng.u8(1..5)).map(|_| step(rng, settings, most))),
    }
    if bomb {
        steps.insert(0, Step::HoldBomb);
    }
    for _ in 0..rng.u8(..6) {
        says.push(say(rng, settings, most));
    }
    let said: usize = says
        .iter()
        .map(|say| match say {
            Say::Send(n) => *n,
            _ => 0,
        })
        .sum();
    for step in &mut steps {
        if let Step::Serve { request, reply, .. } = step {
            *request = (*request).max(said / ROUNDS_MAX);
            *reply = (*reply).min(most / (said / *request).max(1)).max(1);
        }
    }
    if let Some(at) = says
        .iter()
        .position(|say| matches!(say, Say::Close | Say::Reset))
    {
        says.truncate(at + 1);
    }
    (says, steps)
}

fn step(rng: &mut Rng, settings: &Settings, most: usize) -> Step {
    match rng.u8(..14) {
        0..3 => Step::Read(size(rng, 5_000)),
        3..6 => Step::Write(size(rng, most)),
        6 => Step::Think(moment(rng, settings)),
        7 => Step::Compute(moment(rng, settings)),
        8 => Step::ReadOrTakeLeave(size(rng, 5_000)),
        9 => Step::HalfClose,
        10 => Step::Fail,
        11 => Step::Panic,
        12 => Step::Echo,
        _ => Step::WaitForever,
    }
}

fn say(rng: &mut Rng, settings: &Settings, most: usize) -> Say {
    match rng.u8(..20) {
        0..9 => Say::Send(size(rng, most)),
        9..16 => Say::Wait(moment(rng, settings)),
        16..18 => Say::HalfClose,
        18 => Say::Close,
        _ => Say::Reset,
    }
}

impl Wire {
    /// How many bytes may lie between the two ends, in one direction.
    pub(super) fn window(&self) -> usize {
        let (send, receive) = self.buffers.unwrap_or(match self.unix {
            true => (65_536, 0),
            false => (16_384, 65_536),
        });
        let receive = if self.unix { 0 } else { receive };
        send + receive
    }

    /// Whether what is sent is there at once.
    pub(super) fn is_at_once(&self) -> bool {
        self.unix || (self.latency == 0 && self.rate.is_none())
    }

    /// How long so many bytes take at most, where somebody takes them at once.
    pub(super) fn takes(&self, bytes: usize) -> Duration {
        if self.is_at_once() {
            return Duration::ZERO;
        }
        let receive = self.buffers.map_or(65_536, |(_, receive)| receive);
        let round_trips = 4 + 4 * bytes / receive;
        let rate = self.rate.map_or(0.0, |rate| bytes as f64 / rate as f64);
        millis(2 * self.latency) * round_trips as u32 + Duration::from_secs_f64(rate)
    }
}

impl fmt::Display for World {
    /// A few lines that a person can read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "a server with {}", self.settings)?;
        let mut number = 0;
        for alike in self.peers.chunk_by(|a, b| a == b) {
            let last = number + alike.len() - 1;
            match alike.len() {
                1 => writeln!(f, "peer {number} {}", alike[0])?,
                _ => writeln!(f, "each of the peers {number} to {last} {}", alike[0])?,
            }
            number = last + 1;
        }
        for (at, beside) in &self.beside {
            writeln!(f, "at {at} ms: a task {beside}")?;
        }
        for (at, happening) in &self.happenings {
            writeln!(f, "at {at} ms: {happening}")?;
        }
        write!(f, "at {} ms: {}", self.end.0, self.end.1)
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.listeners > 1 {
            parts.push(format!("{} listeners", self.listeners));
        }
        if let Some(limit) = self.limit {
            let others = if self.reject { "rejects" } else { "lets wait" };
            parts.push(format!("a limit of {limit} ({others} others)"));
        }
        parts.extend(self.idle.map(|time| format!("idle timeout {time} ms")));
        parts.extend(self.stall.map(|time| format!("stall timeout {time} ms")));
        parts.push(format!("drain {} ms", self.drain));
        if self.propagate {
            parts.push("panics propagated".to_owned());
        }
        if self.set_up > 0 {
            parts.push(format!("a set-up of {} ms", self.set_up));
        }
        f.write_str(&parts.join(", "))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connects at {} ms{}", self.at, self.wire)?;
        if let Some(faults) = self.faults {
            write!(f, " with faults {faults}")?;
        }
        if let (Some(seed), None) = (self.late_events, self.faults) {
            write!(f, " with late events {seed}")?;
        }
        match self.reads {
            Reads::Eagerly => write!(f, ", reads")?,
            Reads::Slowly { piece, every } => write!(f, ", reads {piece} B every {every} ms")?,
            Reads::After(time) => write!(f, ", reads after {time} ms")?,
            Reads::Never => write!(f, ", never reads")?,
        }
        for say in &self.says {
            match say {
                Say::Send(n) => write!(f, ", sends {n} B")?,
                Say::Wait(time) => write!(f, ", waits {time} ms")?,
                Say::HalfClose => write!(f, ", half-closes")?,
                Say::Close => write!(f, ", closes")?,
                Say::Reset => write!(f, ", resets")?,
            }
        }
        if self.stays > 0 {
            write!(f, ", stays {} ms", self.stays)?;
        }
        if self.returns > 0 {
            write!(f, ", comes back {} times", self.returns)?;
        }
        let steps: Vec<String> = self
            .handler
            .iter()
            .map(|step| format!("{step:?}"))
            .collect();
        let drains = if self.ends_when_draining {
            "; ends when draining"
        } else {
            ""
        };
        write!(f, "\n  handler: {}{drains}", steps.join(", "))
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unix {
            write!(f, " over Unix")?;
        }
        if let Some((send, receive)) = self.buffers {
            write!(f, ", buffers {send}/{receive} B")?;
        }
        if let Some(segment) = self.segment {
            write!(f, ", segments {segment} B")?;
        }
        if self.latency > 0 {
            write!(f, ", latency {} ms", self.latency)?;
        }
        if let Some(rate) = self.rate {
            write!(f, ", {rate} B/s")?;
        }
        Ok(())
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Beside::Yields(polls) => write!(f, "yields {polls} times"),
            Beside::PingPong(rounds) => write!(f, "and another wake each other {rounds} times"),
            Beside::Timers(count, within) => write!(f, "sets {count} timers within {within} ms"),
            Beside::Thread => write!(f, "is woken by another thread"),
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Happening::Stop(time) => write!(f, "the process is stopped for {time} ms"),
            Happening::NoDescriptors(time) => write!(f, "no descriptors for {time} ms"),
            Happening::FailedAccepts(count) => write!(f, "{count} accepts fail"),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::ShutDown => write!(f, "shutdown"),
            End::SecondSignal(time) => write!(f, "shutdown, and serve is dropped {time} ms later"),
            End::DropServe => write!(f, "serve is dropped"),
            End::DropLoop => write!(f, "the loop is dropped"),
        }
    }
}
