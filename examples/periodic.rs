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
use tinyloop::{interval, timeout, unblock};

/// How long the last line may wait for who reads it.
const PATIENCE: Duration = Duration::from_millis(200);

/// How far the work has come. The futures of one task share it: a `Cell` will do.
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
    // Ctrl-C or SIGTERM. A second one ends the process at once, whatever goes on here.
    let shutdown = signal::shutdown()?;
    let questions = signal::signals([Signal::Usr1])?;
    let progress = Cell::<Progress>::default();
    let shutdown = async {
        shutdown.await;
        let goodbye = format!("goodbye after {} ticks", progress.get().ticks);
        // Nobody has to read it.
        timeout(PATIENCE, say(goodbye)).await.unwrap_or(Ok(()))
    };
    // Whichever ends first ends the others.
    shutdown
        .or(answer(questions, &progress))
        .or(work(period, &progress))
        .await
}

/// Prints a line. A reader that does not read holds up a thread of smol's pool, and not the signals.
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

/// Works at each tick. A tick that comes while the work of the last one goes on is missed.
async fn work(period: Duration, progress: &Cell<Progress>) -> io::Result<()> {
    let mut ticks = interval(period);
    while ticks.next().await.is_some() {
        let Progress { ticks: seen, .. } = progress.get();
        progress.set(Progress {
            ticks: seen + 1,
            missed: ticks.missed(),
        });
        // A slow disk does not hold up the signals, either.
        let files = unblock(|| fs::read_dir(".").map(Iterator::count)).await?;
        say(format!("tick {}: {files} files", seen + 1)).await?;
    }
    Ok(())
}
