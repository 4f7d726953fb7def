//! The rounds of each case, in which the servers take turns.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cases::Case;
use crate::cpus::Cpus;
use crate::load::{Pattern, SourceAddresses};
use crate::meter::Figures;
use crate::once;
use crate::results::{Failure, Results};
use crate::servers::Fleet;
use crate::session::{Bench, Session};

/// How long a run takes.
pub struct Extent {
    /// How often each case is measured with new processes.
    pub rounds: usize,
    /// How long a server is measured at once.
    pub turn: Duration,
    /// How many open files this process may have.
    pub descriptors: usize,
}

/// Measures case by case.
pub fn run(cases: &[Case], fleet: &Fleet, extent: &Extent, cpus: Cpus) -> Result<Results> {
    let bench = Bench {
        cpus,
        pattern: Pattern::new(),
        sources: SourceAddresses::new(),
        turn: extent.turn,
    };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}, {eta} left: {msg}")?;
    let turns: usize = cases
        .iter()
        .map(|case| case.turns() * extent.rounds * suited(*case, fleet).len())
        .sum();
    let mut run = Run {
        bench: &bench,
        fleet,
        descriptors: extent.descriptors,
        progress: ProgressBar::new(turns as u64).with_style(style),
        results: Results::new(fleet.programs.iter().map(|(server, _)| *server).collect()),
    };
    let begin = Instant::now();
    for &case in cases {
        if run.progress.is_hidden() {
            // No terminal that shows a bar: a line for each case is for whoever waits, or asks what took so long.
            eprintln!("after {} s: {case}", begin.elapsed().as_secs());
        }
        for round in 0..extent.rounds {
            run.round(case, round);
        }
    }
    run.progress.finish_and_clear();
    Ok(run.results)
}

/// The places in the fleet of the servers that can do a case.
fn suited(case: Case, fleet: &Fleet) -> Vec<usize> {
    (0..fleet.programs.len())
        .filter(|&place| case.suits(fleet.programs[place].0))
        .collect()
}

struct Run<'a> {
    bench: &'a Bench,
    fleet: &'a Fleet,
    descriptors: usize,
    progress: ProgressBar,
    results: Results,
}

impl<'a> Run<'a> {
    /// Lets the servers take turns, each first once. A server that has failed sits out the rest.
    fn round(&mut self, case: Case, round: usize) {
        let mut places = suited(case, self.fleet);
        let mut sessions: Vec<Option<Session<'a>>> = Vec::new();
        sessions.resize_with(self.fleet.programs.len(), || None);
        let mut failed = vec![false; self.fleet.programs.len()];
        let keep = self.can_keep(case, places.len());

        for turn in 0..case.turns() {
            for &place in &places {
                self.progress.inc(1);
                if failed[place] {
                    continue;
                }
                let server = self.fleet.programs[place].0;
                self.progress.set_message(format!("{case}: {server}"));
                match self.take_turn(case, place, &mut sessions[place]) {
                    Ok(figures) => {
                        let index = round * case.turns() + turn;
                        self.results.add(case, server, index, figures);
                    }
                    Err(error) => {
                        failed[place] = true;
                        self.results.failures.push(Failure {
                            case,
                            server,
                            reason: format!("{error:#}"),
                        });
                    }
                }
                if !keep || failed[place] {
                    sessions[place] = None;
                }
            }
            places.rotate_left(1);
        }
    }

    /// Measures a server in its session, which is opened where there is none, or in a process for this turn alone.
    fn take_turn(
        &self,
        case: Case,
        place: usize,
        session: &mut Option<Session<'a>>,
    ) -> Result<Figures> {
        if let Some(session) = session {
            return session.take_turn();
        }
        let program = self.fleet.program(place, case)?;
        match Session::open(self.bench, case, &program)? {
            Some(opened) => session.insert(opened).take_turn(),
            None => once::measure(self.bench, case, &program),
        }
    }

    /// Whether all servers of a case can stay there between turns, with their connections open,
    /// which is what makes turns short and so comparable.
    fn can_keep(&self, case: Case, servers: usize) -> bool {
        let spare = 200;
        case.lasting_connections()
            .is_some_and(|connections| connections * servers + spare <= self.descriptors)
    }
}
