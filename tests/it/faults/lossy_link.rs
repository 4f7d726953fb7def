//! A link that delays, loses, doubles and reorders.
//!
//! The link is the test's own: two network namespaces with a TUN device each, whose packets socat hands to the test,
//! and the test carries them across as badly as it likes, from a seed. `tc netem` is the kernel's way to such a link,
//! but kernels for virtual machines are often built without it.

use std::cell::Cell;
use std::env;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram as Socket;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use async_net::TcpStream;
use async_net::unix::UnixDatagram;
use fastrand::Rng;
use futures_lite::future::{or, zip};
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, getpid};
use tinyloop::{Framer, Framing, TaskGroup, sleep, spawn, timeout};

use crate::faults::form;
use crate::support::{DEADLINE, Program, test_alone};

const ROW: &str = "lossy link";

const DELAY: Duration = Duration::from_millis(50);

/// How many of a hundred packets never arrive, arrive twice, and overtake all that are on their way.
const LOST: u32 = 5;
const DOUBLED: u32 = 2;
const OVERTAKING: u32 = 10;

/// The addresses of the link's ends: of the clients, and of the server.
const NEAR: &str = "10.77.0.1";
const FAR: &str = "10.77.0.2";

/// How long a connection may take: for a packet that is lost again and again, TCP waits twice as long each time.
const PATIENCE: Duration = DEADLINE.saturating_mul(6);

/// Stands before each line of a reply.
const PREFIX: &[u8] = b"Got: ";

#[test]
#[ignore = "needs unshare, nsenter and socat"]
fn every_byte_comes_back_over_a_link_that_delays_loses_doubles_and_reorders() {
    in_a_network_of_its_own(|| {
        const SEED: u64 = 1;
        let connections = form(100, 1000);
        let program = Program::start_command(
            Command::new("unshare")
                .args(["--net", env!("CARGO_BIN_EXE_tinyloop")])
                .args(["-l", ":0", "-q", "--framing", "line"]),
        );
        let server = SocketAddr::new(FAR.parse().unwrap(), program.addr().port());
        let near = Device::new(getpid(), NEAR);
        let far = Device::new(program.pid(), FAR);

        let start = Instant::now();
        let link = Rc::new(Link::default());
        let bytes: usize = tinyloop::run(async {
            let mut random = Rng::with_seed(SEED);
            let (near, far) = (near.packets(), far.packets());
            let there = link.clone().carry(near.clone(), far.clone(), random.fork());
            let back = link.clone().carry(far, near, random.fork());
            spawn(or(there, back)).detach();
            wait_for_a_way_to(server).await;

            let mut talks = TaskGroup::new();
            for _ in 0..connections {
                talks
                    .spawn(timeout(PATIENCE, talk(server, random.fork())))
                    .await;
            }
            let sent = talks.map(|talk| talk.expect("is in time").expect("is not broken"));
            sent.fold(0, |all, sent| all + sent).await
        });
        println!(
            "{ROW}: {connections} connections, {bytes} bytes came back in {:.1?}, seed {SEED}",
            start.elapsed()
        );
        let [packets, lost, doubled, overtaking] =
            [&link.packets, &link.lost, &link.doubled, &link.overtaking].map(Cell::get);
        println!(
            "{ROW}: of {packets} packets {lost} were lost, {doubled} doubled, and {overtaking} overtook others"
        );
        assert!(lost > 0 && doubled > 0 && overtaking > 0);

        let (_, stderr) = program.stop();
        let report = stderr.last().unwrap();
        let counts = format!("accepted {connections}, completed {connections}, ");
        assert!(report.starts_with(&counts), "{report}");
    });
}

