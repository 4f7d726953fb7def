//! Faults on purpose: the words they are written in, each kind to the byte and to the millisecond, what is drawn from a
//! seed, and the program with clients.

mod clients;
mod drawn;
mod kinds;
mod program;
mod words;

use tinyloop::faults::Plan;

/// A plan with these faults.
fn plan(seed: u64, faults: &[&str]) -> Plan {
    Plan::new(seed, faults.iter().map(|fault| fault.parse().unwrap()))
}
