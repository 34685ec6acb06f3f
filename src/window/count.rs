//! The last N calls.
//!
//! A ring of bits: the head says whose turn the next slot is, a bit whether the call in it failed, and a counter per kind
//! follows the bits as they change, so that a record costs the same for ten calls as for 4,096. A success that replaces
//! a success writes one word.

use crate::{
    sync::AtomicU64,
    window::{Sample, Sums, word},
};

/// The longest window.
pub(crate) const MOST: u32 = if cfg!(loom) { 64 } else { 4_096 };

/// The last N calls, N being given with each use; it must be the same all through one epoch.
#[derive(Debug)]
pub(crate) struct CountRing {
    /// Slots given out: 0..N while the ring fills for the first time, N..2N ever after.
    head: AtomicU64,
    failed: Bits,
    slow: Bits,
}

/// One bit a slot, and how many are set.
#[derive(Debug)]
struct Bits {
    words: Box<[AtomicU64]>,
    ones: AtomicU64,
}

impl CountRing {
    pub(crate) fn new() -> Self {
        CountRing { head: AtomicU64::new(0), failed: Bits::new(), slow: Bits::new() }
    }

    /// Records a call and gives back the figures with it; `None` if nobody is to be found in them who failed or was slow,
    /// or if the epoch is over.
    pub(crate) fn record(&self, epoch: u32, n: u32, sample: Sample) -> Option<Sums> {
        let head = self.take_turn(epoch, n)?;
        if !sample.failed && !sample.slow && self.is_all_good() {
            return None;
        }
        self.replace(epoch, n, head, sample);
        // Added up after everything is written: of two calls that trip together, the one that counts last sees both.
        Some(self.sums(epoch, n))
    }

    /// Records a success. `Some`: there are others, so this [turn](Self::replace) is to be written too, and judged.
    #[inline(always)]
    pub(crate) fn record_good(&self, epoch: u32, n: u32) -> Option<u32> {
        let head = self.take_turn(epoch, n)?;
        if self.is_all_good() { None } else { Some(head) }
    }

    /// The head after it, or `None` if the epoch is over.
    #[inline(always)]
    fn take_turn(&self, epoch: u32, n: u32) -> Option<u32> {
        word::update(&self.head, epoch, |h| Some(if h + 1 < 2 * n { h + 1 } else { n }))
    }

    /// Where no bit is set none has to be cleared: a success among successes is all done with its turn.
    #[inline(always)]
    fn is_all_good(&self) -> bool {
        self.failed.are_clear() && self.slow.are_clear()
    }

    /// Writes a call in the place of the oldest. `head` is what its turn has made of it.
    pub(crate) fn replace(&self, epoch: u32, n: u32, head: u32, sample: Sample) {
        // `head` is already one further.
        let slot = if head == n { n - 1 } else { (head - 1) % n };
        self.failed.set(epoch, slot, sample.failed);
        self.slow.set(epoch, slot, sample.slow);
    }

    #[inline]
    pub(crate) fn sums(&self, epoch: u32, n: u32) -> Sums {
        Sums {
            calls: u64::from(word::value(&self.head, epoch).min(n)),
            failures: self.failed.ones(epoch),
            slow: self.slow.ones(epoch),
        }
    }

    /// The calls, oldest first.
    pub(crate) fn samples(&self, epoch: u32, n: u32) -> impl Iterator<Item = Sample> {
        let head = word::value(&self.head, epoch);
        let slots = if head < n { 0..head } else { head..head + n };
        slots.map(move |i| Sample { failed: self.failed.get(epoch, i % n), slow: self.slow.get(epoch, i % n) })
    }
}

impl Bits {
    fn new() -> Self {
        Bits { words: (0..MOST / 32).map(|_| AtomicU64::new(0)).collect(), ones: AtomicU64::new(0) }
    }

    #[inline]
    fn set(&self, epoch: u32, slot: u32, on: bool) {
        let mask = 1 << (slot % 32);
        let word = &self.words[(slot / 32) as usize];
        let was = std::cell::Cell::new(on);
        word::update(word, epoch, |bits| {
            was.set(bits & mask != 0);
            (was.get() != on).then_some(bits ^ mask)
        });
        if was.get() != on {
            // The counter may pass below zero for a moment, when a bit is cleared before whoever set it has counted.
            let change = |ones: u32| Some(if on { ones.wrapping_add(1) } else { ones.wrapping_sub(1) });
            word::update(&self.ones, epoch, change);
        }
    }

    fn get(&self, epoch: u32, slot: u32) -> bool {
        word::value(&self.words[(slot / 32) as usize], epoch) & (1 << (slot % 32)) != 0
    }

    /// Is none set? Zero is zero under every tag; what is not zero may still be of an epoch that is over.
    #[inline(always)]
    fn are_clear(&self) -> bool {
        word::unpack(self.ones.load(word::ORDER)).1 == 0
    }

    #[inline]
    fn ones(&self, epoch: u32) -> u64 {
        (word::value(&self.ones, epoch) as i32).max(0) as u64
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn naive(window: &VecDeque<Sample>) -> Sums {
        Sums {
            calls: window.len() as u64,
            failures: window.iter().filter(|s| s.failed).count() as u64,
            slow: window.iter().filter(|s| s.slow).count() as u64,
        }
    }

    proptest! {
        #[test]
        fn equals_a_queue(
            n in 1..200u32,
            epoch in prop_oneof![Just(1), Just(u32::MAX), Just(1 << 31), any::<u32>()],
            calls in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..50u8), 0..600),
        ) {
            let (ring, mut epoch, mut queue) = (CountRing::new(), epoch, VecDeque::new());
            for (failed, slow, turn) in calls {
                if turn == 0 {
                    epoch = epoch.wrapping_add(1);
                    queue.clear();
                }
                let sample = Sample { failed, slow };
                queue.push_back(sample);
                if queue.len() > n as usize {
                    queue.pop_front();
                }
                let sums = naive(&queue);
                let bad = sums.failures + sums.slow > 0;
                // The one that slides out may still be counted when it is asked whether there is anything bad.
                let recorded = ring.record(epoch, n, sample);
                prop_assert!(recorded == Some(sums) || recorded.is_none() && !bad);
                prop_assert_eq!(ring.sums(epoch, n), naive(&queue));
                prop_assert!(ring.samples(epoch, n).eq(queue.iter().copied()));
                prop_assert_eq!(ring.record(epoch.wrapping_sub(1), n, sample), None);
            }
        }
    }

    #[test]
    fn slides_after_a_hundred_thousand_successes() {
        let (ring, failed) = (CountRing::new(), Sample { failed: true, slow: false });
        for _ in 0..100_000 {
            ring.record(1, 100, Sample::default());
        }
        for failures in 1..=100 {
            assert_eq!(ring.record(1, 100, failed), Some(Sums { calls: 100, failures, slow: 0 }));
        }
    }

    #[test]
    fn threads_lose_nothing() {
        let (ring, each, n) = (CountRing::new(), 20_000, 97);
        std::thread::scope(|s| {
            for thread in 0..4 {
                let ring = &ring;
                s.spawn(move || {
                    for i in 0..each {
                        ring.record(3, n, Sample { failed: (i + thread) % 3 == 0, slow: i % 5 == 0 });
                    }
                });
            }
        });
        let sums = ring.sums(3, n);
        let bits = ring.samples(3, n).filter(|s| s.failed).count() as u64;
        assert_eq!((sums.calls, sums.failures), (u64::from(n), bits));
    }
}
