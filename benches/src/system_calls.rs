//! Counts a server's system calls with strace.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};

use crate::children::{Guarded, run};
use crate::process::{Process, wait_until};

const LIMIT: Duration = Duration::from_secs(10);

/// strace, attached to all threads of a server.
pub struct Tracer {
    strace: Guarded,
    counts: PathBuf,
}

/// Whether strace is installed.
pub fn is_there() -> bool {
    run(Command::new("strace").arg("-V"), LIMIT).is_ok()
}

impl Tracer {
    pub fn attach(server: &Process) -> Result<Self> {
        let counts = env::current_exe()?.with_file_name("system-calls.txt");
        let strace = Guarded::spawn(
            Command::new("strace")
                .args(["-c", "-f", "-U", "calls,name", "-o"])
                .arg(&counts)
                .args(["-p", &server.number().to_string()])
                .stderr(Stdio::null()),
        )?;
        wait_until(|| server.is_traced()).context("strace did not attach")?;
        Ok(Self { strace, counts })
    }

    /// Detaches, and returns how many calls the server has made.
    pub fn detach(mut self) -> Result<u64> {
        kill_process(self.strace.pid(), Signal::INT)?;
        // Ends with the signal, so its status says nothing.
        self.strace.wait(LIMIT)?;
        let table = fs::read_to_string(&self.counts)?;
        let mut sum = 0;
        for line in table.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [calls, name] = words[..]
                && name != "total"
                && let Ok(calls) = calls.parse::<u64>()
            {
                sum += calls;
            }
        }
        ensure!(sum > 0, "strace counted nothing");
        Ok(sum)
    }
}
