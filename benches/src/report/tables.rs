//! The figures as a table in Markdown.

use std::fmt::Write;

use super::short;
use crate::results::Results;

/// Each server's median figures.
pub fn figures(results: &Results) -> String {
    let mut text = String::from("| |");
    for server in &results.servers {
        let _ = write!(text, " {server} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(results.servers.len()));
    text.push('\n');
    for &(case, metric) in &results.cases {
        let unit = match metric.unit() {
            // The metric's name says it already.
            "" | "1/s" | "MB/s" => String::new(),
            unit => format!(", {unit}"),
        };
        let _ = write!(text, "| {case}: {}{unit} |", metric.name());
        for &server in &results.servers {
            let figure = match results.summary(case, server, metric) {
                Some(summary) => short(summary.median),
                None if results.has_failed(case, server) => "failed".to_owned(),
                None => "–".to_owned(),
            };
            let _ = write!(text, " {figure} |");
        }
        text.push('\n');
    }
    text
}
