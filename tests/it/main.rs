//! The integration tests: the public API and the program, with real sockets, signals and processes.

mod binary;
mod echo;
mod ends;
mod event_loop;
mod examples;
mod far_ends;
mod faults;
mod faulty_pipe;
mod models;
mod monitor;
mod packaging_texts;
mod process;
mod program_signals;
mod server;
mod service_unit;
mod shutdown;
mod signals;
mod stalled_output;
mod supply_chain;
mod support;
mod task_group;
mod threads;
mod tidy;
mod time;
mod tutorial;
mod unix_socket;
