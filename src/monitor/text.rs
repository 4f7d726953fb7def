//! The answers of the monitor as text: for people and for Prometheus.

use std::fmt::Write as _;

use crate::report::Report;
use crate::task_table::{TaskInfo, TaskState};

/// The tasks as a table, aligned, at most [`COLUMNS`] wide.
pub(super) fn ps(tasks: &[TaskInfo]) -> String {
    let header = COLUMNS.map(|(name, _)| name.to_owned());
    let rows: Vec<[String; COLUMNS.len()]> = std::iter::once(header)
        .chain(tasks.iter().map(row))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; COLUMNS.len()] =
        std::array::from_fn(|column| width(column).min(COLUMNS[column].1));
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // The beginning is cut off, because the end of a path tells more.
            let cut = cell.chars().count().saturating_sub(width);
            let shown: String = cell.chars().skip(cut).collect();
            write!(line, "{shown:<width$}  ").expect("a String takes everything");
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

/// The columns of [`ps`], with their maximum widths.
const COLUMNS: [(&str, usize); 11] = [
    ("ID", 8),
    ("STATE", 7),
    ("AGE", 9),
    ("POLLS", 9),
    ("BUSY", 9),
    ("LONGEST", 9),
    ("NAME", 16),
    ("PEER", 24),
    ("IN", 12),
    ("OUT", 12),
    ("SPAWNED AT", 32),
];

fn row(task: &TaskInfo) -> [String; COLUMNS.len()] {
    let connection = task.connection.as_ref();
    [
        task.id.to_string(),
        task.state.to_string(),
        format!("{:.1?}", task.age),
        task.polls.to_string(),
        format!("{:.1?}", task.busy),
        format!("{:.1?}", task.longest_poll),
        task.name
            .as_deref()
            .unwrap_or("-")
            .escape_debug()
            .to_string(),
        connection.map_or_else(|| "-".to_owned(), |connection| connection.peer_addr.clone()),
        connection.map_or_else(
            || "-".to_owned(),
            |connection| connection.bytes_in.to_string(),
        ),
        connection.map_or_else(
            || "-".to_owned(),
            |connection| connection.bytes_out.to_string(),
        ),
        format!("{}:{}", task.place.file(), task.place.line()),
    ]
}

pub(super) fn stats(servers: &[(String, Report)]) -> String {
    let mut text = String::new();
    for (addrs, report) in servers {
        text.push_str(&format!("server {addrs}\n"));
        for (name, count) in report.counters() {
            text.push_str(&format!("{name:<17} {count}\n"));
        }
    }
    if text.is_empty() {
        text.push_str("no server is running\n");
    }
    text
}

/// Prometheus's text format, version 0.0.4:
/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
pub(super) fn metrics(tasks: &[TaskInfo], servers: &[(String, Report)]) -> String {
    let mut text = String::from(
        "# HELP tinyloop_tasks Tasks of the event loop.\n# TYPE tinyloop_tasks gauge\n",
    );
    for state in [TaskState::Running, TaskState::Ready, TaskState::Waiting] {
        let count = tasks.iter().filter(|task| task.state == state).count();
        text.push_str(&format!("tinyloop_tasks{{state=\"{state}\"}} {count}\n"));
    }
    let longest = tasks
        .iter()
        .map(|task| task.longest_poll)
        .max()
        .unwrap_or_default();
    text.push_str(
        "# HELP tinyloop_longest_poll_seconds The longest poll of a task that is there.\n\
         # TYPE tinyloop_longest_poll_seconds gauge\n",
    );
    let (seconds, nanos) = (longest.as_secs(), longest.subsec_nanos());
    text.push_str(&format!(
        "tinyloop_longest_poll_seconds {seconds}.{nanos:09}\n"
    ));
    for (index, (name, _)) in Report::default().counters().iter().enumerate() {
        let metric = format!("tinyloop_{}", name.replace(' ', "_"));
        let (metric, kind) = match *name {
            "open" | "peak connections" => (metric, "gauge"),
            _ => (format!("{metric}_total"), "counter"),
        };
        text.push_str(&format!(
            "# HELP {metric} Of each server: {name}.\n# TYPE {metric} {kind}\n"
        ));
        for (addrs, report) in servers {
            text.push_str(&format!(
                "{metric}{{{}}} {}\n",
                labels(addrs),
                report.counters()[index].1
            ));
        }
    }
    text
}

/// The labels of a server's counters. One of several workers has its number in its name.
fn labels(name: &str) -> String {
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let of_worker = name
        .rsplit_once(" worker ")
        .filter(|(_, number)| is_number(number));
    let (addrs, worker) = match of_worker {
        Some((addrs, number)) => (addrs, format!(",worker=\"{number}\"")),
        None => (name, String::new()),
    };
    let addrs = addrs.replace('\\', "\\\\").replace('"', "\\\"");
    format!("server=\"{addrs}\"{worker}")
}
