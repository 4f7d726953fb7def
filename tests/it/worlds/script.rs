//! The in-memory connection is as Linux's: a random script of system calls runs on both, and every result is compared.
//!
//! Most scripts move so few bytes that no buffer fills, and are compared to the byte. The others fill buffers, whose
//! room Linux counts in what it allocates: there a write that gets something is the same as one that would block, and
//! what a drain reads may be more or less, but comes in order and ends alike.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
    sockopt,
};
use tinyloop::testing::{RawListener, RawSocket, Wire};

/// How long the kernel may take to do what it does behind a call.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most connections of a script.
const CONNECTIONS: usize = 3;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Tcp,
    Unix,
}

/// What a script runs on.
#[derive(Clone, Copy)]
struct Setting {
    kind: Kind,
    send: usize,
    receive: usize,
    backlog: usize,
}

/// One step. Ends are numbered: the first connection's client is 0, its server's end 1. A step of an end that is not
/// there does nothing.
#[derive(Clone, Copy)]
enum Step {
    Connect,
    Accept,
    CloseListener,
    Write(usize, usize),
    Read(usize, usize),
    /// Writes until there is no room.
    Fill(usize),
    /// Reads until there is nothing.
    Drain(usize),
    ShutDown(usize),
    Close(usize),
    Reset(usize),
    Wait,
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Nothing,
    Done,
    Bytes(usize),
    Error(Errno),
    /// Nothing more came, though not all had come.
    Lost,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |end: &usize| format!("{} {}", ["client", "server"][end % 2], end / 2 + 1);
        match self {
            Step::Connect => write!(f, "connect"),
            Step::Accept => write!(f, "accept"),
            Step::CloseListener => write!(f, "close the listener"),
            Step::Write(end, count) => write!(f, "{} writes {count}", name(end)),
            Step::Read(end, count) => write!(f, "{} reads {count}", name(end)),
            Step::Fill(end) => write!(f, "{} writes until full", name(end)),
            Step::Drain(end) => write!(f, "{} reads until empty", name(end)),
            Step::ShutDown(end) => write!(f, "{} shuts down", name(end)),
            Step::Close(end) => write!(f, "{} closes", name(end)),
            Step::Reset(end) => write!(f, "{} resets", name(end)),
            Step::Wait => write!(f, "wait"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Nothing => write!(f, "-"),
            Outcome::Done => write!(f, "done"),
            Outcome::Bytes(count) => write!(f, "{count} bytes"),
            Outcome::Lost => write!(f, "bytes are lost"),
            Outcome::Error(errno) => write!(f, "{:?}", errno.kind()),
        }
    }
}

/// A setting and a script, from a seed.
fn script(seed: u64, kind: Kind) -> (Setting, Vec<Step>) {
    let mut random = Rng::with_seed(seed);
    let fills = random.u8(..10) == 0;
    let mut size = |small: [usize; 2], large| match fills {
        true => random.choice(small).unwrap(),
        false => large,
    };
    let setting = Setting {
        kind,
        // Filled, the sender holds more than the receiver's system can still make room for, by packing what it has.
        send: size([128 << 10, 256 << 10], 1 << 20),
        receive: size([16 << 10, 32 << 10], 1 << 20),
        // A TCP listener with a full queue lets a client try again after a second.
        backlog: match kind {
            Kind::Tcp => CONNECTIONS,
            Kind::Unix => random.usize(..=CONNECTIONS),
        },
    };
    let count = random.usize(2..=40);
    let mut steps = vec![Step::Connect, Step::Accept];
    let ends = 2 * random.usize(1..=CONNECTIONS);
    // A script has one or two ends that come to their ends early, as a rule, and others that go on.
    while steps.len() < count {
        let end = random.usize(..ends);
        let bytes = [1, 10, 100, if fills { 100 } else { 1000 }][random.usize(..4)];
        steps.push(match random.u8(..100) {
            0..6 => Step::Connect,
            6..12 => Step::Accept,
            12 => Step::CloseListener,
            13..18 if fills => Step::Fill(end),
            18..24 if fills => Step::Drain(end),
            13..45 => Step::Write(end, random.usize(1..=bytes)),
            45..78 => Step::Read(end, random.usize(1..=bytes)),
            78..85 => Step::ShutDown(end),
            85..93 => Step::Close(end),
            93..97 => Step::Reset(end),
            _ => Step::Wait,
        });
    }
    (setting, steps)
}

