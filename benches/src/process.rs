//! A server as a process: how it is started, watched and ended.

use std::env;
use std::fs::{self, File};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::time::{ClockId, clock_getcpuclockid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, kill_process};

use crate::children::Guarded;
use crate::cpus::Cpus;
use crate::peers::ANNOUNCEMENT;

/// How long a server may take to start, or to stop and continue.
const LIMIT: Duration = Duration::from_secs(10);

/// How a server is started.
#[derive(Clone)]
pub struct Program {
    /// Names the file for what it complains of.
    pub name: &'static str,
    pub path: PathBuf,
    pub arguments: Vec<String>,
}

/// A running server, which is killed when this value goes.
pub struct Process {
    guarded: Guarded,
    /// The CPU clocks of the process and of its children.
    clocks: Vec<ClockId>,
    /// Open as long as the server runs, so that it can go on printing.
    _stdout: ChildStdout,
    pub address: SocketAddrV4,
}

impl Process {
    /// Starts a server and waits until it listens. What it complains of goes to a file.
    pub fn start(program: &Program, cpus: Cpus) -> Result<Self> {
        Process::spawn(program, |command| {
            cpus.on_server(|| Guarded::spawn(command))
        })
    }

    /// The same where the load generator may run.
    pub fn start_beside(program: &Program) -> Result<Self> {
        Process::spawn(program, Guarded::spawn)
    }

    fn spawn(
        program: &Program,
        spawn: impl FnOnce(&mut Command) -> Result<Guarded>,
    ) -> Result<Self> {
        let complaints =
            env::current_exe()?.with_file_name(format!("{}-complaints.txt", program.name));
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            // Go's runtime is the only one that asks for this.
            .env("GOMAXPROCS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&complaints)?);
        let mut guarded = spawn(&mut command)?;
        let mut stdout = guarded.child.stdout.take().context("no standard output")?;
        let address = read_announcement(&mut stdout).map_err(|error| {
            let said = fs::read_to_string(&complaints).unwrap_or_default();
            match said.lines().last() {
                Some(line) => error.context(format!("`{line}`")),
                None => error,
            }
        })?;
        let clocks = family(guarded.child.id())?
            .into_iter()
            .map(|number| clock_getcpuclockid(nix::unistd::Pid::from_raw(number)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            guarded,
            clocks,
            _stdout: stdout,
            address,
        })
    }

    pub fn number(&self) -> u32 {
        self.guarded.child.id()
    }

    /// The CPU time of all the server's threads and workers, ended threads too, to the nanosecond.
    pub fn cpu_time(&self) -> Result<Duration> {
        let times = self.clocks.iter().map(|clock| clock.now());
        times.map(|time| Ok(Duration::from(time?))).sum()
    }

    /// The memory that the server has in RAM. `smaps_rollup` counts exactly, where the figure in
    /// `status` may be some hundred kilobytes off.
    pub fn resident_bytes(&self) -> Result<u64> {
        let rollup = fs::read_to_string(self.file("smaps_rollup"))?;
        Ok(field(&rollup, "Rss:")? * 1024)
    }

    /// How often a thread of the server has gone to sleep, and so been woken up.
    pub fn sleeps(&self) -> Result<u64> {
        let mut sum = 0;
        for thread in fs::read_dir(self.file("task"))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            sum += field(&status, "voluntary_ctxt_switches:")?;
        }
        Ok(sum)
    }

    /// Stops the server as a job is stopped, and waits until it has.
    pub fn stop(&self) -> Result<()> {
        kill_process(self.guarded.pid(), Signal::STOP)?;
        wait_until(|| {
            let stat = fs::read_to_string(self.file("stat"))?;
            // The state is the first word behind the name, which is in parentheses.
            Ok(stat
                .rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T')))
        })
    }

    pub fn resume(&self) -> Result<()> {
        Ok(kill_process(self.guarded.pid(), Signal::CONT)?)
    }

    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.number()))
    }
}

/// Waits, for a limited time, until something is so.
pub fn wait_until(mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while !is_so()? {
        ensure!(Instant::now() < end, "took longer than {LIMIT:?}");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The numbers of a process and of its children.
fn family(parent: u32) -> Result<Vec<i32>> {
    let mut numbers = vec![parent as i32];
    for thread in fs::read_dir(format!("/proc/{parent}/task"))? {
        let children = fs::read_to_string(thread?.path().join("children"))?;
        for number in children.split_whitespace() {
            numbers.push(number.parse()?);
        }
    }
    Ok(numbers)
}

/// Reads the server's first line, and returns the address in it.
fn read_announcement(stdout: &mut ChildStdout) -> Result<SocketAddrV4> {
    let end = Instant::now() + LIMIT;
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    while !line.contains(&b'\n') {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
        let mut waiting = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)];
        ensure!(
            poll(&mut waiting, Some(&left))? > 0,
            "the server did not say where it listens"
        );
        let count = rustix::io::read(&*stdout, &mut buffer[..])?;
        if count == 0 {
            bail!("the server ended at its start");
        }
        line.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8_lossy(&line);
    let first = text.lines().next().unwrap_or_default();
    first
        .strip_prefix(ANNOUNCEMENT)
        .and_then(|address| address.parse().ok())
        .with_context(|| format!("the server's first line is `{first}`"))
}

/// The number behind a name in one of /proc's tables.
fn field(table: &str, name: &str) -> Result<u64> {
    table
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no `{name}` in /proc"))
}
