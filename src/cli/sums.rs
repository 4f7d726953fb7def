//! Reports of several processes: how they are read, and their sum.

use serde_json::Value;
use tinyloop::Report;

/// The report that a worker has written.
pub(crate) fn report(counters: &Value) -> Report {
    let count = |name: &str| counters[name].as_u64().unwrap_or_default();
    let mut report = Report::default();
    report.accepted = count("accepted");
    report.completed = count("completed");
    report.failed = count("failed");
    report.panicked = count("panicked");
    report.timed_out = count("timed_out");
    report.rejected = count("rejected");
    report.aborted = count("aborted");
    report.bytes_in = count("bytes_in");
    report.bytes_out = count("bytes_out");
    report.peak_connections = count("peak_connections") as usize;
    report.faulty = count("faulty");
    report
}

/// The reports of two processes that were the same worker, in one.
pub(crate) fn sum_of_one(mut sum: Report, other: Report) -> Report {
    sum.accepted += other.accepted;
    sum.completed += other.completed;
    sum.failed += other.failed;
    sum.panicked += other.panicked;
    sum.timed_out += other.timed_out;
    sum.rejected += other.rejected;
    sum.aborted += other.aborted;
    sum.bytes_in += other.bytes_in;
    sum.bytes_out += other.bytes_out;
    sum.peak_connections = sum.peak_connections.max(other.peak_connections);
    sum.faulty += other.faulty;
    sum
}

/// The reports of two workers in one. Nobody knows whether their peaks came at the same time: the sum is the most that
/// may have been.
pub(crate) fn sum(one: Report, other: Report) -> Report {
    let peak_connections = one.peak_connections + other.peak_connections;
    let mut sum = sum_of_one(one, other);
    sum.peak_connections = peak_connections;
    sum
}
