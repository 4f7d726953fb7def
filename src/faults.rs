//! Streams that misbehave on purpose, from a seed: slow, cut off, reset, silent or corrupted.
//!
//! For tests of clients: a server whose replies are late, in pieces or incomplete. A [`Plan`] holds the faults and a
//! seed. It draws the faults of each connection, and [`Faulty`] applies them. The program has the same function in its
//! options `--fault` and `--seed`. Needs the feature `faults`.
//!
//! [`Fault`]s change the behaviour of a server that a client sees. The seeded faults of `testing::Faults` work one
//! level lower, on the reads and writes of a handler: short, interrupted or failing. One seed may drive both:
//!
//! ```
//! use std::time::Duration;
//! use futures_lite::{AsyncReadExt, AsyncWriteExt};
//! use tinyloop::faults::{Faulty, Plan};
//! use tinyloop::testing::{Faults, for_each_seed, pipe};
//!
//! for_each_seed(0..10, |seed| {
//!     let plan = Plan::new(seed, ["rate=1..10".parse().unwrap(), "close-after=100".parse().unwrap()]);
//!     // On the test clock, a trickle of minutes takes no time.
//!     tinyloop::EventLoop::with_test_clock().unwrap().run(async {
//!         let (connection, mut peer) = pipe(Faults::from_seed(seed));
//!         let mut faulty = Faulty::connection(connection, plan.draw(1));
//!         let handler = tinyloop::spawn(async move { faulty.write_all(&[b'x'; 5000]).await });
//!         let mut reply = Vec::new();
//!         peer.read_to_end(&mut reply).await.unwrap();
//!         assert_eq!(reply, [b'x'; 100]);
//!         handler.await.unwrap();
//!     });
//! });
//! ```

mod fault;
mod faulty;
mod plan;

pub use fault::{EXAMPLES, Fault, Kind, ParseError};
pub use faulty::Faulty;
pub use plan::{Drawn, Plan};
