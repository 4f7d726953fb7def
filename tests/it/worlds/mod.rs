//! Worlds from seeds, and the script test that holds the in-memory connection against the kernel.

mod script;
mod wire;
