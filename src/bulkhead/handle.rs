//! Reading and steering a bulkhead.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::{
    bulkhead::{BulkheadConfig, config, limiter::Limiter},
    config::{Checks, ConfigError},
    observe::{Figure, Reporter, Watched},
    stripe::Striped,
};

/// Reads and steers a [`BulkheadLayer`](crate::BulkheadLayer) and everything it wraps.
#[derive(Debug, Clone)]
pub struct BulkheadHandle {
    shared: Arc<Striped<Limiter>>,
}

/// A bulkhead at one moment.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct BulkheadSnapshot {
    /// Calls that are in flight now, of all keys. Above the limit after it was lowered, and in shadow.
    pub in_flight: usize,
    /// Calls that wait now, of all keys.
    pub waiting: usize,
    /// Keys that have a state of their own now.
    pub keys: usize,
    /// The limit, of each key where there are keys.
    pub limit: usize,
    /// For how long the one has waited who has waited longest.
    pub oldest_wait: Option<Duration>,
    /// Calls refused, at once or after waiting, since `build()`.
    pub rejected: u64,
    /// Calls that went on only because of shadow, since `build()`.
    pub would_have_rejected: u64,
    /// Permits that stopped counting because their reader stalled, since `build()`.
    pub permits_expired: u64,
    /// Does it only report what it would refuse?
    pub shadow: bool,
    /// The settings in force.
    pub config: BulkheadConfig,
}

impl BulkheadHandle {
    pub(crate) fn new(shared: Arc<Striped<Limiter>>) -> Self {
        BulkheadHandle { shared }
    }

    /// The bulkhead as it is now. While other threads make calls the figures may be of slightly different moments.
    pub fn snapshot(&self) -> BulkheadSnapshot {
        snapshot(&self.shared)
    }

    /// Sets the limit. With more room, who waits goes in at once; with less, what runs runs on, and nobody goes in
    /// before there are fewer than the new limit. It holds for all keys, and for those to come.
    ///
    /// # Errors
    ///
    /// A limit outside of 1 to 1,000,000,000; then nothing is changed.
    pub fn resize(&self, limit: usize) -> Result<(), ConfigError> {
        let mut checks = Checks::default();
        config::limit(limit, &mut checks);
        checks.finish()?;
        self.shared.resize(limit);
        Ok(())
    }

    /// Sets all numbers. Who waits keeps its place and its time, also in a queue that is shorter now.
    ///
    /// # Errors
    ///
    /// As `build()`; then nothing is changed.
    pub fn update(&self, config: BulkheadConfig) -> Result<(), ConfigError> {
        config.checked()?;
        self.shared.update(config);
        Ok(())
    }

    /// Shadow: report what would be refused, and let it go on. Who waits when it is turned on goes in. With a queue it
    /// does not foretell who would have waited in vain: see [shadow](crate::bulkhead#shadow).
    pub fn shadow(&self, on: bool) {
        self.shared.shadow(on);
    }
}

fn snapshot(shared: &Limiter) -> BulkheadSnapshot {
    let common = &shared.common;
    let (mut in_flight, mut waiting, mut oldest) = (0, 0, None::<u64>);
    shared.look_at_all(|limiter| {
        let (wait, since) = limiter.room.waiting();
        in_flight += limiter.room.view().in_flight();
        waiting += wait;
        oldest = oldest.into_iter().chain(since).min();
    });
    BulkheadSnapshot {
        in_flight,
        waiting,
        keys: shared.keys(),
        limit: common.settings.limit(),
        oldest_wait: oldest.map(|since| Duration::from_nanos(common.now().saturating_sub(since))),
        rejected: common.rejected.load(Relaxed),
        would_have_rejected: common.would_have_rejected.load(Relaxed),
        permits_expired: common.permits_expired.load(Relaxed),
        shadow: common.in_shadow(),
        config: common.settings.load(),
    }
}

impl Watched for Striped<Limiter> {
    fn reporter(&self) -> &Reporter {
        Limiter::reporter(self)
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let seen = snapshot(self);
        visit("in_flight", Figure::count(seen.in_flight));
        visit("waiting", Figure::count(seen.waiting));
        visit("keys", Figure::count(seen.keys));
        visit("limit", Figure::count(seen.limit));
        visit("queue", Figure::count(seen.config.queue));
        visit("oldest_wait", seen.oldest_wait.into());
        visit("rejected", Figure::Count(seen.rejected));
        visit("would_have_rejected", Figure::Count(seen.would_have_rejected));
        visit("permits_expired", Figure::Count(seen.permits_expired));
        visit("shadow", Figure::Flag(seen.shadow));
    }

    /// Has it room, or a place to wait in? With keys some key always has.
    fn admits(&self) -> bool {
        let seen = snapshot(self);
        seen.shadow || self.is_per_key() || seen.in_flight < seen.limit || seen.waiting < seen.config.queue
    }
}
