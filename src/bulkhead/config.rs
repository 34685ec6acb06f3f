//! What a bulkhead can be told.

use std::{fmt, time::Duration};

use crate::{
    builder::{Identity, shared_setters},
    bulkhead::{BulkheadLayer, common::PriorityFn},
    config::{Checks, ConfigError},
    queue::MOST,
};

#[cfg(feature = "http")]
use crate::key::{Keys, key_setters};

/// The numbers of a bulkhead, as plain data: what [`BulkheadHandle::update`](crate::BulkheadHandle::update) takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkheadConfig {
    /// Calls in flight at once, 1 to 1,000,000,000. It has no default: 0 stands for one that is missing, an error.
    pub limit: usize,
    /// Calls that may wait, 0 to 1,000,000,000. Default 0: a full bulkhead refuses at once.
    pub queue: usize,
    /// The longest that a call waits, 1 ns to 365 days. Default 30 s. Without a queue nothing waits.
    pub wait: Duration,
    /// How long a stream keeps its permit without a frame handed out, 1 ns to 365 days. Default 60 s.
    pub permit_lease: Duration,
}

impl Default for BulkheadConfig {
    fn default() -> Self {
        BulkheadConfig { limit: 0, queue: 0, wait: Duration::from_secs(30), permit_lease: Duration::from_secs(60) }
    }
}

/// Builds a [`BulkheadLayer`].
#[must_use = "a builder does nothing until `build()`"]
#[derive(Default)]
pub struct BulkheadBuilder {
    identity: Identity,
    config: BulkheadConfig,
    fixed: Fixed,
}

/// What stays as `build()` made it.
#[derive(Default)]
pub(crate) struct Fixed {
    pub(crate) priority_fn: Option<PriorityFn>,
    #[cfg(feature = "http")]
    pub(crate) keys: Keys,
}

impl BulkheadBuilder {
    shared_setters!(
        "With a queue it does not foretell who would have waited in vain: see [shadow](crate::bulkhead#shadow)."
    );

    /// How many calls may be in flight at once: 1 to 1,000,000,000. Has to be set; can be changed through the handle.
    pub fn limit(mut self, n: usize) -> Self {
        self.config.limit = n;
        self
    }

    /// How many calls may wait for their turn: 0 (the default, a full bulkhead refuses at once) to 1,000,000,000.
    pub fn queue(mut self, length: usize) -> Self {
        self.config.queue = length;
        self
    }

    /// The longest that a call waits, counted from `call`: for its turn, and after that for the inner service. 1 ns to
    /// 365 days, default 30 s; tokio's timers round up to a millisecond. It says nothing without a
    /// [`queue`](Self::queue).
    pub fn wait(mut self, max: Duration) -> Self {
        self.config.wait = max;
        self
    }

    /// How long a stream keeps its permit without a frame of its body handed out. 1 ns to 365 days, default 60 s.
    pub fn permit_lease(mut self, d: Duration) -> Self {
        self.config.permit_lease = d;
        self
    }

    /// How much a request matters. Asked only where a call can't go in at once, in `call` and outside every lock; for
    /// plain services, which have no head, never. Default: the [`Priority`](crate::Priority) in its extensions.
    ///
    /// Mind whom it believes: a header that any caller can set makes every caller critical.
    #[cfg(feature = "http")]
    pub fn priority_fn(mut self, f: impl Fn(&http::request::Parts) -> crate::Priority + Send + Sync + 'static) -> Self {
        self.fixed.priority_fn = Some(Box::new(f));
        self
    }

    #[cfg(feature = "http")]
    key_setters!("limit and a queue", fixed.keys);

    /// The layer, in its HTTP and gRPC form.
    ///
    /// # Errors
    ///
    /// Lists every bad field: a bad name, a number out of range, a `limit` that is missing.
    pub fn build(self) -> Result<BulkheadLayer, ConfigError> {
        let mut checks = Checks::default();
        self.identity.check("bulkhead", &mut checks);
        self.config.check(&mut checks);
        #[cfg(feature = "http")]
        self.fixed.keys.check(&mut checks);
        checks.finish()?;
        Ok(BulkheadLayer::new(self.identity, self.config, self.fixed))
    }
}

impl BulkheadConfig {
    pub(crate) fn checked(&self) -> Result<(), ConfigError> {
        let mut checks = Checks::default();
        self.check(&mut checks);
        checks.finish()
    }

    fn check(&self, checks: &mut Checks) {
        limit(self.limit, checks);
        checks.require(self.queue <= MOST, "queue", self.queue, "a length from 0 to 1000000000");
        checks.duration("wait", self.wait);
        checks.duration("permit_lease", self.permit_lease);
    }
}

pub(crate) fn limit(limit: usize, checks: &mut Checks) {
    checks.require((1..=MOST).contains(&limit), "limit", limit, "a number of calls from 1 to 1000000000");
}

impl fmt::Debug for BulkheadBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut builder = f.debug_struct("BulkheadBuilder");
        builder
            .field("identity", &self.identity)
            .field("config", &self.config)
            .field("priority_fn", &self.fixed.priority_fn.is_some());
        #[cfg(feature = "http")]
        builder.field("keys", &self.fixed.keys);
        builder.finish()
    }
}
