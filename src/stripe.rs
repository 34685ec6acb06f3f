//! References that do not fight over one counter.
//!
//! A future that outlives its service needs a counted reference to the layer's state. With one `Arc` for all, every
//! call on every core writes the same counter, and that line alone brings two threads to 0.28 of the throughput of
//! one. Here each thread counts on a cache line of its own.

use std::{
    array, fmt,
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

/// Shared state, with one counted handle per core.
pub(crate) struct Striped<T> {
    state: Arc<T>,
    // In place and of a fixed length, so that finding a thread's own is one load. With fewer cores each is there
    // several times.
    stripes: [Arc<Stripe<T>>; MOST],
}

/// More cores than this share.
const MOST: usize = 64;

/// The counters of an `Arc` stand right before its data: this alignment keeps those of two stripes two lines apart.
#[repr(align(128))]
struct Stripe<T>(Arc<T>, usize);

/// A counted reference to the state.
pub(crate) struct Shared<T>(Arc<Stripe<T>>);

impl<T> Striped<T> {
    pub(crate) fn new(state: T) -> Self {
        let state = Arc::new(state);
        let own: Vec<_> = (0..count()).map(|n| Arc::new(Stripe(Arc::clone(&state), n))).collect();
        Self { state, stripes: array::from_fn(|n| Arc::clone(&own[n % own.len()])) }
    }

    /// A reference counted on this thread's stripe.
    #[inline]
    pub(crate) fn share(&self) -> Shared<T> {
        Shared(Arc::clone(&self.stripes[thread_number() % MOST]))
    }
}

impl<T> Shared<T> {
    /// The number of the stripe: the same for all that one thread shares.
    #[inline]
    pub(crate) fn stripe(&self) -> usize {
        self.0.1
    }
}

impl<T> Clone for Shared<T> {
    #[inline]
    fn clone(&self) -> Self {
        Shared(Arc::clone(&self.0))
    }
}

impl<T> Deref for Striped<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.state
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Striped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// How many stripes: the cores, as a power of two. Asked once, because the answer costs system calls.
fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        cores.next_power_of_two().min(MOST)
    })
}

/// Numbers given to threads in the order in which they come.
#[inline]
pub(crate) fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: usize = NEXT.fetch_add(1, Relaxed));
    NUMBER.with(|n| *n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_state_behind_all_stripes() {
        let striped = Arc::new(Striped::new(AtomicUsize::new(0)));
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| striped.share().fetch_add(1, Relaxed));
            }
        });
        assert_eq!(striped.load(Relaxed), 4);
    }

    #[test]
    fn counters_of_two_stripes_are_on_lines_of_their_own() {
        let a = Arc::new(Stripe(Arc::new(0), 0));
        assert_eq!(std::ptr::from_ref(&*a) as usize % 128, 0);
        assert_eq!(size_of::<Stripe<u8>>() % 128, 0);
    }
}
