//! What a call took, as the caller gets to know it.

/// In the extensions of every response of the HTTP form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// How many attempts were made.
    pub made: u32,
    /// Why there was no further one.
    pub stopped: Stopped,
}

/// Why there was no further attempt.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// None was needed.
    Succeeded,
    /// Another one would not help, or could do harm: this failure, or this method, is not retried. Or the layer is in
    /// shadow.
    NotRetryable,
    /// There were as many as there may be.
    Attempts,
    /// The budget had nothing left.
    Budget,
    /// It would not have ended before the deadline.
    Deadline,
    /// The request's body is longer than what is kept of it, or has failed.
    BodyTooLarge,
    /// The server asked for none.
    ServerSaidStop,
}
