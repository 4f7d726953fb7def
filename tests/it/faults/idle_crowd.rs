//! Ten thousand connections on which nothing moves.
