//! A byte now and then, and ten thousand timers.
