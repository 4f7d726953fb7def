//! Load, faults and hostile input, at length: the rows of docs/promises.md that take long or need the whole machine.
//!
//! Each has one test. It runs in a short form, or, with `TINYLOOP_SOAK=1` (`just soak`), in its long one, and prints
//! the figures that it reached. A bound on time is asserted as it stands in the long form; the short form, which has
//! to hold on any machine however busy, asserts [`PATIENCE`] times as much.

mod churn;
mod descriptors;
mod drop_panics;
mod flood;
mod idle_crowd;
mod large_crowd;
mod lossy_link;
mod memory_checked;
mod registration;
mod signal_storm;
mod slow_senders;
mod stopped_readers;

use std::env;
use std::time::Duration;

/// How much more time the short form allows.
const PATIENCE: u32 = 10;

/// Whether the long forms run.
fn soak() -> bool {
    env::var_os("TINYLOOP_SOAK").is_some()
}

/// How much of something the form that runs asks for.
fn form<T>(short: T, long: T) -> T {
    if soak() { long } else { short }
}

/// Prints a figure of the row `row`, and asserts that it is within `bound`.
#[track_caller]
fn assert_time(row: &str, figure: Duration, bound: Duration) {
    println!("{row}: {figure:.2?} (at most {bound:.2?})");
    let bound = bound * form(PATIENCE, 1);
    assert!(figure <= bound, "{row}: {figure:?}, more than {bound:?}");
}
