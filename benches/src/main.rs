//! Runs tinyloop and other echo servers side by side in one run, and compares them.
//!
//! Each server is a process of its own on one CPU; the load generator is this process, on
//! another one. Each case is measured in short turns of the servers, one after another and often,
//! because machines are noisy: what counts is the median of the ratios within each turn. Every byte of
//! every reply is checked, so that a wrong answer cannot be fast.
//!
//! ```text
//! cargo run --release -- [full | quick] [--only SERVERS] [--case CASES] [--rounds N]
//!                        [--out DIR] [--tinyloop PATH]
//! ```
//!
//! Where to look: [`cases`] says what is measured, [`servers`] and [`peers`] on which servers,
//! [`rounds`], [`session`], [`once`] and [`load`] how, and [`report`] what is printed in the end, goals included.

mod cases;
mod children;
mod cpus;
mod descriptors;
mod facts;
mod load;
mod lock;
mod meter;
mod once;
mod options;
mod peers;
mod process;
mod report;
mod results;
mod rounds;
mod servers;
mod session;
mod system_calls;

use std::env;
use std::fs;
use std::process::ExitCode;

use anyhow::Result;

use crate::cases::Case;
use crate::cpus::Cpus;
use crate::facts::Facts;
use crate::lock::Lock;
use crate::options::Options;
use crate::results::Results;
use crate::rounds::Extent;
use crate::servers::{Fleet, Server};

fn main() -> Result<ExitCode> {
    let mut arguments = env::args().skip(1);
    let (first, mut next) = (arguments.next(), || arguments.next().unwrap_or_default());
    // The first two are this binary, started again by itself.
    match first.as_deref() {
        Some("serve") => peers::serve(&next(), &next())?,
        Some("client") => load::client::talk(&next(), &next())?,
        _ => return compare(&argh::from_env()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the cases on the servers, and reports. Not a success where a measurement failed.
fn compare(options: &Options) -> Result<ExitCode> {
    children::end_with_this_process()?;
    let _lock = Lock::acquire()?;
    let descriptors = descriptors::raise_limit()?;
    let cpus = Cpus::choose()?;
    let mut fleet = Fleet::gather(&options.servers(), options.tinyloop.as_deref())?;
    let mut cases = options.cases();
    if cases.contains(&Case::SystemCalls) && !system_calls::are_countable() {
        fleet.note("left out: system calls: perf is not installed, or needs root here");
        cases.retain(|&case| case != Case::SystemCalls);
    }
    for tool in ["wrk", "h2load"] {
        if cases.iter().any(|case| case.tool() == Some(tool)) && !load::http::is_there(tool) {
            fleet.note(&format!("left out: HTTP by {tool}, which is not installed"));
            cases.retain(|case| case.tool() != Some(tool));
        }
    }
    if cpus.are_the_same() {
        fleet.note("only one CPU: the load generator shares it with the servers");
    }
    let facts = if options.wants_facts() && fleet.has(Server::Tinyloop) {
        Some(Facts::gather(&fleet.tinyloop)?)
    } else {
        None
    };

    cpus.use_generator()?;
    let extent = Extent {
        rounds: options.rounds(),
        turn: options.turn(),
        descriptors,
    };
    let results = rounds::run(&cases, &fleet, &extent, cpus)?;
    let text = report::text(&fleet, &results, facts.as_ref());
    println!("{text}");
    write_files(options, &text, &results, facts.as_ref())?;
    Ok(if results.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write_files(
    options: &Options,
    text: &str,
    results: &Results,
    facts: Option<&Facts>,
) -> Result<()> {
    let folder = options.folder();
    fs::create_dir_all(&folder)?;
    let tables = folder.join("tables.md");
    fs::write(&tables, text)?;
    eprintln!("wrote {}", tables.display());
    let csv = folder.join("results.csv");
    fs::write(&csv, report::csv::figures(results, facts))?;
    eprintln!("wrote {}", csv.display());
    let chart = folder.join("messages.svg");
    if report::chart::draw(results, &chart)? {
        eprintln!("wrote {}", chart.display());
    }
    Ok(())
}
