//! A thousand signals, of all the kinds that a process may get.