/// Waits until our device is up.
async fn wait_for_a_way_to(server: SocketAddr) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let start = Instant::now();
    while let Err(error) = socket.connect(server) {
        assert!(start.elapsed() < DEADLINE, "{error}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Sends random bytes in pieces, half-closes, and compares all that comes back. Returns how many bytes it sent.
async fn talk(server: SocketAddr, mut random: Rng) -> io::Result<usize> {
    // Now and then more than the server can send before the first of it has arrived.
    let most = if random.u8(..10) == 0 {
        200_000
    } else {
        20_000
    };
    let message: Vec<u8> = (0..random.usize(most / 2..most))
        .map(|_| random.u8(..))
        .collect();
    let mut expected = Vec::new();
    Framer::new(PREFIX, Framing::Line).frame(&message, &mut expected);

    let stream = TcpStream::connect(server).await?;
    // So that replies back up in the server.
    set_socket_recv_buffer_size(&stream, 16 * 1024)?;
    let (mut sender, mut receiver) = (stream.clone(), stream);
    let send = async {
        let mut rest = &message[..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(random.usize(1..=most / 5).min(rest.len()));
            sender.write_all(piece).await?;
            sleep(Duration::from_millis(random.u64(0..100))).await;
            rest = more;
        }
        sender.close().await
    };
    let mut reply = Vec::new();
    let (sent, received) = zip(send, receiver.read_to_end(&mut reply)).await;
    sent?;
    received?;
    assert!(reply == expected, "not a byte is corrupt, lost or moved");
    Ok(message.len())
}

/// What the link has done to the packets so far.
#[derive(Default)]
struct Link {
    packets: Cell<u64>,
    lost: Cell<u64>,
    doubled: Cell<u64>,
    overtaking: Cell<u64>,
}

impl Link {
    /// Carries packets in one direction, for as long as both ends are there.
    async fn carry(self: Rc<Self>, from: UnixDatagram, to: UnixDatagram, mut random: Rng) {
        let mut happens = |percent, count: &Cell<u64>| {
            let happens = random.u32(..100) < percent;
            count.set(count.get() + u64::from(happens));
            happens
        };
        let mut packet = [0; 2048];
        while let Ok(length @ 1..) = from.recv(&mut packet).await {
            self.packets.set(self.packets.get() + 1);
            if happens(LOST, &self.lost) {
                continue;
            }
            let copies = 1 + u32::from(happens(DOUBLED, &self.doubled));
            for _ in 0..copies {
                let overtakes = happens(OVERTAKING, &self.overtaking);
                let delay = if overtakes { Duration::ZERO } else { DELAY };
                let (to, packet) = (to.clone(), packet[..length].to_vec());
                let arrive = async move {
                    sleep(delay).await;
                    to.send(&packet).await
                };
                spawn(arrive).detach();
            }
        }
    }
}

/// A TUN device. Removed when dropped.
struct Device {
    socat: Child,
    packets: Socket,
}

impl Device {
    /// Makes a device with the address `addr` in the network of the process `pid`.
    fn new(pid: Pid, addr: &str) -> Device {
        // It keeps the packets' bounds, and socat sees when our end of it is gone.
        let socket = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let (ours, theirs) = socket.unwrap();
        let socat = Command::new("nsenter")
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .args(["socat", &format!("TUN:{addr}/24,up"), "STDIO"])
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs)
            .spawn()
            .expect("nsenter is there");
        Device {
            socat,
            packets: ours.into(),
        }
    }

    /// What the device sends, and is to receive.
    fn packets(&self) -> UnixDatagram {
        self.packets.try_clone().unwrap().try_into().unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.socat.kill().ok();
        self.socat.wait().ok();
    }
}

/// Runs a test's `body` in a process and a network of its own, which is gone when the process is.
fn in_a_network_of_its_own<F: FnOnce()>(body: F) {
    const INSIDE: &str = "TINYLOOP_TEST_NETWORK";
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let test = test_alone::<F>();
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net"])
        .arg(test.get_program())
        .args(test.get_args())
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("unshare is there");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}");
    assert!(stdout.contains(" 1 passed;"), "it was found: {stdout}");
    let figures = stdout.lines().filter(|line| line.starts_with(ROW));
    figures.for_each(|figure| println!("{figure}"));
}
