//! A link that delays, loses, doubles and reorders.
