//! The integration tests: the public API and the program, with real sockets, signals and processes.

mod binary;
mod support;
