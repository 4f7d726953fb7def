//! Two servers behind the real HAProxy, with packaging/haproxy.cfg: restarts that nobody notices, and one that is killed.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;

use crate::support::{DEADLINE, Program, TempDir, the_machine};

const CONFIG: &str = include_str!("../../packaging/haproxy.cfg");

const CLIENTS: u64 = 50;

/// The configuration asks each second. The test has less time.
const CHECK: (&str, &str) = ("inter 1s", "inter 200ms");
/// Two checks, and one that has just begun; three times that, for a machine that is busy.
const NOTICED: Duration = Duration::from_millis(3 * 600);

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// One of the two servers, which can be started again on the same ports.
struct Site {
    port: u16,
    monitor: u16,
    program: Option<Program>,
    /// From where its connections came, as its lines say.
    peers: BTreeSet<String>,
}

impl Site {
    fn start(port: u16, monitor: u16) -> Site {
        Site {
            port,
            monitor,
            program: Some(Site::run(port, monitor)),
            peers: BTreeSet::new(),
        }
    }

    fn run(port: u16, monitor: u16) -> Program {
        let (listen, monitor) = (format!("127.0.0.1:{port}"), monitor.to_string());
        let of_cfg = ["--proxy-protocol", "--lame-duck", "1.5", "--drain", "30"];
        let ports = ["--listen", &listen, "--monitor", &monitor];
        Program::start(&[ports.as_slice(), &of_cfg].concat())
    }

    fn program(&self) -> &Program {
        self.program.as_ref().expect("it runs")
    }

    /// Stops it by SIGTERM, starts it again, and waits until HAProxy sends it somebody.
    fn restart(&mut self) {
        self.program().signal(Signal::TERM);
        // The one that ends is waited for: the next needs its ports.
        let ended = self.program.take().expect("it runs");
        let (status, stdout, stderr) = ended.wait();
        assert!(status.success(), "{stderr:?}");
        let report = stderr.last().unwrap();
        assert!(report.contains("rejected 0, aborted 0, "), "{stderr:?}");
        self.peers.extend(addresses(&stdout));
        let program = Site::run(self.port, self.monitor);
        loop {
            let line = program.stdout_line();
            let peer = addresses(&[line]).next();
            if peer.is_some() {
                self.peers.extend(peer);
                break;
            }
        }
        self.program = Some(program);
    }
}

/// A connection that failed.
#[derive(Debug)]
struct Failure {
    begun: Instant,
    /// From where it came, if it came to a connection.
    addr: Option<SocketAddr>,
    #[allow(dead_code)] // For who reads that the test failed.
    error: io::Error,
}

/// What a client did.
#[derive(Default)]
struct Done {
    exchanges: u64,
    addrs: BTreeSet<String>,
    failures: Vec<Failure>,
}

/// Connects, exchanges 1 to 20 messages, and closes, again and again.
fn client(balancer: SocketAddr, seed: u64, stop: &AtomicBool) -> Done {
    let mut rng = Rng::with_seed(seed);
    let mut done = Done::default();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut addr = None;
        let visited = visit(balancer, &mut rng, &mut addr, &mut done.exchanges);
        match visited {
            Ok(()) => done.addrs.extend(addr.map(|addr| addr.to_string())),
            Err(error) => done.failures.push(Failure { begun, addr, error }),
        }
        thread::sleep(Duration::from_millis(rng.u64(0..60)));
    }
    done
}

fn visit(
    balancer: SocketAddr,
    rng: &mut Rng,
    addr: &mut Option<SocketAddr>,
    exchanges: &mut u64,
) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&balancer, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    *addr = Some(stream.local_addr()?);
    for _ in 0..rng.u32(1..=20) {
        let message: String = std::iter::repeat_with(|| rng.alphanumeric())
            .take(20)
            .collect();
        stream.write_all(message.as_bytes())?;
        let mut reply = [0; 25];
        stream.read_exact(&mut reply)?;
        if reply != *format!("Got: {message}").as_bytes() {
            return Err(io::Error::other("another's reply"));
        }
        *exchanges += 1;
        thread::sleep(Duration::from_millis(rng.u64(0..30)));
    }
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than was asked for")),
    }
}

/// Runs the clients while `body` does. Returns what they did.
fn under_load(balancer: SocketAddr, seeds: u64, body: impl FnOnce()) -> Done {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let stop = &stop;
                scope.spawn(move || client(balancer, seeds + number, stop))
            })
            .collect();
        body();
        stop.store(true, Ordering::Relaxed);
        let mut sum = Done::default();
        for client in clients {
            let mut done = client.join().unwrap();
            sum.exchanges += done.exchanges;
            sum.addrs.append(&mut done.addrs);
            sum.failures.append(&mut done.failures);
        }
        sum
    })
}