/// The system calls of one end.
trait Socket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn shut_down(&self) -> io::Result<()>;
    fn reset(&self);
    fn events(&self) -> PollFlags;
}

/// A listener, and whoever connects to it.
trait System {
    fn connect(&mut self) -> io::Result<Box<dyn Socket>>;
    fn accept(&mut self) -> Option<io::Result<Box<dyn Socket>>>;
    fn close_listener(&mut self);
}

impl Socket for RawSocket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read(buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    fn shut_down(&self) -> io::Result<()> {
        self.shutdown_write()
    }

    fn reset(&self) {
        self.reset();
    }

    fn events(&self) -> PollFlags {
        PollFlags::from_bits_retain(self.events())
    }
}

struct Model {
    listener: RawListener,
    is_open: bool,
    wire: Wire,
}

impl Model {
    fn new(setting: Setting) -> Model {
        let wire = match setting.kind {
            Kind::Tcp => Wire::tcp(),
            Kind::Unix => Wire::unix(),
        };
        Model {
            listener: RawListener::new(setting.backlog),
            is_open: true,
            wire: wire.buffers(setting.send, setting.receive),
        }
    }
}

impl System for Model {
    fn connect(&mut self) -> io::Result<Box<dyn Socket>> {
        let socket = self.listener.connect(self.wire.clone())?;
        Ok(Box::new(socket))
    }

    fn accept(&mut self) -> Option<io::Result<Box<dyn Socket>>> {
        let accept = || Ok(Box::new(self.listener.accept()?) as _);
        self.is_open.then(accept)
    }

    fn close_listener(&mut self) {
        self.is_open = false;
        self.listener.close();
    }
}

struct KernelSocket {
    socket: OwnedFd,
    kind: Kind,
}

impl Socket for KernelSocket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (count, _) = net::recv(&self.socket, buffer, RecvFlags::DONTWAIT)?;
        Ok(count)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(net::send(&self.socket, bytes, flags)?)
    }

    fn shut_down(&self) -> io::Result<()> {
        Ok(net::shutdown(&self.socket, Shutdown::Write)?)
    }

    /// As the library does it.
    fn reset(&self) {
        match self.kind {
            Kind::Tcp => drop(net::connect_unspec(&self.socket)),
            Kind::Unix => drop(net::shutdown(&self.socket, Shutdown::Both)),
        }
    }

    fn events(&self) -> PollFlags {
        let asked = PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP;
        let mut polled = [PollFd::new(&self.socket, asked)];
        poll(&mut polled, Some(&Timespec::default())).unwrap();
        polled[0].revents()
    }
}

struct Kernel {
    setting: Setting,
    listener: Option<OwnedFd>,
    tcp: Option<SocketAddr>,
    unix: Option<SocketAddrUnix>,
}

impl Kernel {
    fn new(setting: Setting, seed: u64) -> Kernel {
        let mut kernel = Kernel {
            setting,
            listener: None,
            tcp: None,
            unix: None,
        };
        match setting.kind {
            Kind::Tcp => {
                // Many addresses, so that the ports of connections that were closed lately are enough.
                let addr = Ipv4Addr::new(127, 1, (seed >> 8) as u8, seed as u8);
                let listener = TcpListener::bind((addr, 0)).unwrap();
                kernel.tcp = listener.local_addr().ok();
                kernel.listener = Some(listener.into());
            }
            Kind::Unix => {
                let name = format!("tinyloop script {} {seed}", std::process::id());
                let addr = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
                let listener = kernel.socket(AddressFamily::UNIX);
                net::bind(&listener, &addr).unwrap();
                net::listen(&listener, setting.backlog as i32).unwrap();
                kernel.unix = Some(addr);
                kernel.listener = Some(listener);
            }
        }
        kernel.set_buffers(kernel.listener.as_ref().unwrap());
        kernel
    }

    fn set_buffers(&self, socket: &OwnedFd) {
        sockopt::set_socket_send_buffer_size(socket, self.setting.send).unwrap();
        sockopt::set_socket_recv_buffer_size(socket, self.setting.receive).unwrap();
        if self.setting.kind == Kind::Tcp {
            sockopt::set_tcp_nodelay(socket, true).unwrap();
        }
    }

