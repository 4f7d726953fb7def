//! What the tests share: a running program, a running server, and sockets that do not wait for ever.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tinyloop::{Connection, Report, Server};

/// How long anything in a test may take before it counts as hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Connects, with a deadline on all that follows.
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&addr, DEADLINE).expect("connects");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends `message` and reads as many bytes as the reply `Got: message` has.
pub(crate) fn ask(mut stream: &TcpStream, message: &str) -> String {
    stream.write_all(message.as_bytes()).expect("is sent");
    let mut reply = vec![0; "Got: ".len() + message.len()];
    stream.read_exact(&mut reply).expect("is answered");
    String::from_utf8(reply).expect("is text")
}

/// Reads to the end of input.
pub(crate) fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("ends");
    bytes
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
        Program::start_command(Command::new(env!("CARGO_BIN_EXE_tinyloop")).args(args))
    }

    /// Runs a command that becomes the program in the end.
    pub(crate) fn start_command(command: &mut Command) -> Program {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = lines(child.stdout.take().unwrap());
        let stderr = lines(child.stderr.take().unwrap());
        let mut program = Program {
            child,
            stdout,
            stderr,
            addr: None,
        };
        let line = program.stdout_line();
        let addr = line
            .strip_prefix("listening on ")
            .expect("the first line says where it listens");
        program.addr = addr.parse().ok();
        program
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

    /// The next line on stdout.
    pub(crate) fn stdout_line(&self) -> String {
        self.stdout
            .recv_timeout(DEADLINE)
            .expect("a line on stdout")
    }

    /// The next line on stderr.
    pub(crate) fn stderr_line(&self) -> String {
        self.stderr
            .recv_timeout(DEADLINE)
            .expect("a line on stderr")
    }

    /// Waits for the end. Returns the status, and what was printed and not yet looked at.
    pub(crate) fn wait(mut self) -> (ExitStatus, Vec<String>, Vec<String>) {
        let status = self.child.wait().unwrap();
        (
            status,
            self.stdout.iter().collect(),
            self.stderr.iter().collect(),
        )
    }

    /// Sends SIGTERM and waits for the end, which has to be a good one.
    pub(crate) fn stop(self) -> (Vec<String>, Vec<String>) {
        self.signal(Signal::TERM);
        let (status, stdout, stderr) = self.wait();
        assert_eq!(status.code(), Some(0), "{stderr:?}");
        (stdout, stderr)
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
        self.thread
            .take()
            .unwrap()
            .join()
            .expect("the server does not panic")
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
