//! What the tests share: a running program, a running server, and sockets that do not wait for ever.

use std::any;
use std::env;
use std::fs;
use std::future::pending;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::iter;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpid, kill_process};
use tinyloop::{Connection, EventLoop, Report, Server, signal};

use crate::process::ignores;

/// How long anything in a test may take before it counts as hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `condition` returns something.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waits for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Connects, with a deadline on all that follows.
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&addr, DEADLINE).expect("connects");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends `message` and reads as many bytes as the reply `Got: message` has.
pub(crate) fn ask<S>(mut stream: &S, message: &str) -> String
where
    for<'s> &'s S: Read + Write,
{
    stream.write_all(message.as_bytes()).expect("is sent");
    let mut reply = vec![0; "Got: ".len() + message.len()];
    stream.read_exact(&mut reply).expect("is answered");
    String::from_utf8(reply).expect("is text")
}

/// Sends `message` and reads `reply`.
pub(crate) fn exchange(mut stream: &TcpStream, message: &[u8], reply: &[u8]) {
    stream.write_all(message).expect("is sent");
    let mut read = vec![0; reply.len()];
    stream.read_exact(&mut read).expect("is answered");
    assert_eq!(
        read.escape_ascii().to_string(),
        reply.escape_ascii().to_string()
    );
}

/// Reads to the end of input.
pub(crate) fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("ends");
    bytes
}

/// Whether this machine has IPv6.
pub(crate) fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// Reads until the other side resets the connection. Returns what came before.
pub(crate) fn read_to_reset(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    assert_eq!(
        ended.expect_err("is reset").kind(),
        io::ErrorKind::ConnectionReset
    );
    bytes
}

/// Connects to a server that resets the connection before its first byte, perhaps before the connect returns.
pub(crate) fn connect_to_reset(addr: SocketAddr) {
    match TcpStream::connect_timeout(&addr, DEADLINE) {
        Ok(client) => {
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            assert_eq!(read_to_reset(&client), b"");
        }
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

/// Half-closes, and reads until the other side has closed, too. Returns what it read.
pub(crate) fn hang_up(stream: TcpStream) -> Vec<u8> {
    stream.shutdown(Shutdown::Write).unwrap();
    read_to_end(&stream)
}

/// Waits for the next line or event.
pub(crate) fn next<T>(events: &Receiver<T>) -> T {
    events.recv_timeout(DEADLINE).expect("one more event")
}

/// Held by the tests that load the machine and by those that measure it, so that they do not disturb each other.
pub(crate) fn the_machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long `action` takes.
pub(crate) fn time(action: impl FnOnce()) -> Duration {
    let start = Instant::now();
    action();
    start.elapsed()
}

/// Runs `test` in a thread of its own, and fails when it takes longer than [`DEADLINE`].
pub(crate) fn within_deadline<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, is_done) = mpsc::channel();
    let thread = thread::spawn(move || {
        let result = test();
        done.send(()).ok();
        result
    });
    let outcome = is_done.recv_timeout(DEADLINE);
    assert_ne!(outcome, Err(RecvTimeoutError::Timeout), "hangs");
    thread
        .join()
        .unwrap_or_else(|payload| panic::resume_unwind(payload))
}

/// Runs `main` on a loop of its own, within the deadline.
pub(crate) fn run<T: Send + 'static>(main: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    within_deadline(|| tinyloop::run(main()))
}

/// The same, on the clock that jumps.
pub(crate) fn run_on_test_clock<T: Send + 'static>(
    main: impl AsyncFnOnce() -> T + Send + 'static,
) -> T {
    within_deadline(|| EventLoop::with_test_clock().unwrap().run(main()))
}

/// The message that `action` panics with.
pub(crate) fn panic_message<T>(action: impl FnOnce() -> T) -> String {
    let payload = panic::catch_unwind(AssertUnwindSafe(action))
        .err()
        .expect("panics");
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => (*payload.downcast_ref::<&str>().unwrap()).to_owned(),
    }
}

/// Runs a test's `body` in a process of its own, whose signals, memory and descriptors no other test touches: once
/// more this binary, with this one test.
pub(crate) fn in_a_process_of_its_own<F: FnOnce()>(body: F) {
    if env::var_os(ALONE).is_some() {
        return body();
    }
    let (status, stdout, stderr) = Program::spawn(test_alone::<F>().stdout(Stdio::piped())).wait();
    let output = format!("{}\n{}", stdout.join("\n"), stderr.join("\n"));
    assert!(status.success(), "{output}");
    assert!(output.contains(" 1 passed;"), "it was found: {output}");
}

