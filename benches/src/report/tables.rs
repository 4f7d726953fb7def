//! The figures as a table in Markdown.

use std::fmt::Write;

use super::short;
use crate::results::Results;
use crate::servers::Server;

/// Each server's median figures: a table for the cases on one CPU, and one for those on all.
pub fn figures(results: &Results) -> String {
    let tables = [false, true].map(|shared| table(results, shared));
    tables.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// The cases in which server and load generator share all CPUs, or the others. `None` where none was measured.
fn table(results: &Results, shared: bool) -> Option<String> {
    let cases = || {
        let all = results.cases.iter().copied();
        all.filter(|(case, _)| case.shares_cpus() == shared)
    };
    cases().next()?;
    let servers: Vec<Server> = results
        .servers
        .iter()
        .copied()
        .filter(|&server| cases().any(|(case, _)| case.suits(server)))
        .collect();
    let mut text = String::from("| |");
    for server in &servers {
        let _ = write!(text, " {server} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(servers.len()));
    text.push('\n');
    for (case, metric) in cases() {
        let unit = match metric.unit() {
            // The metric's name says it already.
            "" | "1/s" | "MB/s" => String::new(),
            unit => format!(", {unit}"),
        };
        let _ = write!(text, "| {case}: {}{unit} |", metric.name());
        for &server in &servers {
            let figure = match results.summary(case, server, metric) {
                Some(summary) => short(summary.median),
                None if results.has_failed(case, server) => "failed".to_owned(),
                None => "–".to_owned(),
            };
            let _ = write!(text, " {figure} |");
        }
        text.push('\n');
    }
    Some(text)
}
