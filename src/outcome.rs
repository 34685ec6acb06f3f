//! What a finished call means.

use std::time::Duration;

use crate::rejection::Rejection;

/// What a finished call means to a policy.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The backend did what it was asked, or told the caller that the caller was wrong.
    Success,
    /// The backend failed.
    Failure,
    /// The backend is up and asks for less: HTTP 429, gRPC RESOURCE_EXHAUSTED.
    Throttled,
    /// Nobody waited for the end: the caller left, or its own deadline passed. Says nothing about the backend.
    Cancelled,
    /// Not to be counted: a custom classification said so, or the call was refused before it reached the backend.
    Ignored,
}

/// How one call ended, told to a policy exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
// Its parts beside each other, so that each can be kept in a register; else they share bytes, and all are copied for
// one.
#[repr(u8)]
pub enum End {
    /// It was judged.
    Outcome(Outcome),
    /// The operator's timeout ran out: a failure, whatever deadline the caller had.
    TimedOut,
    /// A policy further in refused it; the backend was not touched.
    Refused,
    /// The caller's deadline passed first. What that says about the backend depends on how long it had.
    DeadlinePassed {
        /// How long, if whoever ended the call knew.
        had: Option<Duration>,
    },
    /// The caller left: the future or the response body was dropped, or the request's own body failed.
    Left,
}

impl End {
    /// What an error or an answer in which a policy of ours speaks means to the policies around it.
    #[cold]
    pub(crate) fn of_rejection(r: &Rejection) -> End {
        use crate::rejection::Reason;
        match r.reason() {
            Reason::Timeout => End::TimedOut,
            Reason::DeadlineExceeded => End::DeadlinePassed { had: r.had() },
            _ => End::Refused,
        }
    }

    /// The plain word for it, for whoever draws no finer line.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            End::Outcome(o) => o,
            End::TimedOut => Outcome::Failure,
            End::Refused => Outcome::Ignored,
            End::DeadlinePassed { .. } | End::Left => Outcome::Cancelled,
        }
    }
}

/// Turns the result of a plain service into an [`Outcome`].
///
/// Implemented by [`ErrFails`] and by every `Fn(Result<&Res, &Err>) -> Outcome + Clone`. It runs outside every lock.
/// A [`Rejection`] of a policy further in is recognised whatever the function says of it; it may be asked all the same.
pub trait Classify<Res, Err>: Clone {
    /// What this result means.
    fn classify(&self, result: Result<&Res, &Err>) -> Outcome;
}

/// The default for plain services: `Ok` is a success, `Err` a failure.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErrFails;

impl<Res, Err> Classify<Res, Err> for ErrFails {
    #[inline]
    fn classify(&self, result: Result<&Res, &Err>) -> Outcome {
        match result {
            Ok(_) => Outcome::Success,
            Err(_) => Outcome::Failure,
        }
    }
}

impl<Res, Err, F: Fn(Result<&Res, &Err>) -> Outcome + Clone> Classify<Res, Err> for F {
    #[inline]
    fn classify(&self, result: Result<&Res, &Err>) -> Outcome {
        self(result)
    }
}
