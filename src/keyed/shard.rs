//! The keys of one lock.

use std::sync::{
    PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use hashbrown::HashTable;

use super::{State, stored::Stored};

// What one thread writes in one shard must not slow another thread down in the next.
#[repr(align(128))]
pub(super) struct Shard<S, C> {
    pub(super) table: RwLock<Table<S, C>>,
    /// As [`Keyed::nothing_idle_before`], of this shard alone.
    pub(super) nothing_idle_before: AtomicU64,
}

pub(super) struct Table<S, C> {
    pub(super) entries: HashTable<Entry<S>>,
    pub(super) common: C,
    pub(super) overflow: S,
}

pub(super) struct Entry<S> {
    pub(super) key: Stored,
    pub(super) state: S,
}

/// The longest time for which it is believed that nothing has become idle: a state may become so sooner than it said.
const BELIEVED_FOR: u64 = 1_000_000_000;

impl<S: State<C>, C> Shard<S, C> {
    pub(super) fn may_be_idle(&self, now: u64) -> bool {
        now >= self.nothing_idle_before.load(SeqCst)
    }

    /// Drops what is idle. How many that was.
    pub(super) fn sweep(&self, now: u64) -> usize {
        let table = &mut *self.write();
        let before = table.entries.len();
        let mut earliest = now.saturating_add(BELIEVED_FOR);
        table.entries.retain(|entry| match entry.state.idle_at(&table.common) {
            Some(at) if at <= now => false,
            at => {
                earliest = earliest.min(at.unwrap_or(u64::MAX));
                true
            }
        });
        self.nothing_idle_before.store(earliest, SeqCst);
        before - table.entries.len()
    }
}

impl<S, C> Shard<S, C> {
    // What runs under these locks does not panic; if it did, the states would still be whole.
    #[inline]
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table<S, C>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Table<S, C>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}
