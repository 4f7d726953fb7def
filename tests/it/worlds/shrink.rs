//! Makes a failing world as small as it can be while it still fails in the same way.

use std::time::{Duration, Instant};

use super::plan::{Reads, Say, Step, World};
use super::trace::Violation;

/// How many worlds are tried, and for how long.
const TRIES: usize = 3_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// The smallest world found in which the same promise does not hold, and how it does not.
pub(super) fn shrink(
    world: &World,
    violation: &Violation,
    fails: impl Fn(&World) -> Option<Violation>,
) -> (World, Violation) {
    let (mut world, mut violation) = (world.clone(), violation.clone());
    let (mut tries, start) = (0, Instant::now());
    'again: loop {
        for smaller in smaller(&world) {
            if tries == TRIES || start.elapsed() > PATIENCE {
                break 'again;
            }
            tries += 1;
            if let Some(found) = fails(&smaller)
                && found.promise == violation.promise
            {
                (world, violation) = (smaller, found);
                continue 'again;
            }
        }
        break;
    }
    (world, violation)
}

/// Worlds that are a little smaller, the smallest first.
fn smaller(world: &World) -> Vec<World> {
    let mut found = Vec::new();
    let mut change = |change: &dyn Fn(&mut World)| {
        let mut smaller = world.clone();
        change(&mut smaller);
        if smaller != *world {
            found.push(smaller);
        }
    };
    // Halves, then parts.
    let peers = world.peers.len();
    let mut part = peers.div_ceil(2);
    while part > 0 {
        for start in (0..peers).step_by(part) {
            let end = (start + part).min(peers);
            change(&|w| drop(w.peers.drain(start..end)));
        }
        part /= 2;
    }
    change(&|w| w.beside.clear());
    change(&|w| w.happenings.clear());
    for index in 0..world.beside.len() {
        change(&|w| {
            w.beside.remove(index);
        });
    }
    for index in 0..world.happenings.len() {
        change(&|w| {
            w.happenings.remove(index);
        });
    }
    change(&|w| w.settings.limit = None);
    change(&|w| w.settings.reject = false);
    change(&|w| w.settings.idle = None);
    change(&|w| w.settings.stall = None);
    change(&|w| w.settings.propagate = false);
    change(&|w| w.settings.set_up = 0);
    change(&|w| w.end.1 = super::plan::End::ShutDown);
    for index in 0..peers {
        change(&|w| w.peers[index].at = 0);
        change(&|w| w.peers[index].faults = None);
        change(&|w| w.peers[index].late_events = None);
        change(&|w| w.peers[index].returns = 0);
        change(&|w| w.peers[index].stays = 0);
        change(&|w| w.peers[index].reads = Reads::Eagerly);
        change(&|w| w.peers[index].ends_when_draining = false);
        change(&|w| w.peers[index].wire.unix = false);
        change(&|w| w.peers[index].wire.buffers = None);
        change(&|w| w.peers[index].wire.segment = None);
        change(&|w| w.peers[index].wire.latency = 0);
        change(&|w| w.peers[index].wire.rate = None);
        for say in 0..world.peers[index].says.len() {
            change(&|w| {
                w.peers[index].says.remove(say);
            });
        }
        for step in 0..world.peers[index].handler.len() {
            change(&|w| {
                w.peers[index].handler.remove(step);
            });
        }
        // Sizes and times, by halves and by tens.
        for by in [10, 2] {
            for say in 0..world.peers[index].says.len() {
                change(&|w| match &mut w.peers[index].says[say] {
                    Say::Send(n) => *n = (*n / by as usize).max(1),
                    Say::Wait(time) => *time /= by,
                    _ => {}
                });
            }
            for step in 0..world.peers[index].handler.len() {
                change(&|w| match &mut w.peers[index].handler[step] {
                    Step::Read(n)
                    | Step::Write(n)
                    | Step::WriteWhileReading(n)
                    | Step::Ask(n)
                    | Step::Feed(n)
                    | Step::ReadOrTakeLeave(n) => {
                        *n = (*n / by as usize).max(1);
                    }
                    Step::Think(time) | Step::Compute(time) => *time /= by,
                    Step::Serve {
                        request,
                        think,
                        reply,
                    } => {
                        *request = (*request / by as usize).max(1);
                        *think /= by;
                        *reply = (*reply / by as usize).max(1);
                    }
                    Step::PassOn { after, write } => {
                        *after /= by;
                        *write /= by as usize;
                    }
                    _ => {}
                });
            }
            change(&|w| w.peers[index].at /= by);
        }
    }
    change(&|w| w.end.0 /= 2);
    change(&|w| w.settings.drain /= 2);
    found
}
