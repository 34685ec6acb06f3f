//! Atomics and locks, ours or loom's: under `--cfg loom` the model checker tries every order of them.

#[cfg(loom)]
pub(crate) use ::loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

/// A load that stands in one order with the writes of all threads. That is what `SeqCst` means; loom takes only a
/// read-modify-write at its word.
#[inline(always)]
pub(crate) fn load_in_order(word: &AtomicU64) -> u64 {
    #[cfg(loom)]
    return word.fetch_add(0, Ordering::SeqCst);
    #[cfg(not(loom))]
    word.load(Ordering::SeqCst)
}

/// Lets another thread finish the few instructions this one waits for.
pub(crate) fn step_aside() {
    #[cfg(loom)]
    ::loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}
