//! References that do not fight over one counter.
//!
//! A future that outlives its service needs a counted reference to the layer's state. With one `Arc` for all, every
//! call on every core writes the same counter, and that line alone brings two threads to 0.28 of the throughput of
//! one. Here each thread counts on a cache line of its own.

use std::{
    array,
    cell::Cell,
    fmt,
    ops::Deref,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

/// Shared state, with one counted handle per core.
pub(crate) struct Striped<T> {
    core: Arc<Core<T>>,
    // In place and of a fixed length, so that finding a thread's own is one load. With fewer cores each is there
    // several times.
    stripes: [Arc<Stripe<T>>; MOST],
    different: usize,
}

/// More cores than this share.
pub(crate) const MOST: usize = 64;

/// The counters of an `Arc` stand right before its data: this alignment keeps those of two stripes two lines apart.
#[repr(align(128))]
struct Stripe<T> {
    core: Arc<Core<T>>,
    number: usize,
    tally: AtomicU64,
    further: AtomicU64,
}

/// What all stripes share. It lives as long as one of them is held.
// In this order, so that the state stands where it would by itself.
#[repr(C)]
pub(crate) struct Core<T> {
    state: T,
    /// `None` where there is one stripe alone: that may be one of many thousands.
    roll: OnceLock<Box<Roll<T>>>,
}

struct Roll<T> {
    stripes: Box<[Weak<Stripe<T>>]>,
    /// What those of them had counted that are gone.
    tally: AtomicU64,
    further: AtomicU64,
}

/// The number of one that stands for all that are gone.
const GONE: usize = usize::MAX;

/// A counted reference to the state.
pub(crate) struct Shared<T>(Arc<Stripe<T>>);

impl<T> Striped<T> {
    pub(crate) fn new(state: T) -> Self {
        let core = Arc::new(Core::new(state));
        let own: Vec<_> = (0..count()).map(|number| Arc::new(Stripe::new(&core, number))).collect();
        let stripes = own.iter().map(Arc::downgrade).collect();
        let _ = core.roll.set(Box::new(Roll { stripes, tally: AtomicU64::new(0), further: AtomicU64::new(0) }));
        Self::over(core, &own)
    }

    /// Put together anew, of the stripes that are still held.
    pub(crate) fn of(core: Arc<Core<T>>) -> Self {
        let gone = Stripe::new(&core, GONE);
        let mut own = Vec::new();
        if let Some(roll) = core.roll.get() {
            own.extend(roll.stripes.iter().filter_map(Weak::upgrade));
            // After the others are held: what went before is in here, but for one that goes right now and is seen the
            // next time.
            gone.tally.store(roll.tally.load(Relaxed), Relaxed);
            gone.further.store(roll.further.load(Relaxed), Relaxed);
        }
        // Where there is no room for it none has gone.
        own.push(Arc::new(gone));
        own.truncate(MOST);
        Self::over(core, &own)
    }

    fn over(core: Arc<Core<T>>, own: &[Arc<Stripe<T>>]) -> Self {
        Self { core, stripes: array::from_fn(|n| Arc::clone(&own[n % own.len()])), different: own.len() }
    }

    /// What calls keep alive too.
    pub(crate) fn core(&self) -> Weak<Core<T>> {
        Arc::downgrade(&self.core)
    }

    /// A reference counted on this thread's stripe.
    #[inline(always)]
    pub(crate) fn share(&self) -> Shared<T> {
        Shared(Arc::clone(&self.stripes[thread_number() % MOST]))
    }

    /// What all stripes have [counted](Shared::count).
    pub(crate) fn tally(&self) -> u64 {
        self.stripes[..self.different].iter().map(|stripe| stripe.tally.load(Relaxed)).sum()
    }

    /// What all stripes have [counted beside](Shared::count_further).
    pub(crate) fn further(&self) -> u64 {
        self.stripes[..self.different].iter().map(|stripe| stripe.further.load(Relaxed)).sum()
    }
}

impl<T> Shared<T> {
    /// Of a state that has no stripes: all references are counted in one place.
    #[cfg(feature = "http")]
    pub(crate) fn alone(state: T) -> Self {
        Shared(Arc::new(Stripe::new(&Arc::new(Core::new(state)), 0)))
    }

    /// Is this the only reference to a state [without stripes](Shared::alone)?
    #[cfg(feature = "http")]
    pub(crate) fn is_the_only_one(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// The number of the stripe: the same for all that one thread shares.
    #[inline(always)]
    pub(crate) fn stripe(&self) -> usize {
        self.0.number
    }

    /// Counts one of whatever the state counts, on a line that this thread writes anyway.
    #[inline]
    pub(crate) fn count(&self) {
        self.0.tally.fetch_add(1, Relaxed);
    }

    /// Counts another one that belongs to one that was [counted](Self::count).
    #[inline]
    pub(crate) fn count_further(&self) {
        self.0.further.fetch_add(1, Relaxed);
    }
}

impl<T> Core<T> {
    fn new(state: T) -> Self {
        Core { state, roll: OnceLock::new() }
    }
}

impl<T> Stripe<T> {
    fn new(core: &Arc<Core<T>>, number: usize) -> Self {
        Stripe { core: Arc::clone(core), number, tally: AtomicU64::new(0), further: AtomicU64::new(0) }
    }
}

/// What it counted stays, as long as others are held.
impl<T> Drop for Stripe<T> {
    fn drop(&mut self) {
        if let (true, Some(roll)) = (self.number != GONE, self.core.roll.get()) {
            roll.tally.fetch_add(*self.tally.get_mut(), Relaxed);
            roll.further.fetch_add(*self.further.get_mut(), Relaxed);
        }
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
        &self.core.state
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0.core.state
    }
}

impl<T> Deref for Core<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.state
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

/// A count that each thread adds to on a cache line of its own.
#[derive(Debug, Default)]
pub(crate) struct Count([Lane; LANES]);

/// More threads than this share.
const LANES: usize = 16;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(AtomicU64);

impl Count {
    #[inline]
    pub(crate) fn add(&self) {
        self.0[thread_number() % LANES].0.fetch_add(1, Relaxed);
    }

    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().map(|lane| lane.0.load(Relaxed)).sum()
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
#[inline(always)]
pub(crate) fn thread_number() -> usize {
    // Not initialised by a function: then every look would first ask whether that has run, through a call.
    thread_local!(static NUMBER: Cell<usize> = const { Cell::new(UNNUMBERED) });
    let number = NUMBER.get();
    if number == UNNUMBERED { NUMBER.with(first_number) } else { number }
}

const UNNUMBERED: usize = usize::MAX;

#[cold]
#[inline(never)]
fn first_number(number: &Cell<usize>) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    number.set(NEXT.fetch_add(1, Relaxed));
    number.get()
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
    fn what_each_thread_counts_is_added_up() {
        let striped = Striped::new(());
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..1_000).for_each(|_| striped.share().count()));
            }
        });
        assert_eq!(striped.tally(), 4_000);
    }

    #[test]
    fn what_is_left_is_seen_whole_and_as_long_as_somebody_holds_it() {
        let striped = Striped::new(7);
        let core = striped.core();
        striped.share().count();
        let kept = thread::scope(|s| s.spawn(|| striped.share()).join().unwrap());
        kept.count();
        kept.count_further();
        drop(striped);
        kept.count();
        for _ in 0..2 {
            let left = Striped::of(core.upgrade().unwrap());
            assert_eq!((*left, left.tally(), left.further()), (7, 3, 1));
        }
        drop(kept);
        assert!(core.upgrade().is_none());
    }

    #[test]
    fn counters_of_two_stripes_are_on_lines_of_their_own() {
        let a = Arc::new(Stripe::new(&Arc::new(Core::new(0)), 0));
        assert_eq!(std::ptr::from_ref(&*a) as usize % 128, 0);
        assert_eq!(size_of::<Stripe<u8>>() % 128, 0);
    }
}
