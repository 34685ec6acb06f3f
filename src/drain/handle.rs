//! Reading a drain layer.

use std::sync::Arc;

use crate::{drain::Gate, stripe::Striped};

/// Reads the [`DrainLayer`](crate::DrainLayer)s of one registry.
#[derive(Debug, Clone)]
pub struct DrainHandle {
    shared: Arc<Striped<Gate>>,
}

/// Draining at one moment.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct DrainSnapshot {
    /// Is what comes refused?
    pub draining: bool,
    /// Calls in flight, each to the end of its response.
    pub in_flight: u64,
    /// Calls refused since it drains.
    pub rejected: u64,
}

impl DrainHandle {
    pub(crate) fn new(shared: Arc<Striped<Gate>>) -> Self {
        DrainHandle { shared }
    }

    /// As it is now. While other threads make calls the figures may be of slightly different moments.
    pub fn snapshot(&self) -> DrainSnapshot {
        let gate = &self.shared;
        DrainSnapshot { draining: gate.is_draining(), in_flight: gate.in_flight(), rejected: gate.rejected() }
    }
}
