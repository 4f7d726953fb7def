//! What the system says of a running process: its memory, descriptors, processor time and sleeps; and on which
//! processors it runs.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::support::DEADLINE;

/// The memory that a process has in RAM. The sum in its `status` may be some hundred kilobytes off, this one is exact.
pub(crate) fn resident_bytes(pid: Pid) -> usize {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    field(&rollup, "Rss:") * 1024
}

/// The numbers of the descriptors that a process has open.
pub(crate) fn descriptors(pid: Pid) -> Vec<usize> {
    let names = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let number = |name: fs::DirEntry| name.file_name().to_str()?.parse().ok();
    names.filter_map(|name| number(name.unwrap())).collect()
}

/// The processor time that a process has used so far.
pub(crate) fn processor_time(pid: Pid) -> Duration {
    let nanoseconds = threads(pid).map(|thread| {
        let statistics = fs::read_to_string(format!("/proc/{thread}/schedstat")).unwrap();
        let on_processor = statistics.split(' ').next().unwrap();
        on_processor.parse::<u64>().unwrap()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// How often the threads of a process have left the processor. As long as that stays the same, none was woken.
pub(crate) fn context_switches(pid: Pid) -> usize {
    let switches = threads(pid).map(|thread| {
        let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap();
        field(&status, "\nvoluntary_ctxt_switches:")
            + field(&status, "\nnonvoluntary_ctxt_switches:")
    });
    switches.sum()
}

/// Whether a process ignores a signal.
pub(crate) fn ignores(pid: Pid, signal: Signal) -> bool {
    is_among(pid, "SigIgn:", signal)
}

/// Whether a process handles a signal.
pub(crate) fn handles(pid: Pid, signal: Signal) -> bool {
    is_among(pid, "SigCgt:", signal)
}

fn is_among(pid: Pid, set: &str, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let (_, mask) = status.split_once(set).unwrap();
    let mask = mask.split_whitespace().next().unwrap();
    u64::from_str_radix(mask, 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
}

/// Stops a process as a job is stopped, and waits until it has.
pub(crate) fn stop(pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    let start = Instant::now();
    // Each thread stops by itself. The state comes behind the name, which is in parentheses.
    let runs = |thread: Pid| {
        let stat = fs::read_to_string(format!("/proc/{thread}/stat")).unwrap();
        !stat.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    while threads(pid).any(runs) {
        assert!(start.elapsed() < DEADLINE, "does not stop");
        thread::yield_now();
    }
}

/// The numbers of a process's threads.
fn threads(pid: Pid) -> impl Iterator<Item = Pid> {
    let names = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let number = |name: fs::DirEntry| name.file_name().to_str()?.parse().ok();
    names.filter_map(move |name| Pid::from_raw(number(name.unwrap())?))
}

/// The number behind a name in one of the system's tables.
pub(crate) fn field(table: &str, name: &str) -> usize {
    let (_, behind) = table.split_once(name).unwrap();
    behind.split_whitespace().next().unwrap().parse().unwrap()
}

/// Lets this process have as many descriptors as the system allows it, and tells how many that are.
pub(crate) fn raise_descriptor_limit() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    limit.maximum.map_or(usize::MAX, |most| most as usize)
}

/// Runs `start` on the first processor, where the process that it starts stays, and moves this thread to the last.
///
/// So a server is not delayed by the load that a test makes; but on a machine with one processor they share it.
pub(crate) fn on_another_processor<T>(start: impl FnOnce() -> T) -> T {
    let allowed = sched_getaffinity(None).unwrap();
    let mut processors = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor));
    let first = processors.next().expect("a processor");
    let last = processors.next_back().unwrap_or(first);
    stay_on(first);
    let started = start();
    stay_on(last);
    started
}

/// Keeps this thread on a processor.
pub(crate) fn stay_on(processor: usize) {
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only).unwrap();
}
