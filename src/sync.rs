//! Atomics and locks, ours or loom's: under `--cfg loom` the model checker tries every order of them.

#[cfg(loom)]
pub(crate) use ::loom::sync::{Mutex, MutexGuard, atomic::Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

/// Loom's, but for what stands in one order for all threads, which is what `SeqCst` means: in loom only a
/// read-modify-write does. (It would also miss what another thread reads between a load and a write by what that found,
/// for it keeps no more than the last access to each word. A load that is a write too also releases, so it may hide
/// that a release is missing elsewhere.)
#[cfg(loom)]
mod in_order {
    use std::ops::Deref;

    use super::Ordering;

    macro_rules! in_order {
        ($atomic:ident, $value:ty, $read:ident, $nothing:expr) => {
            #[derive(Debug, Default)]
            pub(crate) struct $atomic(::loom::sync::atomic::$atomic);

            impl $atomic {
                pub(crate) fn new(value: $value) -> Self {
                    $atomic(::loom::sync::atomic::$atomic::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    if order == Ordering::SeqCst { self.0.$read($nothing, order) } else { self.0.load(order) }
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    if order == Ordering::SeqCst {
                        let _old = self.0.swap(value, order);
                    } else {
                        self.0.store(value, order);
                    }
                }
            }

            impl Deref for $atomic {
                type Target = ::loom::sync::atomic::$atomic;
                fn deref(&self) -> &Self::Target {
                    &self.0
                }
            }
        };
    }

    in_order!(AtomicBool, bool, fetch_or, false);
    in_order!(AtomicU32, u32, fetch_add, 0);
    in_order!(AtomicU64, u64, fetch_add, 0);
}
#[cfg(loom)]
pub(crate) use self::in_order::{AtomicBool, AtomicU32, AtomicU64};

/// Lets another thread finish the few instructions this one waits for.
pub(crate) fn step_aside() {
    #[cfg(loom)]
    ::loom::thread::yield_now();
    #[cfg(not(loom))]
    std::thread::yield_now();
}
