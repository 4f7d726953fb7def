//! The goals, and whether this run met them.

use std::fmt::Write;

use super::short;
use crate::cases::{Case, LARGE_ROUND_TRIPS, Metric, SMALL_ROUND_TRIPS, small};
use crate::facts::Facts;
use crate::results::Results;
use crate::servers::Server;

/// What a figure of a server should be.
struct Goal {
    server: Server,
    case: Case,
    metric: Metric,
    compared: Compared,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Compared {
    /// The median of the ratios to this server in the same turns.
    With(Server),
    /// The median figure itself.
    Alone,
    /// The highest figure of all turns.
    AtWorst,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Within(f64, f64),
}

impl Bound {
    fn is_met_by(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(bound) => figure >= bound,
            Self::AtMost(bound) => figure <= bound,
            Self::Within(least, most) => (least..=most).contains(&figure),
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::Within(least, most) => format!("{least} to {most}"),
        }
    }
}

fn goals() -> Vec<Goal> {
    use Bound::{AtLeast, AtMost, Within};
    use Compared::{Alone, AtWorst, With};
    use Server::{Asyncio, Epoll, Go, OneWorker, Tokio, TwoWorkers, Uvloop};

    let mut goals = Vec::new();
    let mut add = |case, metric, compared, bound| {
        goals.push(Goal {
            server: Server::Tinyloop,
            case,
            metric,
            compared,
            bound,
        });
    };

    let rate = Metric::MessagesPerSecond;
    let tail = Metric::Percentile99;
    for connections in SMALL_ROUND_TRIPS {
        let case = small(connections);
        add(case, rate, With(Epoll), AtLeast(1.0));
        let of_tokio = if connections == 1 { 2.5 } else { 1.0 };
        add(case, rate, With(Tokio), AtLeast(of_tokio));
        add(case, tail, With(Tokio), AtMost(1.05));
    }
    for (connections, most) in [(10, 1.02), (100, 1.02), (1000, 1.05)] {
        let cpu = Metric::CpuPerMessage;
        add(small(connections), cpu, With(Tokio), AtMost(most));
    }
    add(small(100), rate, With(Asyncio), AtLeast(4.0));
    add(small(100), rate, With(Uvloop), AtLeast(3.0));
    add(LARGE_ROUND_TRIPS, rate, With(Tokio), AtLeast(1.0));
    add(LARGE_ROUND_TRIPS, rate, With(Go), AtLeast(1.0));
    add(LARGE_ROUND_TRIPS, tail, With(Tokio), AtMost(1.05));
    add(
        Case::SystemCalls,
        Metric::CallsPerMessage,
        Alone,
        AtMost(2.1),
    );

    let connects = Metric::ConnectionsPerSecond;
    add(Case::Connects, connects, With(Tokio), AtLeast(1.0));
    add(Case::Connects, connects, With(Go), AtLeast(1.0));
    let cpu = Metric::CpuPerConnection;
    add(Case::Connects, cpu, With(Tokio), AtMost(1.0));
    add(Case::Burst, Metric::Waited, AtWorst, AtMost(0.0));

    let bytes = Metric::BytesPerSecond;
    for (connections, least) in [(1, 1.0), (8, 0.95)] {
        let case = Case::Streams { connections };
        add(case, bytes, With(Tokio), AtLeast(least));
    }
    for (flooders, most) in [(1, 0.7), (8, 0.3)] {
        let case = Case::Probe { flooders };
        add(case, tail, With(Tokio), AtMost(most));
    }

    let (rate, cpu) = (Metric::MessagesPerSecond, Metric::CpuPerMessage);
    let http = [1, 10, 100, 1000].map(|connections| Case::Http { connections });
    for case in http.into_iter().chain([Case::Http2]) {
        add(case, rate, With(Tokio), AtLeast(1.0));
        add(case, cpu, With(Tokio), AtMost(1.03));
    }
    let (bytes, cpu) = (Metric::BytesPerSecond, Metric::CpuPerMegabyte);
    add(Case::ForwardedStream, bytes, With(Tokio), AtLeast(1.0));
    add(Case::ForwardedStream, cpu, With(Tokio), AtMost(1.0));
    for clients in [1, 8] {
        let case = Case::ForwardedConnects { clients };
        add(case, connects, With(Tokio), AtLeast(1.0));
        add(case, Metric::CpuPerConnection, With(Tokio), AtMost(1.0));
    }

    add(Case::Client, Metric::MainToTask, Alone, Within(0.9, 1.1));
    let without_buffers = Case::Memory { own_buffers: false };
    let bytes = Metric::BytesPerConnection;
    add(without_buffers, bytes, Alone, AtMost(700.0));
    add(Case::Idle, Metric::WakeUps, AtWorst, AtMost(0.0));
    add(Case::Idle, Metric::CpuWhileIdle, AtWorst, AtMost(0.0));

    let mut add_for_two_workers = |case, metric, bound| {
        goals.push(Goal {
            server: TwoWorkers,
            case,
            metric,
            compared: With(OneWorker),
            bound,
        });
    };
    for connections in [100, 1000] {
        let messages = Case::SharedRoundTrips { connections };
        add_for_two_workers(messages, rate, AtLeast(1.0));
        add_for_two_workers(messages, Metric::CpuPerMessage, AtMost(1.05));
        let case = Case::SharedConnects { connections };
        add_for_two_workers(case, connects, AtLeast(1.0));
        add_for_two_workers(case, Metric::CpuPerConnection, AtMost(1.05));
    }
    goals
}

