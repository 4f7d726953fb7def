//! The command line.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use argh::FromArgs;

use crate::cases::{Case, Family};
use crate::servers::{HERE, Server};

/// Run tinyloop and other echo servers side by side and compare them.
#[derive(FromArgs)]
pub struct Options {
    /// full (the default), or quick, which is under a minute: fewer rounds, cases and servers
    #[argh(positional, default = "Plan::Full")]
    plan: Plan,

    /// the servers to run, such as tinyloop,tokio
    #[argh(option)]
    only: Option<List<Server>>,

    /// the cases to run, such as roundtrip,streaming
    #[argh(option)]
    case: Option<List<Family>>,

    /// how many rounds each case has, with new processes in each
    #[argh(option)]
    rounds: Option<usize>,

    /// where tables.md, results.csv and messages.svg go: by default the folder results for a full run of
    /// everything, and target/results for any other one
    #[argh(option)]
    out: Option<PathBuf>,

    /// the tinyloop binary, which is built by default
    #[argh(option)]
    pub tinyloop: Option<PathBuf>,
}

impl Options {
    pub fn servers(&self) -> Vec<Server> {
        match (&self.only, self.plan) {
            (Some(only), _) => only.0.clone(),
            (None, Plan::Full) => Server::ALL.into(),
            (None, Plan::Quick) => Server::QUICK.into(),
        }
    }

    pub fn cases(&self) -> Vec<Case> {
        match (&self.case, self.plan) {
            (Some(families), _) => {
                let mut cases = Case::all();
                cases.retain(|case| families.0.contains(&case.family()));
                cases
            }
            (None, Plan::Full) => Case::all(),
            (None, Plan::Quick) => Case::quick(),
        }
    }

    /// Whether the sizes of the binary and of the tree of crates are wanted.
    pub fn wants_facts(&self) -> bool {
        self.case
            .as_ref()
            .is_none_or(|families| families.0.contains(&Family::Size))
    }

    pub fn rounds(&self) -> usize {
        self.rounds.unwrap_or(match self.plan {
            Plan::Full => 3,
            Plan::Quick => 1,
        })
    }

    /// How long a server is measured at once.
    pub fn turn(&self) -> Duration {
        Duration::from_millis(match self.plan {
            Plan::Full => 120,
            Plan::Quick => 100,
        })
    }

    /// Where the files go. The folder `results` is for full runs of everything, so that no
    /// partial one replaces them.
    pub fn folder(&self) -> PathBuf {
        let is_partial = self.plan == Plan::Quick
            || self.only.is_some()
            || self.case.is_some()
            || self.rounds.is_some();
        let default = if is_partial {
            "target/results"
        } else {
            "results"
        };
        match &self.out {
            Some(folder) => folder.clone(),
            None => Path::new(HERE).join(default),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    Full,
    Quick,
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "full" => Ok(Self::Full),
            "quick" => Ok(Self::Quick),
            _ => Err(format!("`{text}` is neither full nor quick")),
        }
    }
}

/// Items with commas between them.
struct List<T>(Vec<T>);

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}
