//! How far a connection is closed.

/// How far a connection is closed.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum State {
    Open,
    /// The peer has closed its half.
    InputEnded,
    /// The drain has ended its input. The peer may still send.
    Drained,
    /// A system call failed: nothing more can be sent.
    Broken,
    /// The idle timeout has expired, and no bytes came in since.
    Idle,
    /// The peer did not read for the stall timeout.
    Stalled,
    /// Its stream was given to other code.
    Given,
}
