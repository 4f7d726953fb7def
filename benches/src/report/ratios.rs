//! tinyloop's figures over those of each other server, losses too.

use std::fmt::Write;

use super::short;
use crate::cases::{Case, Metric};
use crate::results::Results;
use crate::servers::Server;

/// A row for each case and figure, and a column for each server that tinyloop is compared with on one CPU.
pub fn table(results: &Results) -> String {
    let others: Vec<Server> = results
        .servers
        .iter()
        .copied()
        .filter(|server| !server.is_tinyloop() && !server.is_for_all_cpus())
        .collect();
    let mut text = String::from("| |");
    for other in &others {
        let _ = write!(text, " {other} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(others.len()));
    text.push('\n');
    for &(case, metric) in &results.cases {
        // Not what only explains other figures, and not what tinyloop alone has.
        if matches!(metric, Metric::Busy | Metric::Calls(_))
            || case == Case::Client
            || case.shares_cpus()
        {
            continue;
        }
        let _ = write!(text, "| {case}: {} |", metric.name());
        for &other in &others {
            let _ = write!(text, " {} |", cell(results, case, other, metric));
        }
        text.push('\n');
    }
    text
}

fn cell(results: &Results, case: Case, other: Server, metric: Metric) -> String {
    let ours = results.summary(case, Server::Tinyloop, metric);
    let theirs = results.summary(case, other, metric);
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        return "–".to_owned();
    };
    let ratio = results
        .ratio(case, Server::Tinyloop, other, metric)
        .filter(|_| theirs.median > 0.0);
    let Some(ratio) = ratio else {
        // There is no ratio to nothing.
        let figures = format!("{} to {}", short(ours.median), short(theirs.median));
        return mark(figures, ours.median > theirs.median);
    };
    let is_worse = if metric.more_is_better() {
        ratio.median < 1.0
    } else {
        ratio.median > 1.0
    };
    mark(format!("{:.2}", ratio.median), is_worse)
        + &format!(" ({:.2}–{:.2})", ratio.lower_quartile, ratio.upper_quartile)
}

/// Bold where tinyloop is worse.
fn mark(figure: String, is_worse: bool) -> String {
    if is_worse {
        format!("**{figure}**")
    } else {
        figure
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::small;

    fn table_of(case: Case, metric: Metric, ours: f64, theirs: f64) -> String {
        let mut results = Results::new(vec![Server::Tinyloop, Server::Tokio]);
        results.add(case, Server::Tinyloop, 0, vec![(metric, ours)]);
        results.add(case, Server::Tokio, 0, vec![(metric, theirs)]);
        table(&results)
    }

    #[test]
    fn a_loss_is_bold_whether_more_is_better_or_less() {
        let (rate, cpu) = (Metric::MessagesPerSecond, Metric::CpuPerMessage);
        for (metric, ours, cell) in [
            (rate, 3.0, "| 1.50 (1.50–1.50) |"),
            (rate, 1.0, "| **0.50** (0.50–0.50) |"),
            (cpu, 3.0, "| **1.50** (1.50–1.50) |"),
            (cpu, 1.0, "| 0.50 (0.50–0.50) |"),
        ] {
            let table = table_of(small(1), metric, ours, 2.0);
            assert!(table.contains(cell), "{table}");
        }
    }

    #[test]
    fn what_has_no_ratio_is_shown_as_figures() {
        let lost = table_of(Case::Burst, Metric::Waited, 5.0, 0.0);
        assert!(lost.contains("| **5 to 0** |"), "{lost}");
        let even = table_of(Case::Burst, Metric::Waited, 0.0, 0.0);
        assert!(even.contains("| 0 to 0 |"), "{even}");
    }
}