    fn socket(&self, family: AddressFamily) -> OwnedFd {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        net::socket_with(family, SocketType::STREAM, flags, None).unwrap()
    }

    fn end(&self, socket: OwnedFd) -> Box<dyn Socket> {
        self.set_buffers(&socket);
        let kind = self.setting.kind;
        Box::new(KernelSocket { socket, kind })
    }
}

impl System for Kernel {
    fn connect(&mut self) -> io::Result<Box<dyn Socket>> {
        let socket = match (&self.tcp, &self.unix) {
            (Some(addr), _) => TcpStream::connect(addr)?.into(),
            (_, Some(addr)) => {
                let socket = self.socket(AddressFamily::UNIX);
                net::connect(&socket, addr)?;
                socket
            }
            _ => unreachable!("it listens on one of the two"),
        };
        Ok(self.end(socket))
    }

    fn accept(&mut self) -> Option<io::Result<Box<dyn Socket>>> {
        let listener = self.listener.as_ref()?;
        let mut polled = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut polled, Some(&Timespec::default())).unwrap() == 0 {
            return Some(Err(Errno::AGAIN.into()));
        }
        let accepted = net::accept_with(listener, SocketFlags::CLOEXEC);
        Some(accepted.map(|socket| self.end(socket)).map_err(Into::into))
    }

    fn close_listener(&mut self) {
        self.listener = None;
    }
}

struct End {
    socket: Box<dyn Socket>,
    written: usize,
    read: usize,
    /// It has written more than its peer had room for, and the peer has not read it all since.
    is_full: bool,
}

/// A system and the ends that a script has there.
struct Side {
    system: Box<dyn System>,
    ends: Vec<Option<End>>,
    /// How many bytes each end had written that was closed.
    accepted: usize,
    /// How long to wait for an expected result.
    patience: Duration,
}

/// The byte at a place of a direction.
fn byte(place: usize) -> u8 {
    (place % 251) as u8
}

thread_local! {
    /// More than one direction carries in a script, from each of the bytes that a piece may start with.
    static PATTERN: RefCell<Vec<u8>> = RefCell::new((0..251 + PIECE).map(byte).collect());
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}
const PIECE: usize = 64 * 1024;

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or_else(|| panic!("no number: {error}"))
}

impl Side {
    fn new(system: Box<dyn System>, patience: Duration) -> Side {
        Side {
            system,
            ends: Vec::new(),
            accepted: 0,
            patience,
        }
    }

    /// Does what `step` says. If the result is another than `expected`, but could come to be that, waits for it.
    fn play(&mut self, step: Step, expected: Option<Outcome>) -> Outcome {
        let start = Instant::now();
        loop {
            let outcome = self.try_step(step, expected);
            let may_come = match (outcome, expected) {
                (Outcome::Error(Errno::AGAIN), Some(expected)) => expected != outcome,
                _ => false,
            };
            if !may_come || start.elapsed() > self.patience {
                return outcome;
            }
            thread::yield_now();
        }
    }

    fn try_step(&mut self, step: Step, expected: Option<Outcome>) -> Outcome {
        let end = |socket| {
            Some(End {
                socket,
                written: 0,
                read: 0,
                is_full: false,
            })
        };
        let result = match step {
            Step::Connect if self.ends.len() == 2 * CONNECTIONS => return Outcome::Nothing,
            Step::Connect => self.system.connect().map(|socket| {
                self.ends.extend([end(socket), None]);
                Outcome::Done
            }),
            Step::Accept => match self.system.accept() {
                None => return Outcome::Nothing,
                Some(accepted) => accepted.map(|socket| {
                    self.ends[2 * self.accepted + 1] = end(socket);
                    self.accepted += 1;
                    Outcome::Done
                }),
            },
            Step::CloseListener => {
                self.system.close_listener();
                return Outcome::Done;
            }
            Step::Wait => {
                if !self.patience.is_zero() {
                    thread::sleep(Duration::from_micros(100));
                }
                return Outcome::Done;
            }
            Step::Write(at, _)
            | Step::Read(at, _)
            | Step::Fill(at)
            | Step::Drain(at)
            | Step::ShutDown(at)
            | Step::Close(at)
            | Step::Reset(at) => {
                let Some(Some(end)) = self.ends.get_mut(at) else {
                    return Outcome::Nothing;
                };
                match step {
                    Step::Write(_, count) => end.write(count).map(Outcome::Bytes),
                    Step::Read(_, count) => end.read(count, expected).map(Outcome::Bytes),
                    Step::Fill(_) => end.fill(self.patience),
                    Step::Drain(_) => return self.drain(at, expected),
                    Step::ShutDown(_) => end.socket.shut_down().map(|()| Outcome::Done),
                    Step::Reset(_) => {
                        end.socket.reset();
                        return Outcome::Done;
                    }
                    _ => {
                        self.ends[at] = None;
                        return Outcome::Done;
                    }
                }
            }
        };
        result.unwrap_or_else(|error| Outcome::Error(errno(&error)))
    }

