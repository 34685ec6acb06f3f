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

/// Lets another thread finish the few instructions this one waits for.
pub(crate) fn step_aside() {
    #[cfg(loom)]
    ::loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}
