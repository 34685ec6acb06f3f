//! Reading an adaptive rate while it runs.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use crate::{adaptive_rate::controller::Controller, stripe::Striped};

/// Reads and steers an [`AdaptiveRateLayer`](crate::AdaptiveRateLayer) and everything it wraps.
#[derive(Debug, Clone)]
pub struct AdaptiveRateHandle {
    shared: Arc<Striped<Controller>>,
}

/// The figures of an adaptive rate.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct AdaptiveRateSnapshot {
    /// Calls per second that may be sent; `None` until the first throttled answer. At least 0.5.
    pub rate: Option<f64>,
    /// Throttled answers since `build()`.
    pub throttled: u64,
    /// Calls that were refused since `build()`.
    pub rejected: u64,
    /// Calls that went on only because of shadow, since `build()`.
    pub would_have_rejected: u64,
}

impl AdaptiveRateHandle {
    pub(crate) fn new(shared: Arc<Striped<Controller>>) -> Self {
        AdaptiveRateHandle { shared }
    }

    /// The figures. Each is exact; they are not read at one instant.
    pub fn snapshot(&self) -> AdaptiveRateSnapshot {
        AdaptiveRateSnapshot {
            rate: self.shared.pacer.rate(),
            throttled: self.shared.throttled.load(Relaxed),
            rejected: self.shared.rejected.load(Relaxed),
            would_have_rejected: self.shared.would_have_rejected.load(Relaxed),
        }
    }

    /// Shadow: find the rate and report, but let every call go on, at once.
    pub fn shadow(&self, on: bool) {
        self.shared.shadow(on);
    }
}
