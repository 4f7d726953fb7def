//! The integration tests: the public API and the program, with real sockets, signals and processes.

mod binary;
mod echo;
mod event_loop;
mod examples;
mod faults;
mod faulty_pipe;
mod models;
mod monitor;
mod server;
mod shutdown;
mod signals;
mod support;
mod task_group;
mod threads;
mod tidy;
mod time;
mod unix_socket;
