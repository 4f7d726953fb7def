//! The event loop beside smol's bare `LocalExecutor`: spawning, yielding, and the memory of a parked task.
//!
//! `cargo run --release --manifest-path benches/Cargo.toml --bin runtime`, or `just bench-runtime`. Both take turns in
//! one process; printed are the median of the ratios of their times and the quartiles (below 1, tinyloop is faster).

use std::fs;
use std::future::{Future, pending};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::future::yield_now;
use smol::{LocalExecutor, Task};

/// How many times both have their turn.
const TURNS: usize = 21;

/// Spawns and yields in a turn.
const COUNT: usize = 200_000;

/// Parked tasks, for their memory.
const PARKED: usize = 200_000;

fn main() -> io::Result<()> {
    // First, while no memory is there to be used again.
    let parked_bytes = parked_task()?;
    println!("| work | time, of smol's LocalExecutor | quartiles |\n|---|---:|---:|");
    compare("spawn and await, one by one", one_by_one(), one_by_one());
    compare("spawn many, then await them", many(), many());
    compare("yield, 1 task", yielding(1), yielding(1));
    compare("yield, 100 tasks", yielding(100), yielding(100));
    println!("\nA parked task holds {parked_bytes} B over its future.");
    Ok(())
}

/// How a task is spawned: on the running tinyloop, or on a bare executor.
#[derive(Clone)]
enum Spawner {
    Tinyloop,
    Bare(Rc<LocalExecutor<'static>>),
}

impl Spawner {
    fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        match self {
            Spawner::Tinyloop => tinyloop::spawn(future),
            Spawner::Bare(executor) => executor.spawn(future),
        }
    }
}

fn compare(
    work: &str,
    ours: impl AsyncFn(Spawner) -> Duration,
    theirs: impl AsyncFn(Spawner) -> Duration,
) {
    let mut ratios: Vec<f64> = (0..TURNS)
        .map(|_| {
            let ours = tinyloop::run(ours(Spawner::Tinyloop));
            let executor = Rc::new(LocalExecutor::new());
            let theirs = smol::block_on(executor.run(theirs(Spawner::Bare(executor.clone()))));
            ours.as_secs_f64() / theirs.as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let quartile = |quarters: usize| ratios[(TURNS - 1) * quarters / 4];
    println!(
        "| {work} | {:.2} | {:.2}–{:.2} |",
        quartile(2),
        quartile(1),
        quartile(3)
    );
}

fn one_by_one() -> impl AsyncFn(Spawner) -> Duration {
    async |spawner| {
        let start = Instant::now();
        for _ in 0..COUNT {
            spawner.spawn(async {}).await;
        }
        start.elapsed()
    }
}

fn many() -> impl AsyncFn(Spawner) -> Duration {
    async |spawner| {
        let start = Instant::now();
        let tasks: Vec<_> = (0..COUNT).map(|_| spawner.spawn(async {})).collect();
        for task in tasks {
            task.await;
        }
        start.elapsed()
    }
}

fn yielding(tasks: usize) -> impl AsyncFn(Spawner) -> Duration {
    async move |spawner| {
        let yield_often = move || async move {
            for _ in 0..COUNT / tasks {
                yield_now().await;
            }
        };
        let start = Instant::now();
        let tasks: Vec<_> = (0..tasks).map(|_| spawner.spawn(yield_often())).collect();
        for task in tasks {
            task.await;
        }
        start.elapsed()
    }
}

/// How many bytes of memory (RSS) a task holds that waits for ever, with a future of no size.
fn parked_task() -> io::Result<usize> {
    tinyloop::run(async {
        let before = resident_bytes()?;
        let tasks: Vec<Task<()>> = (0..PARKED).map(|_| tinyloop::spawn(pending())).collect();
        yield_now().await;
        let after = resident_bytes()?;
        drop(tasks);
        Ok((after - before) / PARKED)
    })
}

fn resident_bytes() -> io::Result<usize> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    Ok(pages * rustix::param::page_size())
}
