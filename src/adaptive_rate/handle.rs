//! Reading an adaptive rate while it runs.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::{
    adaptive_rate::controller::Controller,
    observe::{Figure, Reporter, Watched},
    stripe::Striped,
};

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
    /// For how much longer the backend wants nothing sent; in shadow calls go all the same. `None`: it wants no pause.
    pub held_for: Option<Duration>,
    /// Throttled answers since `build()`.
    pub throttled: u64,
    /// Calls that were refused since `build()`.
    pub rejected: u64,
    /// Calls that went on only because of shadow, since `build()`.
    pub would_have_rejected: u64,
    /// Calls that wait for their turn now, 16,384 at most.
    pub waiting: usize,
    /// Does it only report what it would refuse?
    pub shadow: bool,
}

impl AdaptiveRateHandle {
    pub(crate) fn new(shared: Arc<Striped<Controller>>) -> Self {
        AdaptiveRateHandle { shared }
    }

    /// The figures. Each is exact; they are not read at one instant.
    pub fn snapshot(&self) -> AdaptiveRateSnapshot {
        snapshot(&self.shared)
    }

    /// Shadow: find the rate and report, but let every call go on, at once.
    pub fn shadow(&self, on: bool) {
        self.shared.shadow(on);
    }
}

fn snapshot(controller: &Controller) -> AdaptiveRateSnapshot {
    let held_for = controller.pacer.held_until().saturating_sub(controller.now());
    AdaptiveRateSnapshot {
        rate: controller.pacer.rate(),
        held_for: Some(Duration::from_nanos(held_for)).filter(|held_for| !held_for.is_zero()),
        throttled: controller.throttled.load(Relaxed),
        rejected: controller.rejected.load(Relaxed),
        would_have_rejected: controller.would_have_rejected.load(Relaxed),
        waiting: controller.pacer.waiting(),
        shadow: controller.in_shadow(),
    }
}

impl Watched for Striped<Controller> {
    fn reporter(&self) -> &Reporter {
        Controller::reporter(self)
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let seen = snapshot(self);
        visit("rate", seen.rate.into());
        visit("held_for", seen.held_for.into());
        visit("throttled", Figure::Count(seen.throttled));
        visit("rejected", Figure::Count(seen.rejected));
        visit("would_have_rejected", Figure::Count(seen.would_have_rejected));
        visit("waiting", Figure::count(seen.waiting));
        visit("shadow", Figure::Flag(seen.shadow));
    }
}
