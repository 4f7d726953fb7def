//! The chat example in worlds from seeds. A file to copy: it uses the public API alone. docs/testing.md explains it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use tinyloop::testing::{self, Connector, Faults, Wire, for_each_seed};
use tinyloop::{Connection, EventLoop, sleep, spawn};

#[allow(dead_code, unreachable_pub)]
#[path = "../../../examples/chat.rs"]
mod example;

/// A world as plain data.
#[derive(Debug)]
struct World {
    peers: Vec<Peer>,
    /// The process stands still at this time, for so long.
    stop: (Duration, Duration),
}

/// Somebody in the room, who says so many lines, with a pause before each, and reads all the time.
#[derive(Clone, Debug)]
struct Peer {
    wire: Wire,
    faults: u64,
    lines: usize,
    pause: Duration,
    /// The most bytes that one read takes.
    piece: usize,
}

/// When everybody is in the room, and when they leave it.
const ALL_HERE: Duration = Duration::from_secs(10);
const END: Duration = Duration::from_secs(100);

impl World {
    fn from_seed(seed: u64) -> World {
        let rng = &mut Rng::with_seed(seed);
        let millis = |rng: &mut Rng, most| Duration::from_millis(rng.u64(0..most));
        let peer = |rng: &mut Rng| Peer {
            wire: Wire::tcp()
                .buffers(rng.usize(3_000..50_000), rng.usize(3_000..50_000))
                .latency(millis(rng, 10)),
            faults: rng.u64(..),
            lines: rng.usize(0..100),
            pause: if rng.bool() {
                Duration::ZERO
            } else {
                millis(rng, 200)
            },
            piece: rng.usize(50..500),
        };
        let count = rng.usize(2..5);
        World {
            peers: (0..count).map(|_| peer(rng)).collect(),
            stop: (ALL_HERE + millis(rng, 5_000), millis(rng, 5_000)),
        }
    }
}

/// Plays a world. Returns what each peer has read, to the end of its connection.
fn play(world: &World) -> Vec<String> {
    EventLoop::with_test_clock().unwrap().run(async {
        let (server, connector) = testing::server();
        let room = Rc::new(example::Room::default());
        let serving = server
            .stall_timeout(Duration::from_secs(30))
            .shutdown_on(sleep(END))
            .drain(Duration::from_secs(2))
            .serve(async move |connection| example::chat(&room, connection).await);
        let serving = spawn(serving);
        let peers = world.peers.iter().enumerate();
        let tasks: Vec<_> = peers
            .map(|(index, peer)| spawn(visit(connector.clone(), index, peer.clone())))
            .collect();
        sleep(world.stop.0).await;
        testing::advance(world.stop.1);
        let mut heard = Vec::new();
        for task in tasks {
            heard.push(task.await);
        }
        let report = serving.await.unwrap();
        // Counters add up: nobody failed, was cut or is left.
        assert_eq!(report.accepted, world.peers.len() as u64);
        assert_eq!(report.completed, report.accepted, "{report}");
        heard
    })
}

async fn visit(connector: Connector, index: usize, peer: Peer) -> String {
    let faults = Faults::from_seed(peer.faults);
    let connection = Rc::new(connector.connect_over(peer.wire, faults).unwrap());
    let heard = Rc::new(RefCell::new(Vec::new()));
    let reading = spawn(listen(connection.clone(), peer.piece, heard.clone()));
    sleep(ALL_HERE).await;
    for line in 0..peer.lines {
        sleep(peer.pause).await;
        let line = format!("line {line} of {index}\n");
        (&*connection).write_all(line.as_bytes()).await.unwrap();
    }
    reading.await;
    String::from_utf8(heard.take()).unwrap()
}

async fn listen(connection: Rc<Connection>, piece: usize, heard: Rc<RefCell<Vec<u8>>>) {
    let mut buffer = vec![0; piece];
    loop {
        match (&*connection).read(&mut buffer).await.unwrap() {
            0 => return,
            n => heard.borrow_mut().extend(&buffer[..n]),
        }
    }
}

/// A peer that reads gets every line of each of the others, once and in order, and none of its own.
fn judge(world: &World, heard: &[String]) {
    for (listener, heard) in heard.iter().enumerate() {
        for (speaker, peer) in world.peers.iter().enumerate() {
            let end = format!(" of {speaker}");
            let lines = heard.lines().filter(|line| line.ends_with(&end));
            let lines: Vec<&str> = lines.filter_map(|line| line.split(": ").nth(1)).collect();
            let count = if speaker == listener { 0 } else { peer.lines };
            let expected: Vec<String> = (0..count)
                .map(|n| format!("line {n} of {speaker}"))
                .collect();
            assert_eq!(lines, expected, "{listener} hears {speaker} in {world:#?}");
        }
    }
}

#[test]
fn in_every_world_of_the_chat_each_line_reaches_everybody_who_reads() {
    for_each_seed(0..300, |seed| {
        let world = World::from_seed(seed);
        judge(&world, &play(&world));
    });
}
