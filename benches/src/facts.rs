//! What is known of tinyloop without running it.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::children::run;
use crate::servers::HERE;

const LIMIT: Duration = Duration::from_secs(120);

pub struct Facts {
    /// The size of the stripped binary in bytes.
    pub binary: u64,
    /// How many crates someone compiles who uses the library, tinyloop itself included.
    pub crates: usize,
}

impl Facts {
    pub fn gather(tinyloop: &Path) -> Result<Self> {
        Ok(Self {
            binary: stripped_size(tinyloop)?,
            crates: count_crates()?,
        })
    }
}

fn stripped_size(binary: &Path) -> Result<u64> {
    let stripped = env::current_exe()?.with_file_name("tinyloop-stripped");
    run(
        Command::new("strip").arg("-o").arg(&stripped).arg(binary),
        LIMIT,
    )
    .context("cannot strip the binary")?;
    Ok(fs::metadata(&stripped)?.len())
}

fn count_crates() -> Result<usize> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = run(
        Command::new(cargo)
            .current_dir(format!("{HERE}/.."))
            .args(["tree", "--locked", "--edges", "normal"])
            .args(["--no-default-features", "--prefix", "none"])
            .args(["--target", "x86_64-unknown-linux-gnu"]),
        LIMIT,
    )
    .context("cannot list the crates")?;
    // A crate that occurs again has a mark behind its name and version.
    let crates: BTreeSet<&str> = tree
        .lines()
        .map(|line| line.trim_end_matches(" (*)").trim())
        .filter(|line| !line.is_empty())
        .collect();
    Ok(crates.len())
}