    /// Reads until there is nothing more, and returns what came then.
    fn drain(&mut self, at: usize, expected: Option<Outcome>) -> Outcome {
        let start = Instant::now();
        loop {
            let end = self.ends[at].as_mut().unwrap();
            let outcome = match end.read(PIECE, None) {
                Ok(0) => Outcome::Bytes(0),
                Ok(_) => continue,
                Err(error) => Outcome::Error(errno(&error)),
            };
            let read = end.read;
            let peer = self.ends[at ^ 1].as_mut();
            // What is under way still comes.
            let is_empty = peer.as_ref().is_none_or(|peer| peer.written == read);
            let is_over = outcome != Outcome::Error(Errno::AGAIN)
                || (expected.is_none_or(|expected| expected == outcome) && is_empty);
            if is_over || start.elapsed() > self.patience {
                if let Some(peer) = peer {
                    peer.is_full = false;
                }
                let waits = outcome == Outcome::Error(Errno::AGAIN);
                return if waits && !is_empty {
                    Outcome::Lost
                } else {
                    outcome
                };
            }
            thread::yield_now();
        }
    }

    fn events(&self, at: usize) -> Option<PollFlags> {
        let end = self.ends.get(at)?.as_ref()?;
        Some(end.socket.events())
    }

    fn is_full(&self, at: usize) -> bool {
        let end = self.ends.get(at).and_then(Option::as_ref);
        end.is_some_and(|end| end.is_full)
    }
}

impl End {
    fn write(&mut self, count: usize) -> io::Result<usize> {
        let start = self.written % 251;
        let count =
            PATTERN.with_borrow(|pattern| self.socket.write(&pattern[start..start + count]))?;
        self.written += count;
        Ok(count)
    }

    /// Reads `count` bytes, or goes on until the expected number is there.
    fn read(&mut self, count: usize, expected: Option<Outcome>) -> io::Result<usize> {
        let read = BUFFER.with_borrow_mut(|buffer| {
            let read = self.socket.read(&mut buffer[..count])?;
            let start = self.read % 251;
            let is_right =
                PATTERN.with_borrow(|pattern| buffer[..read] == pattern[start..start + read]);
            assert!(is_right, "bytes are missing or out of order");
            io::Result::Ok(read)
        })?;
        self.read += read;
        match expected {
            Some(Outcome::Bytes(all)) if 0 < read && read < all => {
                let start = Instant::now();
                let mut whole = read;
                while whole < all && start.elapsed() < PATIENCE {
                    whole += self.read(all - whole, None).unwrap_or(0);
                }
                Ok(whole)
            }
            _ => Ok(read),
        }
    }

    fn fill(&mut self, patience: Duration) -> io::Result<Outcome> {
        loop {
            match self.write(PIECE) {
                Ok(_) => self.is_full = true,
                Err(error) if errno(&error) != Errno::AGAIN => return Err(error),
                Err(_) => {
                    self.is_full = true;
                    if patience.is_zero() {
                        return Ok(Outcome::Done);
                    }
                    // An acknowledgement may be late by 40 ms.
                    thread::sleep(Duration::from_millis(45));
                    if !self.socket.events().contains(PollFlags::OUT) {
                        return Ok(Outcome::Done);
                    }
                }
            }
        }
    }
}

/// What was compared at a step.
struct Line {
    step: String,
    model: String,
    kernel: String,
}

