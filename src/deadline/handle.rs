//! Reading a deadline layer.

use std::sync::Arc;

use crate::{bounded::Ledger, stripe::Striped};

/// Reads a [`DeadlineLayer`](crate::DeadlineLayer) and everything it wraps.
#[derive(Debug, Clone)]
pub struct DeadlineHandle {
    ledger: Arc<Striped<Ledger>>,
}

/// The figures of a deadline layer, since `build()`.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct DeadlineSnapshot {
    /// Calls refused because their deadline had passed, or ended when it did.
    pub deadline_exceeded: u64,
    /// Calls that went on only because of shadow.
    pub would_have_rejected: u64,
    /// Headers of a peer that could not be read and were ignored: the deadline's own, `grpc-status`, `Content-Length`.
    pub malformed_headers: u64,
    /// Does it only report what it would end?
    pub shadow: bool,
}

impl DeadlineHandle {
    pub(crate) fn new(ledger: Arc<Striped<Ledger>>) -> Self {
        DeadlineHandle { ledger }
    }

    /// The figures. Each is exact; they are not read at one instant.
    pub fn snapshot(&self) -> DeadlineSnapshot {
        let figures = self.ledger.figures();
        DeadlineSnapshot {
            deadline_exceeded: figures.deadline_exceeded,
            would_have_rejected: figures.would_have_rejected,
            malformed_headers: figures.malformed_headers,
            shadow: figures.shadow,
        }
    }

    /// Shadow: what would be refused or ended is only reported. Callers' deadlines that have not passed are carried on,
    /// and policies further in keep them; the bound of `server` is not.
    pub fn shadow(&self, on: bool) {
        self.ledger.shadow(on);
    }
}
