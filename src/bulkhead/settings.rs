//! The numbers of a bulkhead, as they are read while it runs.

use std::{
    sync::atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
    time::Duration,
};

use crate::{bulkhead::BulkheadConfig, queue::Patience, time::nanos, updating::Updating};

/// A [`BulkheadConfig`] that can be read without a lock. Each value changes by itself. The limit in force is the
/// room's: here is the one that every room is to have.
#[derive(Debug)]
pub(crate) struct Settings {
    limit: AtomicUsize,
    queue: AtomicUsize,
    // In nanoseconds.
    wait: AtomicU64,
    lease: AtomicU64,
    updating: Updating,
}

/// What an update has changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    pub(crate) limit: usize,
    pub(crate) lease: u64,
}

impl Settings {
    pub(crate) fn new(config: BulkheadConfig) -> Self {
        let settings = Settings {
            limit: AtomicUsize::new(config.limit),
            queue: AtomicUsize::new(0),
            wait: AtomicU64::new(0),
            lease: AtomicU64::new(0),
            updating: Updating::default(),
        };
        settings.store(config);
        settings
    }

    /// Gives back what the limit and the lease were: one update sees what the one before it has left.
    pub(crate) fn store(&self, config: BulkheadConfig) -> Before {
        let _one = self.updating.one();
        self.queue.store(config.queue, Relaxed);
        self.wait.store(nanos(config.wait), Relaxed);
        let lease = self.lease.swap(nanos(config.permit_lease), Relaxed);
        Before { limit: self.set_limit(config.limit), lease }
    }

    pub(crate) fn load(&self) -> BulkheadConfig {
        let wait = Duration::from_nanos(self.wait());
        let permit_lease = Duration::from_nanos(self.lease());
        BulkheadConfig { limit: self.limit(), queue: self.queue(), wait, permit_lease }
    }

    // In one order for all threads, so that of two limits set at once every room ends with the same.
    pub(crate) fn limit(&self) -> usize {
        self.limit.load(SeqCst)
    }

    /// Gives back what it was.
    pub(crate) fn set_limit(&self, limit: usize) -> usize {
        self.limit.swap(limit, SeqCst)
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
/// can't do that: all of it has been served or refused by then. (By its deadline it may be less: the line sees to
/// that.)
pub(crate) fn patience(settings: &Settings) -> Patience {
    let wait = settings.wait();
    Patience { fifo: wait / 2, newest_after: wait, tight: None }
}
