//! The worlds in which a promise did not hold once, as small as they got.

use super::fails;
use super::plan::{End, Peer, Reads, Say, Settings, Step, Wire, World};

/// A peer that comes at once and reads all the time.
fn peer(handler: &[Step]) -> Peer {
    Peer {
        at: 0,
        wire: Wire::default(),
        faults: None,
        late_events: None,
        reads: Reads::Eagerly,
        says: Vec::new(),
        stays: 0,
        returns: 0,
        handler: handler.to_vec(),
        ends_when_draining: false,
    }
}

/// A server that is shut down at once.
fn world(drain: u64, peers: Vec<Peer>) -> World {
    World {
        seed: 0,
        is_real: false,
        settings: Settings {
            listeners: 1,
            limit: None,
            reject: false,
            idle: None,
            stall: None,
            drain,
            propagate: false,
            set_up: 0,
        },
        peers,
        beside: Vec::new(),
        happenings: Vec::new(),
        end: (0, End::ShutDown),
    }
}

fn holds(world: &World) {
    if let Some(violation) = fails(world) {
        panic!("{violation}\n{world}");
    }
}

#[test]
fn a_passed_on_connection_that_was_idle_holds_no_place_any_more() {
    let pass_on = Step::PassOn {
        after: 150,
        write: 9,
    };
    for reject in [false, true] {
        let mut world = world(0, vec![peer(&[pass_on]), peer(&[])]);
        world.settings.limit = Some(1);
        world.settings.idle = Some(100);
        world.settings.reject = reject;
        world.peers[1].at = 110;
        world.end.0 = 180;
        holds(&world);
    }
}

#[test]
fn the_end_of_the_drain_hides_no_failure() {
    holds(&world(0, vec![peer(&[Step::Write(1), Step::Fail])]));
}

#[test]
fn a_write_that_gets_room_as_the_idle_timeout_fires_is_not_idle() {
    let mut world = world(937, vec![peer(&[Step::WriteWhileReading(73_132)])]);
    world.settings.idle = Some(100);
    world.peers[0].wire.latency = 150;
    // Whose turn it is first depends on the events that are told late.
    for seed in 0..100 {
        world.peers[0].faults = Some(seed);
        holds(&world);
    }
}

#[test]
fn accepts_that_fail_close_no_connection_early() {
    let mut world = world(1_000, vec![peer(&[Step::Read(1), Step::Write(8_610)])]);
    world.peers[0].wire.buffers = Some((200_000, 4_096));
    world.peers[0].wire.latency = 1;
    world.peers[0].says = vec![Say::Wait(300), Say::Send(13_560)];
    world.peers[0].at = 170;
    world.happenings = vec![(374, super::plan::Happening::FailedAccepts(107))];
    world.end.0 = 519;
    holds(&world);
}

#[test]
fn a_stalled_connection_whose_handler_returns_ok_sees_no_clean_end() {
    let pass_on = Step::PassOn {
        after: 88,
        write: 27_280,
    };
    let mut world = world(625, vec![peer(&[pass_on])]);
    world.settings.stall = Some(200);
    world.peers[0].wire.latency = 150;
    holds(&world);
}

#[test]
fn a_half_that_is_closed_after_a_long_time_is_not_stalled_at_once() {
    let steps = [Step::Think(1_000), Step::HalfClose, Step::Write(1)];
    let mut world = world(625, vec![peer(&steps)]);
    world.settings.stall = Some(200);
    world.peers[0].wire.latency = 20;
    world.end.0 = 2_000;
    holds(&world);
}
