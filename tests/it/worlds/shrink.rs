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
    let mut changes = changes(&world);
    // Where in the list, and how many changes in a row were none or lost the failure.
    let (mut place, mut vain) = (0, 0);
    while vain < changes.len() && tries < TRIES && start.elapsed() < PATIENCE {
        let mut smaller = world.clone();
        place %= changes.len();
        changes[place](&mut smaller);
        if smaller != world {
            tries += 1;
            if let Some(found) = fails(&smaller)
                && found.promise == violation.promise
            {
                (world, violation) = (smaller, found);
                changes = self::changes(&world);
                vain = 0;
                continue;
            }
        }
        (place, vain) = (place + 1, vain + 1);
    }
    (world, violation)
}

/// What makes a world a little smaller.
type Change = Box<dyn Fn(&mut World)>;

/// The changes that may make a world smaller, the greatest first.
fn changes(world: &World) -> Vec<Change> {
    let mut found: Vec<Change> = Vec::new();
    macro_rules! change {
        ($change:expr) => {
            found.push(Box::new($change))
        };
    }
    // Halves, then parts.
    let peers = world.peers.len();
    let mut part = peers.div_ceil(2);
    while part > 0 {
        for start in (0..peers).step_by(part) {
            let end = (start + part).min(peers);
            change!(move |w: &mut World| drop(w.peers.drain(start..end)));
        }
        part /= 2;
    }
    change!(move |w: &mut World| w.beside.clear());
    change!(move |w: &mut World| w.happenings.clear());
    for index in 0..world.beside.len() {
        change!(move |w: &mut World| {
            w.beside.remove(index);
        });
    }
    for index in 0..world.happenings.len() {
        change!(move |w: &mut World| {
            w.happenings.remove(index);
        });
    }
    change!(move |w: &mut World| w.settings.listeners = 1);
    change!(move |w: &mut World| w.settings.limit = None);
    change!(move |w: &mut World| w.settings.reject = false);
    change!(move |w: &mut World| w.settings.idle = None);
    change!(move |w: &mut World| w.settings.stall = None);
    change!(move |w: &mut World| w.settings.propagate = false);
    change!(move |w: &mut World| w.settings.set_up = 0);
    change!(move |w: &mut World| w.end.1 = super::plan::End::ShutDown);
    for index in 0..peers {
        change!(move |w: &mut World| w.peers[index].at = 0);
        change!(move |w: &mut World| w.peers[index].faults = None);
        change!(move |w: &mut World| w.peers[index].late_events = None);
        change!(move |w: &mut World| w.peers[index].returns = 0);
        change!(move |w: &mut World| w.peers[index].stays = 0);
        change!(move |w: &mut World| w.peers[index].reads = Reads::Eagerly);
        change!(move |w: &mut World| w.peers[index].ends_when_draining = false);
        change!(move |w: &mut World| w.peers[index].wire.unix = false);
        change!(move |w: &mut World| w.peers[index].wire.buffers = None);
        change!(move |w: &mut World| w.peers[index].wire.segment = None);
        change!(move |w: &mut World| w.peers[index].wire.latency = 0);
        change!(move |w: &mut World| w.peers[index].wire.rate = None);
        for say in 0..world.peers[index].says.len() {
            change!(move |w: &mut World| {
                w.peers[index].says.remove(say);
            });
        }
        for step in 0..world.peers[index].handler.len() {
            change!(move |w: &mut World| {
                w.peers[index].handler.remove(step);
            });
        }
        // Sizes and times, by halves and by tens.
        for by in [10, 2] {
            for say in 0..world.peers[index].says.len() {
                change!(move |w: &mut World| match &mut w.peers[index].says[say] {
                    Say::Send(n) => *n = (*n / by as usize).max(1),
                    Say::Wait(time) => *time /= by,
                    _ => {}
                });
            }
            for step in 0..world.peers[index].handler.len() {
                change!(
                    move |w: &mut World| match &mut w.peers[index].handler[step] {
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
                    }
                );
            }
            change!(move |w: &mut World| w.peers[index].at /= by);
        }
    }
    change!(move |w: &mut World| w.end.0 /= 2);
    change!(move |w: &mut World| w.settings.drain /= 2);
    found
}
