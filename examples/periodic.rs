//! Does a piece of work now and then, and answers signals meanwhile.
//!
//! ```console
//! $ cargo run --example periodic -- 0.5       # seconds; 1 without
//! tick 1: 12 files
//! tick 2: 12 files
//! ```
//!
//! In another terminal, `pkill -USR1 periodic` makes it print how many ticks it has seen and missed, and Ctrl-C or
//! SIGTERM ends it. For something to count: `nc -lkU ./new-file`.

use std::cell::Cell;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use futures_lite::{FutureExt, StreamExt};
use tinyloop::signal::{self, Signal, Signals};
use tinyloop::{interval, unblock};

/// How far the work has come. Two futures of one task share it: a `Cell` will do.
#[derive(Clone, Copy, Default)]
struct Progress {
    ticks: u64,
    missed: u64,
}

fn main() -> ExitCode {
    let Some(period) = period() else {
        eprintln!("usage: periodic [SECONDS], from 0.001 on");
        return ExitCode::from(2);
    };
    match tinyloop::run(run(period)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The period on the command line, if it is one.
fn period() -> Option<Duration> {
    let seconds = match env::args().nth(1) {
        Some(argument) => argument.parse().ok()?,
        None => 1.0,
    };
    let period = Duration::try_from_secs_f64(seconds).ok()?;
    (period >= Duration::from_millis(1)).then_some(period)
}

async fn run(period: Duration) -> io::Result<()> {
    let signals = signal::signals([Signal::Int, Signal::Term, Signal::Usr1])?;
    let progress = Cell::default();
    // Whichever ends first ends the other.
    answer(signals, &progress).or(work(period, &progress)).await
}

/// Answers signals, until one says that it is over.
async fn answer(mut signals: Signals, progress: &Cell<Progress>) -> io::Result<()> {
    let mut stdout = io::stdout();
    while let Some(Signal::Usr1) = signals.next().await {
        let Progress { ticks, missed } = progress.get();
        writeln!(stdout, "{ticks} ticks, {missed} missed")?;
    }
    writeln!(stdout, "goodbye after {} ticks", progress.get().ticks)
}

/// Works at each tick. A tick that comes while the work of the last one goes on is missed.
async fn work(period: Duration, progress: &Cell<Progress>) -> io::Result<()> {
    let mut ticks = interval(period);
    while ticks.next().await.is_some() {
        let Progress { ticks: seen, .. } = progress.get();
        progress.set(Progress {
            ticks: seen + 1,
            missed: ticks.missed(),
        });
        // A slow disk holds up a thread of smol's pool, and not the signals.
        let files = unblock(|| fs::read_dir(".").map(Iterator::count)).await?;
        writeln!(io::stdout(), "tick {}: {files} files", seen + 1)?;
    }
    Ok(())
}
