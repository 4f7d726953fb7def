//! Repeats a job at fixed times, and answers signals at the same time.
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
use tinyloop::{interval, timeout, unblock};

/// How long the last line may wait for a reader.
const PATIENCE: Duration = Duration::from_millis(200);

/// The progress of the job. The futures of one task share it, so a `Cell` is enough.
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
    // Ctrl-C or SIGTERM. A second signal exits the process at once.
    let shutdown = signal::shutdown()?;
    let questions = signal::signals([Signal::Usr1])?;
    let progress = Cell::<Progress>::default();
    let shutdown = async {
        shutdown.await;
        let goodbye = format!("goodbye after {} ticks", progress.get().ticks);
        // The program does not wait for a reader.
        timeout(PATIENCE, say(goodbye)).await.unwrap_or(Ok(()))
    };
    // The first of these futures that ends also ends the others.
    shutdown
        .or(answer(questions, &progress))
        .or(work(period, &progress))
        .await
}

/// Prints a line. If nobody reads it, only a thread of smol's pool waits; signals still work.
async fn say(line: String) -> io::Result<()> {
    unblock(move || writeln!(io::stdout(), "{line}")).await
}

/// Answers SIGUSR1.
async fn answer(mut questions: Signals, progress: &Cell<Progress>) -> io::Result<()> {
    while questions.next().await.is_some() {
        let Progress { ticks, missed } = progress.get();
        say(format!("{ticks} ticks, {missed} missed")).await?;
    }
    Ok(())
}

/// Does the job at each tick. If the job is still running at the next tick, this tick is missed.
async fn work(period: Duration, progress: &Cell<Progress>) -> io::Result<()> {
    let mut ticks = interval(period);
    while ticks.next().await.is_some() {
        let Progress { ticks: seen, .. } = progress.get();
        progress.set(Progress {
            ticks: seen + 1,
            missed: ticks.missed(),
        });
        // Signals still work if the disk is slow.
        let files = unblock(|| fs::read_dir(".").map(Iterator::count)).await?;
        say(format!("tick {}: {files} files", seen + 1)).await?;
    }
    Ok(())
}
