//! Reading and changing a hedge while it runs.

use std::sync::Arc;

use crate::{
    config::ConfigError,
    hedge::{HedgeConfig, hedger::Hedger},
    observe::{Figure, Reporter, Watched},
    stripe::Striped,
};

/// Reads and changes a [`HedgeLayer`](crate::HedgeLayer) and everything it wraps.
#[derive(Debug, Clone)]
pub struct HedgeHandle {
    shared: Arc<Striped<Hedger>>,
}

/// The figures of a hedge, since `build()`.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct HedgeSnapshot {
    /// Calls that came, without those that were refused.
    pub calls: u64,
    /// Attempts that were made beside the first ones: what hedging adds to the load.
    pub hedges: u64,
    /// Calls that one of those answered first.
    pub won: u64,
    /// Calls that had no further attempt because the budget had nothing left.
    pub stopped_by_budget: u64,
    /// Calls that came after their deadline, or could not be made before it, and were refused.
    pub deadline_exceeded: u64,
    /// Calls that would have had a further attempt, and had none because of shadow.
    pub would_have_hedged: u64,
    /// Calls that shadow let go on after their deadline.
    pub would_have_rejected: u64,
    /// Does it only report the attempts that it would make?
    pub shadow: bool,
    /// The numbers in force.
    pub config: HedgeConfig,
}

impl HedgeHandle {
    pub(crate) fn new(shared: Arc<Striped<Hedger>>) -> Self {
        HedgeHandle { shared }
    }

    /// The figures. Each is exact; they are not read at one instant.
    pub fn snapshot(&self) -> HedgeSnapshot {
        self.shared.snapshot()
    }

    /// Changes the numbers. Calls that run follow with their next attempt; a wait that has begun goes on. What was
    /// measured stays.
    ///
    /// # Errors
    ///
    /// As `build()`, and where a layer that was built with `after` gets a `quantile`, or the other way round; then
    /// nothing is changed.
    pub fn update(&self, config: HedgeConfig) -> Result<(), ConfigError> {
        self.shared.update(config)
    }

    /// Shadow: no further attempts are made, and `would_have_hedged` counts the calls that would have had one.
    pub fn shadow(&self, on: bool) {
        self.shared.shadow(on);
    }
}

impl Watched for Striped<Hedger> {
    fn reporter(&self) -> &Reporter {
        Hedger::reporter(self)
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let seen = self.snapshot();
        visit("calls", Figure::Count(seen.calls));
        visit("hedges", Figure::Count(seen.hedges));
        visit("won", Figure::Count(seen.won));
        visit("stopped_by_budget", Figure::Count(seen.stopped_by_budget));
        visit("budget_left", self.budget_left().into());
        visit("deadline_exceeded", Figure::Count(seen.deadline_exceeded));
        visit("would_have_hedged", Figure::Count(seen.would_have_hedged));
        visit("would_have_rejected", Figure::Count(seen.would_have_rejected));
        visit("shadow", Figure::Flag(seen.shadow));
    }
}
