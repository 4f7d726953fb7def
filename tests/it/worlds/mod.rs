//! Worlds from seeds: a server, its peers and what happens to them are drawn from a number, and the promises of
//! docs/promises.md are checked against what happened. docs/testing.md says how to put a handler of one's own into them.

mod chat;
mod found;
mod handlers;
mod judge;
mod peers;
mod plan;
mod play;
mod script;
mod shrink;
mod stage;
mod trace;
mod wire;

use std::collections::BTreeMap;
use std::env;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use plan::World;
use trace::{Trace, Violation};

/// How a world fails, if it does.
fn fails(world: &World) -> Option<Violation> {
    // A sixteenth of the worlds are played twice.
    fails_when(world, !world.is_real && world.seed.is_multiple_of(16))
}

fn fails_when(world: &World, is_played_twice: bool) -> Option<Violation> {
    let played = panic::catch_unwind(AssertUnwindSafe(|| {
        let trace = play::play(world);
        let judged = judge::judge(world, &trace).err();
        judged.or_else(|| is_played_twice.then(|| differs(world, &trace))?)
    }));
    played.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| {
            payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
        });
        Some(Violation {
            promise: "nothing panics but handlers",
            what: text.unwrap_or_default(),
        })
    })
}

const SAME: &str = "the same seed gives the same trace";

/// Whether a world takes another course when it is played again.
fn differs(world: &World, trace: &Trace) -> Option<Violation> {
    let again = play::play(world);
    let place = again
        .entries
        .iter()
        .zip(&trace.entries)
        .position(|(a, b)| a != b);
    (again != *trace).then(|| Violation {
        promise: SAME,
        what: match place {
            Some(place) => format!("{} and {}", trace.entries[place], again.entries[place]),
            None => "one is longer".to_owned(),
        },
    })
}

/// The smallest world found that fails in the same way.
fn shrink(world: &World, violation: &Violation) -> (World, Violation) {
    let is_played_twice = violation.promise == SAME;
    shrink::shrink(world, violation, |world| fails_when(world, is_played_twice))
}

/// A failing world in a few lines.
fn story(world: &World, violation: &Violation) -> String {
    if world.is_real {
        return format!("seed {}, on real sockets: {violation}\n{world}", world.seed);
    }
    let (small, violation) = shrink(world, violation);
    format!("seed {}: {violation}\n{small}", world.seed)
}

/// The stories of a promise that does not hold.
#[derive(Default)]
struct Stories {
    shortest: Option<String>,
    told: usize,
}

impl Stories {
    /// A story that a person can read, and how many are told in search of one.
    const LINES_MAX: usize = 12;
    const TOLD_MAX: usize = 5;

    fn add(&mut self, story: String) {
        let lines = |story: &String| story.lines().count();
        let shortest = self.shortest.take().into_iter().chain([story]);
        self.shortest = shortest.min_by_key(lines);
        self.told += 1;
    }

    fn is_enough(&self) -> bool {
        let lines = self.shortest.as_ref().map(|story| story.lines().count());
        self.told >= Self::TOLD_MAX || lines.is_some_and(|lines| lines <= Self::LINES_MAX)
    }
}

/// Plays worlds on so many threads. Tells a short story of each promise that does not hold, and goes on until there are as
/// many stories.
fn play_all(
    seeds: Range<u64>,
    stories: usize,
    threads: usize,
    world: impl Fn(u64) -> World + Sync,
    progress: impl Fn(u64) + Sync,
) -> Vec<String> {
    let (next, played) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let found: Mutex<BTreeMap<&str, Stories>> = Mutex::default();
    let enough = || {
        let found = found.lock().unwrap();
        found.values().filter(|stories| stories.is_enough()).count()
    };
    let is_wanted = |promise| {
        let found = found.lock().unwrap();
        !found.get(promise).is_some_and(Stories::is_enough)
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || enough() >= stories {
                        break;
                    }
                    let world = world(seed);
                    if let Some(violation) = fails(&world)
                        && is_wanted(violation.promise)
                    {
                        let story = story(&world, &violation);
                        let mut found = found.lock().unwrap();
                        found.entry(violation.promise).or_default().add(story);
                    }
                    progress(played.fetch_add(1, Ordering::Relaxed) + 1);
                }
            });
        }
    });
    let found = found.into_inner().unwrap().into_values();
    found.filter_map(|stories| stories.shortest).collect()
}

fn cores() -> usize {
    thread::available_parallelism().map_or(2, usize::from)
}

/// The seeds to play: the environment's `variable` is a number of them, or a range such as `1000..2000`.
fn seeds(variable: &str, unless_told: u64) -> Range<u64> {
    let told = env::var(variable).unwrap_or_else(|_| unless_told.to_string());
    let number = |text: &str| {
        text.parse()
            .expect("a number of worlds, or a range of seeds")
    };
    match told.split_once("..") {
        Some((start, end)) => number(start)..number(end),
        None => 0..number(&told),
    }
}

#[test]
fn every_promise_holds_in_every_world() {
    let seeds = seeds("TINYLOOP_WORLDS", 300);
    let stories = play_all(seeds, 1, cores(), World::from_seed, |_| ());
    assert!(stories.is_empty(), "{}", stories.join("\n\n"));
}

#[test]
fn every_promise_holds_in_worlds_on_real_sockets() {
    let seeds = seeds("TINYLOOP_REAL_WORLDS", 20);
    // They wait more than they work.
    let real = |seed| World::from_seed(seed).made_real();
    let stories = play_all(seeds, 1, 10, real, |_| ());
    assert!(stories.is_empty(), "{}", stories.join("\n\n"));
}

/// `just worlds`: plays worlds until it is stopped, or ten promises are broken.
#[test]
#[ignore = "runs until it is stopped"]
fn worlds_without_end() {
    let start = Instant::now();
    let seeds = seeds("TINYLOOP_WORLDS", u64::MAX);
    let stories = play_all(seeds, 10, cores(), World::from_seed, |played| {
        if played % 1_000 == 0 {
            let rate = played as f64 / start.elapsed().as_secs_f64();
            eprint!("\r{played} worlds, {rate:.0} a second ");
        }
    });
    eprintln!();
    assert!(stories.is_empty(), "{}", stories.join("\n\n"));
}

/// `just world SEED`: plays a world, and shows what happens.
#[test]
#[ignore = "needs TINYLOOP_WORLD"]
fn a_world_is_told() {
    let Ok(seed) = env::var("TINYLOOP_WORLD") else {
        return;
    };
    let seed = seed.parse().expect("TINYLOOP_WORLD is a seed");
    let mut world = World::from_seed(seed);
    if let Some(violation) = fails(&world) {
        world = shrink(&world, &violation).0;
    }
    let trace = play::play(&world);
    println!("seed {seed}, {} entries\n{world}", trace.entries.len());
    trace.entries.iter().for_each(|entry| println!("{entry}"));
    match judge::judge(&world, &trace) {
        Ok(()) => println!("every promise holds"),
        Err(violation) => println!("{violation}"),
    }
}