/// The goals whose figures this run has, each with its figure, its quartiles and its verdict.
pub fn table(results: &Results, facts: Option<&Facts>) -> String {
    let mut text = String::from("| goal | figure | quartiles | |\n|---|---:|---:|---|\n");
    let mut unmeasured = 0;
    for goal in goals() {
        let (case, metric) = (goal.case, goal.metric);
        let ours = goal.server;
        let (summary, of) = match goal.compared {
            Compared::With(other) => (
                results.ratio(case, ours, other, metric),
                format!(" of {other}'s"),
            ),
            Compared::Alone | Compared::AtWorst => (
                results.summary(case, ours, metric),
                format!(" {}", metric.unit()),
            ),
        };
        let bound = format!("{}{}", goal.bound.text(), of.trim_end());
        let whose = match ours {
            Server::Tinyloop => String::new(),
            other => format!("{other}, "),
        };
        let name = format!("{whose}{case}: {} {bound}", metric.name());
        let Some(summary) = summary else {
            if results.has_failed(case, ours) {
                let _ = writeln!(text, "| {name} | failed | | {} |", verdict(false));
            } else {
                unmeasured += 1;
            }
            continue;
        };
        let figure = match goal.compared {
            Compared::AtWorst => summary.most,
            Compared::With(_) | Compared::Alone => summary.median,
        };
        let _ = writeln!(
            text,
            "| {name} | {figure:.3} | {:.3}–{:.3} | {} |",
            summary.lower_quartile,
            summary.upper_quartile,
            verdict(goal.bound.is_met_by(figure)),
        );
    }
    if let Some(facts) = facts {
        let binary = facts.binary as f64 / 1e3;
        let crates = facts.crates as f64;
        for (what, figure, most) in [
            ("stripped binary ≤ 800 kB", binary, 800.0),
            ("crates with tinyloop itself ≤ 33", crates, 33.0),
        ] {
            let met = verdict(Bound::AtMost(most).is_met_by(figure));
            let _ = writeln!(text, "| {what} | {} | | {met} |", short(figure));
        }
    } else {
        unmeasured += 2;
    }
    if unmeasured > 0 {
        let _ = writeln!(text, "\nGoals that this run did not measure: {unmeasured}.");
    }
    text
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**missed**" }
}