/// Runs a script on both. Returns what happened up to the first difference, if there is one.
fn difference(setting: Setting, steps: &[Step], seed: u64) -> Option<Vec<Line>> {
    let mut model = Side::new(Box::new(Model::new(setting)), Duration::ZERO);
    let mut kernel = Side::new(Box::new(Kernel::new(setting, seed)), PATIENCE);
    let mut lines = Vec::new();
    for &step in steps {
        let mut expected = model.play(step, None);
        let is_write = matches!(step, Step::Write(at, _) if model.is_full(at));
        let outcome = kernel.play(step, (!is_write).then_some(expected));
        let is_same_class =
            |outcome| matches!(outcome, Outcome::Bytes(_) | Outcome::Error(Errno::AGAIN));
        if is_write && is_same_class(expected) && is_same_class(outcome) {
            expected = outcome;
        }
        let mut differs = expected != outcome;
        let mut line = Line {
            step: step.to_string(),
            model: expected.to_string(),
            kernel: outcome.to_string(),
        };
        for at in 0..model.ends.len() {
            if differs {
                break;
            }
            let (of_model, of_kernel) = compared_events(&model, &kernel, at);
            differs = of_model != of_kernel;
            if differs {
                let name = ["client", "server"][at % 2];
                let tell = |events: Option<PollFlags>| {
                    let events = events.map_or("closed".into(), |events| format!("{events:?}"));
                    format!("; then {name} {}: {events}", at / 2 + 1)
                };
                line.model += &tell(of_model);
                line.kernel += &tell(of_kernel);
            }
        }
        lines.push(line);
        if differs {
            return Some(lines);
        }
    }
    None
}

/// What both tell of an end, when the kernel has had its time.
fn compared_events(
    model: &Side,
    kernel: &Side,
    at: usize,
) -> (Option<PollFlags>, Option<PollFlags>) {
    let mut ignored = PollFlags::empty();
    // How much a full buffer has room for is the kernel's to say.
    ignored.set(PollFlags::OUT, model.is_full(at));
    let of_model = model.events(at).map(|events| events - ignored);
    let start = Instant::now();
    loop {
        let of_kernel = kernel.events(at).map(|events| events - ignored);
        if of_model == of_kernel || start.elapsed() > PATIENCE {
            return (of_model, of_kernel);
        }
        thread::yield_now();
    }
}

/// The shortest script that still shows a difference, and what it shows.
fn shrink(setting: Setting, mut steps: Vec<Step>, seed: u64) -> Vec<Line> {
    let mut shown = difference(setting, &steps, seed).unwrap_or_default();
    let mut length = steps.len();
    while length > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut shorter = steps.clone();
            shorter.drain(at..(at + length).min(steps.len()));
            match difference(setting, &shorter, seed) {
                Some(lines) => {
                    shorter.truncate(lines.len());
                    (steps, shown) = (shorter, lines);
                }
                None => at += length,
            }
        }
        length /= 2;
    }
    shown
}

fn story(setting: Setting, lines: &[Line], seed: u64) -> String {
    let kind = match setting.kind {
        Kind::Tcp => "TCP",
        Kind::Unix => "Unix sockets",
    };
    let mut story = format!(
        "the model is not as the kernel: {kind}, buffers {} and {}, script {seed}\n",
        setting.send, setting.receive
    );
    for (number, line) in (1..).zip(lines) {
        let Line {
            step,
            model,
            kernel,
        } = line;
        story += &format!("{number:3} {step:26} model: {model:20} kernel: {kernel}\n");
    }
    story
}

/// Runs the scripts of seeds.
fn check(kind: Kind, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let (setting, steps) = script(seed, kind);
        if difference(setting, &steps, seed).is_some() {
            let lines = shrink(setting, steps, seed);
            panic!("{}", story(setting, &lines, seed));
        }
    }
}

/// How many scripts run: TINYLOOP_SCRIPTS, from TINYLOOP_FIRST_SCRIPT on.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let first = number("TINYLOOP_FIRST_SCRIPT").unwrap_or(0);
    first..first + number("TINYLOOP_SCRIPTS").unwrap_or(1000)
}

#[test]
fn the_connection_in_memory_is_as_the_kernels_tcp() {
    check(Kind::Tcp, seeds());
}

#[test]
fn the_connection_in_memory_is_as_the_kernels_unix_sockets() {
    check(Kind::Unix, seeds());
}
