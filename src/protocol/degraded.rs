//! The mark of an answer that was given in the place of the backend's.

use crate::{
    outcome::{End, Outcome},
    rejection::Rejection,
};

/// In the extensions of a response that was given in the place of the backend's own.
///
/// Policies further out record what the backend did, and not the answer that covers it up: a degraded answer is never a
/// success of the backend.
#[derive(Debug, Clone)]
pub struct Degraded {
    /// The policy that refused the call, or `fallback` where the backend itself failed.
    pub policy: &'static str,
    /// What the backend's own answer meant; `Ignored` where a policy refused the call.
    pub outcome: Outcome,
    /// The refusal, where there was one.
    pub rejection: Option<Rejection>,
}

impl Degraded {
    /// What it means to the policies around it.
    pub(crate) fn end(&self) -> End {
        match (&self.rejection, self.outcome) {
            (Some(rejection), _) => End::of_rejection(rejection),
            (None, Outcome::Success) => End::Outcome(Outcome::Ignored),
            (None, outcome) => End::Outcome(outcome),
        }
    }
}
