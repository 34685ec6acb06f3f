//! Reading a fallback layer.

use std::sync::Arc;

use crate::fallback::layer::Ledger;

/// Reads a [`FallbackLayer`](crate::FallbackLayer) and everything it wraps.
#[derive(Debug, Clone)]
pub struct FallbackHandle {
    ledger: Arc<Ledger>,
}

/// The figures of a fallback, since it was made.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct FallbackSnapshot {
    /// Calls that were answered in the place of the backend.
    pub answered: u64,
    /// Calls that were to be answered and were passed on: the function said so, nothing good was kept, or the backup
    /// failed.
    pub passed_on: u64,
    /// Calls that went on as they were only because of shadow.
    pub would_have_answered: u64,
    /// Does it only report what it would answer?
    pub shadow: bool,
}

impl FallbackHandle {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        FallbackHandle { ledger }
    }

    /// The figures. Each is exact; they are not read at one instant.
    pub fn snapshot(&self) -> FallbackSnapshot {
        let figures = Ledger::figures(&self.ledger);
        FallbackSnapshot {
            answered: figures.answered,
            passed_on: figures.passed_on,
            would_have_answered: figures.would_have_answered,
            shadow: figures.shadow,
        }
    }

    /// Shadow: count what would be answered, and pass it on.
    pub fn shadow(&self, on: bool) {
        self.ledger.shadow(on);
    }
}