/// The command that runs the test around the closure `F` in a process of its own, where it calls the closure.
pub(crate) fn test_alone<F>() -> Command {
    // Such as `it::time::a_test::{{closure}}`; the name without a path is the binary's.
    let path = any::type_name::<F>();
    let test = path.split("::{{closure}}").next().unwrap();
    let (_, test) = test.split_once("::").unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([test, "--exact", "--include-ignored", "--nocapture"])
        .env(ALONE, "1");
    command
}

/// Set in the process of a test that runs alone.
const ALONE: &str = "TINYLOOP_TEST_ALONE";

/// Tells when it is dropped.
pub(crate) struct TellDrop(mpsc::Sender<ThreadId>);

impl TellDrop {
    pub(crate) fn new() -> (TellDrop, Receiver<ThreadId>) {
        let (sender, dropped) = mpsc::channel();
        (TellDrop(sender), dropped)
    }
}

impl Drop for TellDrop {
    fn drop(&mut self) {
        self.0.send(thread::current().id()).ok();
    }
}

/// A future that holds `value` and never ends.
pub(crate) async fn hold<T>(value: T) {
    pending::<()>().await;
    drop(value);
}

/// The program, with what it prints, line by line. Killed when dropped.
pub(crate) struct Program {
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    /// None for a Unix socket.
    addr: Option<SocketAddr>,
}

impl Program {
    /// Runs the program, and waits for its first line, which says where it listens.
    pub(crate) fn start(args: &[&str]) -> Program {
        Program::start_command(Program::command().args(args))
    }

    /// The command that runs the program.
    pub(crate) fn command() -> Command {
        Command::new(env!("CARGO_BIN_EXE_tinyloop"))
    }

    /// The command that runs an example. `cargo test` builds the examples before the tests, in a directory beside them;
    /// `cargo test --test it` does not.
    pub(crate) fn example(name: &str) -> Command {
        let test = env::current_exe().unwrap();
        let profile = test.ancestors().nth(2).unwrap();
        let example = profile.join("examples").join(name);
        let release = if profile.ends_with("release") {
            " --release"
        } else {
            ""
        };
        assert!(
            example.exists(),
            "the examples are not built, and this test runs one. First: cargo build --examples{release} \
             (cargo test without --test builds them, too)"
        );
        Command::new(example)
    }

    /// The command that runs `program` with a limit of `descriptors`, and of as many more as it inherits from the tests:
    /// they have some of a jobserver's, for example.
    pub(crate) fn with_descriptors(descriptors: usize, program: &Command) -> Command {
        let listing = Command::new("sh").args(["-c", "ls /proc/$$/fd"]).output();
        let listing = String::from_utf8(listing.unwrap().stdout).unwrap();
        let inherited = listing.lines().map(|number| number.parse().unwrap());
        let mut inherited: Vec<usize> = inherited.filter(|&number| number > 2).collect();
        inherited.sort_unstable();
        let limit = inherited.into_iter().fold(descriptors, |limit, number| {
            limit + usize::from(number < limit)
        });
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")])
            .arg(program.get_program())
            .args(program.get_args());
        shell
    }

    /// Runs a command that becomes the program in the end.
    pub(crate) fn start_command(command: &mut Command) -> Program {
        let mut program = Program::spawn(command.stdout(Stdio::piped()));
        let line = program.stdout_line();
        program.listens_on(&line);
        program
    }

    /// Runs a command that may fail to become the program, or whose stdout is none of ours.
    pub(crate) fn spawn(command: &mut Command) -> Program {
        ignore_no_signal();
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Program {
            stdout: child.stdout.take().map_or_else(|| mpsc::channel().1, lines),
            stderr: lines(child.stderr.take().unwrap()),
            child,
            addr: None,
        }
    }

