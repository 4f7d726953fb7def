//! What is drawn: from the seed and the connection's number alone, and for the share that was asked for.

use std::cell::Cell;
use std::collections::BTreeSet;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use tinyloop::faults::Faulty;
use tinyloop::spawn;
use tinyloop::testing::{Faults, for_each_seed, server};

use super::plan;
use crate::support::run_on_test_clock;

const FAULTS: [&str; 3] = [
    "delay=1ms@50%",
    "reset-after=0..5000@20%",
    "rate=1..1000@1%",
];

#[test]
fn what_befalls_a_connection_depends_on_its_number_and_the_seed_alone() {
    let drawn = |seed, ordinal| plan(seed, &FAULTS).draw(ordinal).to_string();
    let forwards: Vec<String> = (1..=1000).map(|ordinal| drawn(7, ordinal)).collect();
    let once = plan(7, &FAULTS);
    let mut backwards: Vec<String> = (1..=1000).rev().map(|n| once.draw(n).to_string()).collect();
    backwards.reverse();
    assert_eq!(forwards, backwards);
    let others: Vec<String> = (1..=1000).map(|ordinal| drawn(8, ordinal)).collect();
    assert!(
        (1..=1000)
            .filter(|&n| forwards[n - 1] != others[n - 1])
            .count()
            > 300
    );
}

#[test]
fn one_more_fault_at_the_end_changes_no_draw_before_it() {
    let more = [&FAULTS[..], &["refuse@50%"]].concat();
    for ordinal in 1..=1000 {
        let drawn = plan(7, &FAULTS).draw(ordinal).to_string();
        let with_more = plan(7, &more).draw(ordinal).to_string();
        let drawn = drawn.trim_end_matches(" no fault");
        assert!(with_more.starts_with(drawn), "{with_more}");
    }
}

#[test]
fn a_range_is_drawn_to_both_of_its_ends() {
    let drawn = |ordinal| plan(7, &["reset-after=1..7"]).draw(ordinal).to_string();
    let values: BTreeSet<char> = (1..=500).filter_map(|n| drawn(n).chars().last()).collect();
    assert_eq!(values, BTreeSet::from(['1', '2', '3', '4', '5', '6', '7']));
    let of_ends = plan(7, &["rate=1..18446744073709551615"]);
    assert!(!of_ends.draw(u64::MAX).is_empty(), "the far ends work");
}

#[test]
fn of_several_of_a_kind_the_last_that_befalls_a_connection_counts() {
    let slow = plan(7, &["delay=1ms", "delay=2s@50%", "refuse@0%"]);
    let lines: BTreeSet<String> = (1..=100)
        .map(|n| slow.draw(n).to_string())
        .map(|line| line.split_once(' ').unwrap().1.to_owned())
        .collect();
    let expected = ["fault delay=1ms", "fault delay=2s"].map(str::to_owned);
    assert_eq!(lines, BTreeSet::from(expected));
}

#[test]
fn of_10_000_connections_a_share_of_5_percent_is_what_chance_allows() {
    // Five standard deviations, of which a fair draw is outside once in 1.7 million times.
    let within = 500 - 109..=500 + 109;
    for_each_seed(0..20, |seed| {
        let plan = plan(seed, &["refuse@5%"]);
        let befallen = (1..=10_000).filter(|&n| !plan.draw(n).is_empty()).count();
        assert!(within.contains(&befallen), "{befallen}");
    });
    let reports = [7, 7, 8].map(|seed| {
        run_on_test_clock(async move || {
            let (server, connector) = server();
            let plan = plan(seed, &["reset-after=3@5%"]);
            let ordinal = Cell::new(0);
            let (stop, stopped) = smol::channel::bounded::<()>(1);
            let server =
                server.shutdown_on(async move { stopped.recv().await.unwrap_or_default() });
            let serving = spawn(server.serve(move |connection| {
                ordinal.set(ordinal.get() + 1);
                let mut faulty = Faulty::connection(connection, plan.draw(ordinal.get()));
                async move { faulty.write_all(b"hello").await }
            }));
            let mut cut = 0;
            for _ in 0..10_000 {
                let mut peer = connector.connect(Faults::none()).unwrap();
                let mut reply = Vec::new();
                cut += u64::from(peer.read_to_end(&mut reply).await.is_err());
                assert!(reply == b"hello" || reply == b"hel", "{reply:?}");
            }
            stop.close();
            let report = serving.await.unwrap();
            assert_eq!(
                (report.accepted, report.faulty, report.failed),
                (10_000, cut, cut)
            );
            cut
        })
    });
    for befallen in reports {
        assert!(within.contains(&(befallen as usize)), "{befallen}");
    }
    assert_eq!(reports[0], reports[1]);
}
