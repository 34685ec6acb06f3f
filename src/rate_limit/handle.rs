//! Reading and changing a rate limit while it runs.

use std::{fmt, sync::Arc};

use crate::{
    config::ConfigError,
    rate_limit::{Quota, steer::Steer},
};

/// Reads and changes a [`RateLimitLayer`](crate::RateLimitLayer) and everything it wraps.
#[derive(Clone)]
pub struct RateLimitHandle {
    shared: Arc<dyn Steer>,
}

/// The figures of a rate limit.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct RateLimitSnapshot {
    /// Calls that were let through since `build()`; those of shadow are not among them.
    pub admitted: u64,
    /// Calls that were refused since `build()`.
    pub rejected: u64,
    /// Calls that went on only because of shadow, since `build()`.
    pub would_have_rejected: u64,
    /// Calls that wait for their turn now; with a store those that it told to come back.
    pub waiting: usize,
    /// Keys that have a state of their own now; 0 with a store.
    pub keys: usize,
    /// Does it only report what it would refuse?
    pub shadow: bool,
    /// The common quota in force.
    pub quota: Quota,
}

impl RateLimitHandle {
    pub(crate) fn new(shared: Arc<dyn Steer>) -> Self {
        RateLimitHandle { shared }
    }

    /// The figures. Each is exact; they are not read at one instant.
    pub fn snapshot(&self) -> RateLimitSnapshot {
        self.shared.snapshot()
    }

    /// Changes the common quota, of all keys that have none of their own. Units that were used stay used, and come back
    /// at the new rate; those who wait keep their order, and one whose turn would now come after its maximum is
    /// refused.
    ///
    /// It goes through all keys, some thousands of them in the time of a millisecond, and holds up the calls of some 64
    /// of them at a time. With an own store only the headers follow.
    ///
    /// # Errors
    ///
    /// As `build()`, on `quota`; then nothing is changed.
    pub fn set_quota(&self, quota: Quota) -> Result<(), ConfigError> {
        let meter = quota.checked()?;
        self.shared.set_quota(quota, meter);
        Ok(())
    }

    /// Shadow: decide and report, but let every call go on, at once; those who wait for their turn go too. (One that
    /// waits for a store's answer goes with it.)
    pub fn shadow(&self, on: bool) {
        self.shared.shadow(on);
    }
}

impl fmt::Debug for RateLimitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitHandle").field("snapshot", &self.snapshot()).finish()
    }
}
