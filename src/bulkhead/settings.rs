//! The numbers of a bulkhead, as they are read while it runs.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use crate::{bulkhead::BulkheadConfig, queue::Patience};

/// A [`BulkheadConfig`] that can be read without a lock, but for the limit, which is the room's. Each value changes by
/// itself.
#[derive(Debug)]
pub(crate) struct Settings {
    queue: AtomicUsize,
    // In nanoseconds.
    wait: AtomicU64,
    lease: AtomicU64,
}

impl Settings {
    pub(crate) fn new(config: BulkheadConfig) -> Self {
        let settings = Settings { queue: AtomicUsize::new(0), wait: AtomicU64::new(0), lease: AtomicU64::new(0) };
        settings.store(config);
        settings
    }

    pub(crate) fn store(&self, config: BulkheadConfig) {
        self.queue.store(config.queue, Relaxed);
        self.wait.store(nanos(config.wait), Relaxed);
        self.lease.store(nanos(config.permit_lease), Relaxed);
    }

    pub(crate) fn load(&self, limit: usize) -> BulkheadConfig {
        let wait = Duration::from_nanos(self.wait());
        BulkheadConfig { limit, queue: self.queue(), wait, permit_lease: Duration::from_nanos(self.lease()) }
    }

    pub(crate) fn queue(&self) -> usize {
        self.queue.load(Relaxed)
    }

    pub(crate) fn wait(&self) -> u64 {
        self.wait.load(Relaxed)
    }

    pub(crate) fn lease(&self) -> u64 {
        self.lease.load(Relaxed)
    }
}

/// Overload is when for as long as somebody may wait, the oldest has always waited for more than half of that. A burst
/// can't do that: all of it has been served or refused by then.
pub(crate) fn patience(wait: Duration) -> Patience {
    Patience { fifo: nanos(wait) / 2, newest_after: nanos(wait), tight: None }
}

pub(crate) fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}
