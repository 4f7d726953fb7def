//! Child processes that end with this one.

use std::collections::BTreeSet;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// The process numbers of all children that have not been waited for.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes an interrupt, a termination and a hang-up end the children too.
pub fn end_with_this_process() -> Result<()> {
    ctrlc::set_handler(|| {
        // Held until the end, so that no child can be started after this.
        let running = running();
        for &number in running.iter() {
            if let Some(pid) = Pid::from_raw(number as i32) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::process::exit(130);
    })?;
    Ok(())
}

/// A child that is killed when this value goes.
pub struct Guarded {
    pub child: Child,
}

impl Guarded {
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let mut running = running();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        running.insert(child.id());
        Ok(Self { child })
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until the child ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            // Locked, because a number that has been waited for may be another process's.
            let mut running = running();
            if let Some(status) = self.child.try_wait()? {
                running.remove(&self.child.id());
                return Ok(status);
            }
            drop(running);
            ensure!(Instant::now() < end, "took longer than {limit:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut running = running();
        // Fails only where the child has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        running.remove(&self.child.id());
    }
}

/// Runs a command to its end, and returns what it printed. Its output has to fit into a pipe.
pub fn run(command: &mut Command, limit: Duration) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let program = command.get_program().display().to_string();
    let mut guarded = Guarded::spawn(command)?;
    let status = guarded.wait(limit).with_context(|| program.clone())?;
    let mut printed = String::new();
    if let Some(mut stdout) = guarded.child.stdout.take() {
        std::io::Read::read_to_string(&mut stdout, &mut printed)?;
    }
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(printed)
}
