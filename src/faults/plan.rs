//! The faults of a server, and the draw that decides which connection gets them.

use std::fmt;
use std::mem;
use std::ops::RangeInclusive;
use std::time::Duration;

use fastrand::Rng;

use super::fault::{Fault, Kind};

/// The faults of a server, with the seed for the draws.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: u64,
    faults: Vec<Fault>,
}

impl Plan {
    /// A plan with these faults.
    pub fn new(seed: u64, faults: impl IntoIterator<Item = Fault>) -> Plan {
        Plan {
            seed,
            faults: faults.into_iter().collect(),
        }
    }

    /// Draws the faults of the connection with the number `ordinal`. Connections are counted from 1, in the order of
    /// accepts.
    ///
    /// The result depends only on the seed, the faults and `ordinal`. If a connection gets several faults of one kind,
    /// the last of them counts. Another fault at the end of the plan does not change the draws for the faults before
    /// it.
    ///
    /// # Panics
    ///
    /// If a range that was built in code has its larger end first.
    pub fn draw(&self, ordinal: u64) -> Drawn {
        let connection = Dice(self.seed).child(ordinal);
        let mut faults: Vec<(Kind, Dice)> = Vec::new();
        for (fault, index) in self.faults.iter().zip(0..) {
            let dice = connection.child(index);
            let mut random = dice.at(0);
            if random.u32(..1_000_000) < fault.share {
                let kind = fault.kind.drawn(&mut random);
                let is_other = |(before, _): &(Kind, Dice)| {
                    mem::discriminant(before) != mem::discriminant(&kind)
                };
                faults.retain(is_other);
                faults.push((kind, dice.child(1)));
            }
        }
        Drawn { ordinal, faults }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            write!(f, "--fault {fault} ")?;
        }
        write!(f, "--seed {}", self.seed)
    }
}

/// The faults of a connection, drawn by [`Plan::draw`]. Displays as `#12 fault reset-after=5000`.
#[derive(Debug, Clone)]
pub struct Drawn {
    ordinal: u64,
    pub(super) faults: Vec<(Kind, Dice)>,
}

impl Drawn {
    /// Whether the connection has no faults.
    pub fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for Drawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.ordinal)?;
        match self.is_empty() {
            true => f.write_str(" no fault"),
            false => self
                .faults
                .iter()
                .try_for_each(|(kind, _)| write!(f, " fault {kind}")),
        }
    }
}

impl Kind {
    /// The fault with a value in place of a range, if this value holds for the whole connection.
    fn drawn(&self, random: &mut Rng) -> Kind {
        let mut bytes = |range: &RangeInclusive<u64>| {
            let value = random.u64(range.clone());
            value..=value
        };
        match self {
            Kind::Rate(range) => Kind::Rate(bytes(range)),
            Kind::CloseAfter(range) => Kind::CloseAfter(bytes(range)),
            Kind::ResetAfter(range) => Kind::ResetAfter(bytes(range)),
            Kind::SilentAfter(range) => Kind::SilentAfter(bytes(range)),
            Kind::StallAfter(range) => Kind::StallAfter(bytes(range)),
            Kind::Corrupt(range) => Kind::Corrupt(bytes(range)),
            Kind::CloseDelay(range) => {
                let value = time_in(range, random);
                Kind::CloseDelay(value..=value)
            }
            Kind::Delay(_) | Kind::Slice { .. } | Kind::Refuse => self.clone(),
        }
    }
}

fn time_in(range: &RangeInclusive<Duration>, random: &mut Rng) -> Duration {
    let nanos = |time: &Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random.u64(nanos(range.start())..=nanos(range.end())))
}

/// Draws by number: the n-th draw does not depend on the other draws.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dice(u64);

impl Dice {
    /// The random bits of the `n`-th draw.
    pub(super) fn at(self, n: u64) -> Rng {
        Rng::with_seed(self.child(n).0)
    }

    /// Independent dice with the same seed.
    fn child(self, n: u64) -> Dice {
        let mut random = Rng::with_seed(self.0 ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        Dice(random.u64(..))
    }

    pub(super) fn bytes(self, n: u64, range: &RangeInclusive<u64>) -> u64 {
        self.at(n).u64(range.clone())
    }

    pub(super) fn time(self, n: u64, range: &RangeInclusive<Duration>) -> Duration {
        time_in(range, &mut self.at(n))
    }
}
