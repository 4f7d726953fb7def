//! Counts a server's system calls with `perf stat`, which counts them in the kernel.
//!
//! strace would be installed more often, but stops the server at each call, and that changes the figure. Traced as a
//! whole, each call takes several times as long: a turn of tinyloop's, which lasts some time by the clock, then holds a
//! fraction of its messages, and smol's helper thread gets hold of the reactor, so that the loop's own looks at the
//! sockets vanish from the count. With a filter and one group of calls a run (`--seccomp-bpf -e trace=recvfrom`) the
//! looks are there. But a server that tries to receive right behind its reply (smol, asyncio, Go) is stopped there for
//! so long that the next message has come, and its receive in vain vanishes instead.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process};

use crate::children::{Guarded, run};
use crate::process::{Process, wait_until};

const LIMIT: Duration = Duration::from_secs(10);

/// All system calls.
const ALL: &str = "raw_syscalls:sys_enter";

/// A system call, with its name behind this.
const ONE: &str = "syscalls:sys_enter_";

/// Calls that have a figure of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    Receive,
    Send,
    Read,
    Write,
    Wait,
    EpollControl,
    SetTimer,
}

impl Group {
    pub const ALL: [Self; 7] = [
        Self::Receive,
        Self::Send,
        Self::Read,
        Self::Write,
        Self::Wait,
        Self::EpollControl,
        Self::SetTimer,
    ];

    /// What the figure of a group is called.
    pub fn figure_name(self) -> &'static str {
        match self {
            Self::Receive => "recv per message",
            Self::Send => "send per message",
            Self::Read => "read per message",
            Self::Write => "write per message",
            Self::Wait => "epoll_wait per message",
            Self::EpollControl => "epoll_ctl per message",
            Self::SetTimer => "timerfd_settime per message",
        }
    }

    /// The calls' names, as perf takes them: a star stands for any letters.
    fn pattern(self) -> &'static str {
        match self {
            Self::Receive => "recv*",
            Self::Send => "send*",
            Self::Read => "read",
            Self::Write => "write",
            Self::Wait => "epoll_*wait*",
            Self::EpollControl => "epoll_ctl",
            Self::SetTimer => "timerfd_settime",
        }
    }

    fn holds(self, call: &str) -> bool {
        match self.pattern().split_once('*') {
            Some((begin, rest)) => call
                .strip_prefix(begin)
                .is_some_and(|end| end.contains(rest.trim_end_matches('*'))),
            None => call == self.pattern(),
        }
    }
}

/// perf, attached to all threads of a server.
pub struct Counter {
    perf: Guarded,
    table: PathBuf,
}

/// How many calls a server has made.
pub struct Counts {
    pub all: u64,
    calls: Vec<(String, u64)>,
}

/// Whether perf is installed, and may count.
pub fn are_countable() -> bool {
    let mut perf = Command::new("perf");
    perf.args(["stat", "-e", ALL, "true"]).stderr(Stdio::null());
    run(&mut perf, LIMIT).is_ok()
}

impl Counter {
    pub fn attach(server: &Process) -> Result<Self> {
        let table = env::current_exe()?.with_file_name("system-calls.txt");
        let said = table.with_file_name("perf-says.txt");
        let mut perf = Command::new("perf");
        // A delay, if only of one millisecond, makes perf say when it begins to count.
        perf.args(["stat", "-D", "1", "-x", ",", "-e", ALL])
            .args(Group::ALL.map(|group| format!("-e{ONE}{}", group.pattern())))
            .arg("-o")
            .arg(&table)
            .args(["-p", &server.number().to_string()])
            .stdin(Stdio::null())
            .stderr(File::create(&said)?);
        let perf = Guarded::spawn(&mut perf)?;
        wait_until(|| Ok(fs::read_to_string(&said)?.contains("Events enabled")))
            .context("perf did not attach")?;
        Ok(Self { perf, table })
    }

    pub fn detach(mut self) -> Result<Counts> {
        kill_process(self.perf.pid(), Signal::INT)?;
        // Ends with the signal, so its status says nothing.
        self.perf.wait(LIMIT)?;
        Counts::read(&fs::read_to_string(&self.table)?).context("perf counted nothing")
    }
}

impl Counts {
    /// Reads perf's table, whose lines are `count,unit,event,...`.
    fn read(table: &str) -> Option<Self> {
        let mut all = None;
        let mut calls = Vec::new();
        for line in table.lines() {
            if let [count, _, event, ..] = line.split(',').collect::<Vec<_>>()[..]
                && let Ok(count) = count.parse()
            {
                if event == ALL {
                    all = Some(count);
                } else if let Some(name) = event.strip_prefix(ONE) {
                    calls.push((name.to_owned(), count));
                }
            }
        }
        all.map(|all| Self { all, calls })
    }

    pub fn of(&self, group: Group) -> u64 {
        let calls = self.calls.iter().filter(|(name, _)| group.holds(name));
        calls.map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_counted_in_its_group() {
        let table = "# started on Wed Nov 25 04:26:39 2026\n\n\
            211,,raw_syscalls:sys_enter,63428,100.00,,\n\
            100,,syscalls:sys_enter_recvfrom,63428,100.00,,\n\
            <not counted>,,syscalls:sys_enter_recvmsg,0,0.00,,\n\
            3,,syscalls:sys_enter_epoll_wait,63428,100.00,,\n\
            4,,syscalls:sys_enter_epoll_pwait2,63428,100.00,,\n\
            2,,syscalls:sys_enter_epoll_ctl,63428,100.00,,\n";
        let counts = Counts::read(table).unwrap();
        assert_eq!(counts.all, 211);
        assert_eq!(
            Group::ALL.map(|group| counts.of(group)),
            [100, 0, 0, 0, 7, 2, 0]
        );
        assert!(Counts::read("").is_none());
    }
}
