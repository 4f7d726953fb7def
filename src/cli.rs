//! The program around the library: arguments, the two teaching models, what is printed.

pub(crate) mod args;
pub(crate) mod listen;
pub(crate) mod models;
pub(crate) mod output;