/// HAProxy before the two servers, with its configuration from packaging.
fn haproxy(dir: &TempDir, balancer: SocketAddr, sites: [&Site; 2]) -> Program {
    let [one, two] = sites;
    let mut config = CONFIG.to_owned();
    for (from, to) in [
        (":25000", balancer.to_string()),
        ("127.0.0.1:25100", format!("127.0.0.1:{}", one.port)),
        ("port 25101", format!("port {}", one.monitor)),
        ("127.0.0.1:25200", format!("127.0.0.1:{}", two.port)),
        ("port 25201", format!("port {}", two.monitor)),
        (CHECK.0, CHECK.1.to_owned()),
    ] {
        let before = config.clone();
        config = config
            .lines()
            .fold(String::new(), |config, line| match line.trim_start() {
                comment if comment.starts_with('#') => config,
                _ => config + &line.replace(from, &to) + "\n",
            });
        assert_ne!(before, config, "{from}");
    }
    let path = dir.path("haproxy.cfg");
    fs::write(&path, config).unwrap();
    let mut command = Command::new("haproxy");
    // In the foreground, and without the limit that it asks for: that is the machine's to give.
    command
        .args(["-db", "-q", "-f"])
        .arg(&path)
        .args(["-n", "1000"]);
    Program::spawn(command.stdout(Stdio::null()))
}

#[test]
#[ignore = "needs haproxy"]
fn restarts_behind_haproxy_fail_no_exchange_and_a_kill_fails_none_but_its_own() {
    let _machine = the_machine();
    let long = env::var_os("TINYLOOP_SOAK").is_some();
    let dir = TempDir::new("haproxy");
    let [one, two] = [(); 2].map(|()| Site::start(free_port(), free_port()));
    let mut sites = [one, two];
    let balancer = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let haproxy = haproxy(&dir, balancer, [&sites[0], &sites[1]]);
    let start = Instant::now();
    let first = loop {
        match TcpStream::connect(balancer) {
            Ok(first) => break first.local_addr().unwrap().to_string(),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
        assert!(start.elapsed() < DEADLINE, "{:?}", haproxy.printed());
    };

    let restarts = if long { 3 } else { 1 };
    let done = under_load(balancer, 0, || {
        for _ in 0..restarts {
            for site in &mut sites {
                site.restart();
            }
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    let Done {
        exchanges,
        addrs,
        failures,
    } = done;
    println!(
        "{} connections, {exchanges} exchanges in {seconds:.1} s, {} failures, restarts {}",
        addrs.len(),
        failures.len(),
        2 * restarts,
    );
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(exchanges > 1_000, "{exchanges}");

    // One is killed. Nobody tells HAProxy.
    let [mut survivor, mut killed] = sites;
    let mut killed_at = Instant::now();
    let after = under_load(balancer, 1_000, || {
        thread::sleep(Duration::from_millis(500));
        killed_at = Instant::now();
        killed.program().signal(Signal::KILL);
        thread::sleep(NOTICED + Duration::from_secs(1));
    });
    println!(
        "killed: {} exchanges, {} failures",
        after.exchanges,
        after.failures.len()
    );
    let (_, stdout, _) = killed.program.take().unwrap().wait();
    killed.peers.extend(addresses(&stdout));
    let (stdout, _) = survivor.program.take().unwrap().stop();
    survivor.peers.extend(addresses(&stdout));
    for failure in &after.failures {
        assert!(failure.begun < killed_at + NOTICED, "{failure:?}");
        let addr = failure
            .addr
            .expect("HAProxy takes every connection")
            .to_string();
        // The kernel may give a port again that a connection before it had.
        let is_reused = addrs.contains(&addr) || after.addrs.contains(&addr);
        assert!(
            is_reused || !survivor.peers.contains(&addr),
            "the other server served it: {failure:?}"
        );
    }
    assert!(
        after.failures.len() as u64 <= CLIENTS,
        "each had one connection"
    );
    assert!(after.exchanges > 500, "{}", after.exchanges);

    // The lines name the clients, all of them, and HAProxy never.
    let told: BTreeSet<String> = survivor.peers.union(&killed.peers).cloned().collect();
    let ours: BTreeSet<String> = addrs.union(&after.addrs).cloned().collect();
    let untold: Vec<_> = ours.difference(&told).collect();
    assert!(untold.is_empty(), "{}, {:?}", untold.len(), untold[0]);
    let failed = after.failures.iter().filter_map(|failure| failure.addr);
    let ours: BTreeSet<String> = ours
        .into_iter()
        .chain(failed.map(|addr| addr.to_string()))
        .collect();
    let strangers: Vec<_> = told
        .difference(&ours)
        .filter(|addr| **addr != first)
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

/// The addresses in the lines of connections that came.
fn addresses(lines: &[String]) -> impl Iterator<Item = String> + '_ {
    let addrs = lines
        .iter()
        .filter_map(|line| line.strip_prefix("Connection from "));
    addrs.map(str::to_owned)
}
