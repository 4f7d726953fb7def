//! The integration tests: the public API and the program, with real sockets, signals and processes.

mod binary;
mod echo;
mod event_loop;
mod models;
mod server;
mod shutdown;
mod support;
mod unix_socket;
