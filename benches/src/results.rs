//! All figures of a run, and what they say together.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::cases::{Case, Metric};
use crate::servers::Server;

/// The figures by turn, so that those of the same turn can be compared: whatever slowed the
/// machine then slowed both.
pub struct Results {
    figures: HashMap<(Case, Server, Metric), BTreeMap<usize, f64>>,
    /// In the order in which they were first measured.
    pub cases: Vec<(Case, Metric)>,
    pub servers: Vec<Server>,
    pub failures: Vec<Failure>,
}

/// A measurement that gave no figures.
pub struct Failure {
    pub case: Case,
    pub server: Server,
    pub reason: String,
}

/// A median with its spread.
#[derive(Clone, Copy)]
pub struct Summary {
    pub median: f64,
    pub lower_quartile: f64,
    pub upper_quartile: f64,
    pub least: f64,
    pub most: f64,
    pub turns: usize,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, {}: {}", self.case, self.server, self.reason)
    }
}

impl Results {
    pub fn new(servers: Vec<Server>) -> Self {
        Self {
            figures: HashMap::new(),
            cases: Vec::new(),
            servers,
            failures: Vec::new(),
        }
    }

    pub fn add(&mut self, case: Case, server: Server, turn: usize, figures: Vec<(Metric, f64)>) {
        for (metric, figure) in figures {
            if !self.cases.contains(&(case, metric)) {
                self.cases.push((case, metric));
            }
            self.figures
                .entry((case, server, metric))
                .or_default()
                .insert(turn, figure);
        }
    }

    pub fn summary(&self, case: Case, server: Server, metric: Metric) -> Option<Summary> {
        let figures = self.sound(case, server, metric)?;
        Summary::of(figures.values().copied().collect())
    }

    /// Whether a server gave a wrong reply in a case, or none.
    pub fn has_failed(&self, case: Case, server: Server) -> bool {
        self.failures
            .iter()
            .any(|failure| (failure.case, failure.server) == (case, server))
    }

    /// A server's figures over those of a reference in the same turns.
    pub fn ratio(
        &self,
        case: Case,
        server: Server,
        reference: Server,
        metric: Metric,
    ) -> Option<Summary> {
        let figures = self.sound(case, server, metric)?;
        let references = self.sound(case, reference, metric)?;
        Summary::of(
            figures
                .iter()
                .filter_map(|(turn, figure)| Some(figure / references.get(turn)?))
                .filter(|ratio| ratio.is_finite())
                .collect(),
        )
    }

    /// The figures by turn, but nothing of a server that failed at any time: what it did before
    /// counts for nothing.
    fn sound(&self, case: Case, server: Server, metric: Metric) -> Option<&BTreeMap<usize, f64>> {
        if self.has_failed(case, server) {
            return None;
        }
        self.figures.get(&(case, server, metric))
    }
}

impl Summary {
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let (&least, &most) = (figures.first()?, figures.last()?);
        Some(Self {
            median: quantile(&figures, 0.5),
            lower_quartile: quantile(&figures, 0.25),
            upper_quartile: quantile(&figures, 0.75),
            least,
            most,
            turns: figures.len(),
        })
    }
}

/// The figure at a fraction of the way through the sorted figures, between two where it falls
/// between them.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let place = fraction * (sorted.len() - 1) as f64;
    let below = sorted[place.floor() as usize];
    let above = sorted[place.ceil() as usize];
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_figures() {
        let summary = Summary::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(summary.median, 2.5);
        assert_eq!(summary.lower_quartile, 1.75);
        assert_eq!(summary.upper_quartile, 3.25);
        assert_eq!((summary.least, summary.most), (1.0, 4.0));
    }

    #[test]
    fn ratios_are_of_the_same_turn() {
        let case = crate::cases::small(1);
        let metric = Metric::MessagesPerSecond;
        let mut results = Results::new(vec![Server::Tinyloop, Server::Tokio]);
        for (turn, (ours, theirs)) in [(2.0, 1.0), (30.0, 10.0), (8.0, 2.0)].iter().enumerate() {
            results.add(case, Server::Tinyloop, turn, vec![(metric, *ours)]);
            results.add(case, Server::Tokio, turn, vec![(metric, *theirs)]);
        }
        results.add(case, Server::Tinyloop, 3, vec![(metric, 1000.0)]);
        let ratio = results
            .ratio(case, Server::Tinyloop, Server::Tokio, metric)
            .unwrap();
        assert_eq!((ratio.median, ratio.turns), (3.0, 3));
    }

    #[test]
    fn a_wrong_reply_takes_away_all_figures_of_the_case() {
        let (case, metric) = (crate::cases::small(1), Metric::MessagesPerSecond);
        let mut results = Results::new(vec![Server::Tinyloop]);
        results.add(case, Server::Tinyloop, 0, vec![(metric, 1.0)]);
        assert!(results.summary(case, Server::Tinyloop, metric).is_some());
        results.failures.push(Failure {
            case,
            server: Server::Tinyloop,
            reason: "wrong reply".to_owned(),
        });
        assert!(results.summary(case, Server::Tinyloop, metric).is_none());
    }
}
