//! Handlers whose state panics when it is dropped.
