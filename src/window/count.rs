//! The last N calls.
//!
//! A ring of bits: the head says whose turn the next slot is, a bit whether the call in it failed, and a counter per
//! kind follows the bits as they change, so that a record costs the same for ten calls as for 4,096.
//!
//! The head counts down, and knows how long the ring is. So the turn of a success that has no others beside it is this
//! one word less one, and no other word is looked at.

use std::sync::OnceLock;

use crate::{
    sync::AtomicU64,
    window::{Sample, Sums, word},
};

/// The longest window.
pub(crate) const MOST: u32 = if cfg!(loom) { 64 } else { 4_096 };

/// The last N calls, N being given with each epoch.
#[derive(Debug)]
pub(crate) struct CountRing {
    /// A [`Head`], tagged with the epoch.
    head: AtomicU64,
    failed: Bits,
    slow: Bits,
}

/// One bit a slot, and how many are set.
#[derive(Debug)]
struct Bits {
    // Not there where the window has never been one of calls, or where none was ever set.
    words: OnceLock<Box<[AtomicU64]>>,
    ones: AtomicU64,
}

/// Whose turn it is.
///
/// ```text
///  31 30   17  16  15  0
/// | - |  n  |full| left |
/// ```
///
/// `left` are the slots until the ring begins again, 1 to `n`. The next is the one below it: they are taken from the
/// last to the first. `full` says that it did begin again.
#[derive(Debug, Clone, Copy)]
struct Head(u32);

const LEFT: u32 = 0xffff;
const FULL: u32 = 1 << 16;
const N: u32 = 17;

impl Head {
    fn new(n: u32) -> Self {
        Head(n << N | n)
    }

    fn n(self) -> u32 {
        self.0 >> N
    }

    /// 1 to `n`; and a ring that was never begun has none.
    fn left(self) -> u32 {
        self.0 & LEFT
    }

    fn slot(self) -> u32 {
        self.left().saturating_sub(1)
    }

    fn calls(self) -> u32 {
        if self.0 & FULL == 0 { self.n() - self.left() } else { self.n() }
    }

    fn next(self) -> Self {
        if self.left() > 1 { Head(self.0 - 1) } else { Head(self.n() << N | FULL | self.n()) }
    }
}

/// A turn that was taken on the short way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn(u64);

impl CountRing {
    pub(crate) fn new() -> Self {
        CountRing { head: AtomicU64::new(0), failed: Bits::new(), slow: Bits::new() }
    }

    /// Makes room for what the calls were, which else is made with the first that failed or was slow.
    pub(crate) fn be_there(&self) {
        self.failed.be_there();
        self.slow.be_there();
    }

    /// Begins an epoch with an empty ring. Whoever comes with an older one is too late from now on.
    pub(crate) fn begin(&self, epoch: u32, n: u32) {
        // Not a store: it has to come after every turn that was taken, and before every one that is.
        self.head.swap(word::pack(epoch, Head::new(n).0), word::ORDER);
    }

    /// Records a call and gives back the figures with it; `None` if nobody is to be found in them who failed or was
    /// slow, or if the epoch is over.
    pub(crate) fn record(&self, epoch: u32, sample: Sample) -> Option<Sums> {
        let slot = self.take_turn(epoch)?;
        if !sample.failed && !sample.slow && self.is_all_good(epoch) {
            return None;
        }
        self.replace(epoch, slot, sample);
        // Added up after everything is written: of two calls that trip together, the one that counts last sees both.
        Some(self.sums(epoch))
    }

    /// Whose turn is it? See [`take`](Self::take).
    #[inline(always)]
    pub(crate) fn turn(&self) -> Turn {
        Turn(self.head.load(word::ORDER))
    }

    /// Takes this turn, for a success where there is nothing but successes, so that no bit has to be cleared. `Err`:
    /// somebody else has it, and this is the one after; or none, where the ring begins again after it or is a new one.
    #[inline(always)]
    pub(crate) fn take(&self, turn: Turn) -> Result<(), Option<Turn>> {
        if turn.0 as u16 <= 1 {
            return Err(None);
        }
        let taken = self.head.compare_exchange(turn.0, turn.0 - 1, word::ORDER, word::ORDER);
        taken.map(drop).map_err(|next| Some(Turn(next)))
    }

    /// Writes the success of a turn that was taken, now that there are others.
    pub(crate) fn make_good(&self, turn: Turn) {
        let (epoch, head) = word::unpack(turn.0);
        self.replace(epoch, Head(head).slot(), Sample::default());
    }

