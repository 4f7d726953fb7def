//! How a connection ends, as far as it has come.

/// How far a connection has come to its end.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum State {
    Open,
    /// The peer has closed its half.
    InputEnded,
    /// The drain has ended its input. The peer may still send.
    Drained,
    /// A system call failed: nothing more can be sent.
    Broken,
    /// The idle timeout is over, and nothing came in since.
    Idle,
    /// The peer did not read for the stall timeout.
    Stalled,
    /// Its stream was given to somebody else.
    Given,
}
