//! The limit of open files.

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Enough for thousands of connections to each server at once.
const PLENTY: u64 = 65_536;

/// Raises the limit for this process, and for the servers, which inherit it, and returns it.
pub fn raise_limit() -> Result<usize> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Only root may raise the hard limit; all others have to do with it.
    let more = maximum.map(|maximum| maximum.max(PLENTY));
    set(more)
        .or_else(|_| set(maximum))
        .context("cannot raise the limit of open files")
}

fn set(limit: Option<u64>) -> Result<usize> {
    let both = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Nofile, both)?;
    Ok(limit.map_or(usize::MAX, |limit| limit as usize))
}
