//! A server with more clients than descriptors.
