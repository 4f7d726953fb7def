//! Connections that come and go, by the hundred thousand.