    /// Remembers the address of the line that says where the program listens.
    pub(crate) fn listens_on(&mut self, line: &str) {
        let addr = line
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("the first line says where it listens: {line}"));
        self.addr = addr.parse().ok();
    }

    /// The TCP address of the first line.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr.expect("listens on TCP")
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.addr())
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the program runs");
    }

    /// Sends a signal again and again, until the program ends: the kernel folds those that it has not delivered yet.
    pub(crate) fn signal_until_end(mut self, signal: Signal) -> ExitStatus {
        self.wait_for_end(|program| program.signal(signal))
    }

    /// The next line on stdout.
    pub(crate) fn stdout_line(&self) -> String {
        self.try_stdout_line().expect("a line on stdout")
    }

    /// The next line on stdout, if there is one before its end.
    pub(crate) fn try_stdout_line(&self) -> Option<String> {
        next_or_end(&self.stdout)
    }

    /// The next line on stderr.
    pub(crate) fn stderr_line(&self) -> String {
        self.stderr
            .recv_timeout(DEADLINE)
            .expect("a line on stderr")
    }

    /// The lines that were printed so far and not yet looked at, on either stream.
    pub(crate) fn printed(&self) -> Vec<String> {
        self.stdout
            .try_iter()
            .chain(self.stderr.try_iter())
            .collect()
    }

    /// Waits for the end. Returns the status, and what was printed and not yet looked at.
    pub(crate) fn wait(mut self) -> (ExitStatus, Vec<String>, Vec<String>) {
        // The pipes end with the program, and there is a deadline on that.
        let stdout = iter::from_fn(|| next_or_end(&self.stdout)).collect();
        let stderr = iter::from_fn(|| next_or_end(&self.stderr)).collect();
        // Not those that the program was given by a shell.
        let status = self.wait_for_end(|_| ());
        (status, stdout, stderr)
    }

    fn wait_for_end(&mut self, meanwhile: impl Fn(&Program)) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "does not end");
            meanwhile(self);
            thread::yield_now();
        }
    }

    /// Waits for the end, which has to be a good one, with a report on stderr that begins with `report`.
    pub(crate) fn ends_well(self, report: &str) {
        let (status, _, stderr) = self.wait();
        assert!(status.success(), "{stderr:?}");
        assert!(stderr[0].starts_with(report), "{stderr:?}");
    }

    /// Sends SIGTERM and waits for the end, which has to be a good one.
    pub(crate) fn stop(self) -> (Vec<String>, Vec<String>) {
        self.signal(Signal::TERM);
        let (status, stdout, stderr) = self.wait();
        assert_eq!(status.code(), Some(0), "{stderr:?}");
        (stdout, stderr)
    }
}

/// Handles SIGHUP, SIGINT and SIGQUIT where this process was started to ignore them, as under nohup or with `&` in a
/// script: what it starts would ignore them, too, and gets the default instead.
fn ignore_no_signal() {
    let own = [
        (Signal::HUP, signal::Signal::Hup),
        (Signal::INT, signal::Signal::Int),
        (Signal::QUIT, signal::Signal::Quit),
    ];
    for (signal, to_handle) in own {
        if ignores(getpid(), signal) {
            drop(signal::signals([to_handle]).unwrap());
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Has ended already, after `wait`.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The lines of a pipe, read in a thread so that it never fills up.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The next line, or none when the pipe has ended.
fn next_or_end(lines: &Receiver<String>) -> Option<String> {
    match lines.recv_timeout(DEADLINE) {
        Ok(line) => Some(line),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => panic!("neither prints nor ends"),
    }
}

/// A server of the library's in a thread of its own, on a loop of its own.
pub(crate) struct Served {
    pub(crate) addr: SocketAddr,
    shutdown: smol::channel::Sender<()>,
    thread: Option<JoinHandle<io::Result<Report>>>,
}

impl Served {
    /// Serves `handler` on 127.0.0.1, port 0, as `configure` says. Ends when told to, with a drain as configured.
    pub(crate) fn start<H>(
        configure: impl FnOnce(Server) -> Server + Send + 'static,
        handler: H,
    ) -> Served
    where
        H: AsyncFn(Connection) -> io::Result<()> + Send + 'static,
    {
        let (shutdown, shut_down) = smol::channel::bounded(1);
        let (tell_addr, addr) = mpsc::channel();
        let thread = thread::spawn(move || {
            tinyloop::run(async {
                let server = Server::bind("127.0.0.1:0").await?;
                tell_addr
                    .send(server.local_addrs()[0].tcp().unwrap())
                    .unwrap();
                let shutdown = async move { shut_down.recv().await.unwrap_or_default() };
                configure(server).shutdown_on(shutdown).serve(handler).await
            })
        });
        let addr = addr.recv_timeout(DEADLINE).expect("the server listens");
        Served {
            addr,
            shutdown,
            thread: Some(thread),
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.addr)
    }

    /// Begins the shutdown, without waiting for its end.
    pub(crate) fn shut_down(&self) {
        self.shutdown.close();
    }

    /// Shuts down and waits for the end.
    pub(crate) fn stop(mut self) -> io::Result<Report> {
        self.shut_down();
        let thread = self.thread.take().unwrap();
        within_deadline(|| thread.join().expect("the server does not panic"))
    }

    /// Whether `serve` has returned.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// The echo handler of the tutorial.
pub(crate) async fn echo(connection: Connection) -> io::Result<()> {
    tinyloop::echo(connection, b"Got: ").await
}

/// A directory of a test's own, removed in the end.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(test: &str) -> TempDir {
        let path = env::temp_dir().join(format!("tinyloop-{}-{test}", process::id()));
        // Left by a process that was killed and had this one's number.
        fs::remove_dir_all(&path).ok();
        fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    /// The path of a file in it.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}
