//! The figures as comma-separated values.

use std::fmt::Write;

use crate::facts::Facts;
use crate::results::{Results, Summary};
use crate::servers::Server;

/// A line for each figure of each server, with its spread and the medians of its ratios to the
/// two servers that matter most.
pub fn figures(results: &Results, facts: Option<&Facts>) -> String {
    let mut text = String::from(
        "case,metric,unit,server,median,lower quartile,upper quartile,least,most,turns,\
         ratio to tokio,ratio to epoll\n",
    );
    for &(case, metric) in &results.cases {
        for &server in &results.servers {
            let Some(summary) = results.summary(case, server, metric) else {
                continue;
            };
            let ratio = |reference| {
                results
                    .ratio(case, server, reference, metric)
                    .map_or_else(String::new, |ratio| format!("{:.4}", ratio.median))
            };
            let _ = writeln!(
                text,
                "\"{case}\",{},{},{server},{},{},{}",
                metric.name(),
                metric.unit(),
                spread(&summary),
                ratio(Server::Tokio),
                ratio(Server::Epoll),
            );
        }
    }
    if let Some(facts) = facts {
        for (name, unit, figure) in [
            ("stripped binary", "B", facts.binary),
            ("crates", "", facts.crates as u64),
        ] {
            let _ = writeln!(text, "tinyloop,{name},{unit},tinyloop,{figure},,,,,,,");
        }
    }
    text
}

fn spread(summary: &Summary) -> String {
    let Summary {
        median,
        lower_quartile,
        upper_quartile,
        least,
        most,
        turns,
    } = summary;
    format!("{median:.3},{lower_quartile:.3},{upper_quartile:.3},{least:.3},{most:.3},{turns}")
}
