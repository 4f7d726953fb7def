//! The kernel refuses to watch a new connection.
