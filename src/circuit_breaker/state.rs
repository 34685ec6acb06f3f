//! The states of a circuit breaker.

use std::fmt;

/// The state of a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls pass and are counted.
    Closed,
    /// Calls are refused until the open time is over.
    Open,
    /// A few probes pass, the rest is refused.
    HalfOpen,
    /// Calls are refused until somebody says otherwise.
    ForcedOpen,
    /// Calls pass and are counted, and nothing opens it until somebody says otherwise.
    ForcedClosed,
}

impl State {
    #[cfg(feature = "http")]
    pub(crate) fn is_forced(self) -> bool {
        matches!(self, State::ForcedOpen | State::ForcedClosed)
    }

    /// The stable name, as it stands in metrics: `closed`, `open`, `half_open`, `forced_open`, `forced_closed`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
            State::ForcedOpen => "forced_open",
            State::ForcedClosed => "forced_closed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