    /// The slot whose turn it was, or `None` if the epoch is over.
    fn take_turn(&self, epoch: u32) -> Option<u32> {
        let mut seen = self.head.load(word::ORDER);
        loop {
            let (its, head) = word::unpack(seen);
            if its != epoch {
                return None;
            }
            let next = word::pack(epoch, Head(head).next().0);
            match self.head.compare_exchange_weak(seen, next, word::ORDER, word::ORDER) {
                Ok(_) => return Some(Head(head).slot()),
                Err(now) => seen = now,
            }
        }
    }

    /// Where no bit is set none has to be cleared.
    pub(crate) fn is_all_good(&self, epoch: u32) -> bool {
        self.failed.are_clear(epoch) && self.slow.are_clear(epoch)
    }

    /// Writes a call in the place of the oldest.
    fn replace(&self, epoch: u32, slot: u32, sample: Sample) {
        self.failed.set(epoch, slot, sample.failed);
        self.slow.set(epoch, slot, sample.slow);
    }

    fn head(&self, epoch: u32) -> Head {
        Head(word::value(&self.head, epoch))
    }

    pub(crate) fn sums(&self, epoch: u32) -> Sums {
        Sums {
            calls: u64::from(self.head(epoch).calls()),
            failures: self.failed.ones(epoch),
            slow: self.slow.ones(epoch),
        }
    }

    /// The calls, oldest first.
    pub(crate) fn samples(&self, epoch: u32) -> impl Iterator<Item = Sample> {
        let head = self.head(epoch);
        let (n, left) = (head.n(), head.left());
        let before = if head.0 & FULL == 0 { 0 } else { left };
        // The next turn is that of the oldest.
        let slots = (0..before).rev().chain((left..n).rev());
        slots.map(move |i| Sample { failed: self.failed.get(epoch, i), slow: self.slow.get(epoch, i) })
    }
}

impl Bits {
    fn new() -> Self {
        Bits { words: OnceLock::new(), ones: AtomicU64::new(0) }
    }

    fn be_there(&self) -> &[AtomicU64] {
        self.words.get_or_init(|| (0..MOST / 32).map(|_| AtomicU64::new(0)).collect())
    }

    fn word(&self, slot: u32) -> Option<&AtomicU64> {
        self.words.get()?.get((slot / 32) as usize)
    }

    fn set(&self, epoch: u32, slot: u32, on: bool) {
        let mask = 1 << (slot % 32);
        if on {
            self.be_there();
        }
        let Some(word) = self.word(slot) else { return };
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
        self.word(slot).is_some_and(|word| word::value(word, epoch) & (1 << (slot % 32)) != 0)
    }

    /// Is none set?
    fn are_clear(&self, epoch: u32) -> bool {
        word::value(&self.ones, epoch) == 0
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
            ring.begin(epoch, n);
            for (failed, slow, turn) in calls {
                if turn == 0 {
                    epoch = epoch.wrapping_add(1);
                    ring.begin(epoch, n);
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
                let next = ring.turn();
                if !failed && !slow && turn % 2 == 1 && ring.take(next).is_ok() {
                    // The way of a success, which is told of others by somebody else.
                    if bad || !ring.is_all_good(epoch) {
                        ring.make_good(next);
                    }
                    prop_assert!(ring.take(next).is_err());
                } else {
                    let recorded = ring.record(epoch, sample);
                    prop_assert!(recorded == Some(sums) || recorded.is_none() && !bad);
                }
                prop_assert_eq!(ring.sums(epoch), naive(&queue));
                prop_assert!(ring.samples(epoch).eq(queue.iter().copied()));
                prop_assert_eq!(ring.record(epoch.wrapping_sub(1), sample), None);
            }
        }
    }

    #[test]
    fn slides_after_a_hundred_thousand_successes() {
        let (ring, failed) = (CountRing::new(), Sample { failed: true, slow: false });
        ring.begin(1, 100);
        for _ in 0..100_000 {
            ring.record(1, Sample::default());
        }
        for failures in 1..=100 {
            assert_eq!(ring.record(1, failed), Some(Sums { calls: 100, failures, slow: 0 }));
        }
    }

    #[test]
    fn threads_lose_nothing() {
        let (ring, each, n) = (CountRing::new(), 20_000, 97);
        ring.begin(3, n);
        std::thread::scope(|s| {
            for thread in 0..4 {
                let ring = &ring;
                s.spawn(move || {
                    for i in 0..each {
                        ring.record(3, Sample { failed: (i + thread) % 3 == 0, slow: i % 5 == 0 });
                    }
                });
            }
        });
        let sums = ring.sums(3);
        let bits = ring.samples(3).filter(|s| s.failed).count() as u64;
        assert_eq!((sums.calls, sums.failures), (u64::from(n), bits));
    }
}
