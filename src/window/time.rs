//! The calls of the last T.
//!
//! Time is cut into ticks of a tenth of T, and the window is the running tick and the ten before it: it keeps every
//! call younger than T and none older than 1.1 T. Each tick has a bucket in a ring of 16, tagged with its number, so a
//! bucket is emptied by the first record of a later tick, in the same step that counts it.
//!
//! Successes, which are nearly all there is, are counted in up to eight stripes, a thread always in the same one, so
//! that threads do not fight over one line; failures and slow calls, which everybody must see, in a row for all.

use std::cmp::Ordering::Greater;

use crate::{
    sync::{AtomicU32, AtomicU64},
    window::{
        Sample, Sums,
        word::{self, ORDER},
    },
};

/// Ticks before the running one that are still inside.
const BACK: u32 = 10;
/// So many ticks after a call it is certainly outside.
#[cfg(feature = "http")]
pub(crate) const EMPTY_AFTER: u64 = BACK as u64 + 1;
/// Buckets in a row: a power of two above `BACK`, with room between what is live and what is overwritten.
const BUCKETS: usize = 16;
/// What is added to the offset of a window to begin it anew: then all that is in it is too old to count.
pub(crate) const ANEW: u32 = BUCKETS as u32;
pub(crate) const STRIPES: usize = if cfg!(loom) { 2 } else { 8 };
/// Below in `added_up`: a success can only lower the shares.
const SETTLED: u32 = 1;
/// A tag that is older than 2^31 ticks would be taken for a newer one. Long before that it is swept out.
const SWEEP_EVERY: u64 = 1 << 28;
/// So many ticks one thread can be ahead of another. What is further ahead is not, but very old: tags wrap.
pub(crate) const AHEAD: u32 = 1 << 10;

/// The calls of the last T. The length of a tick is given with each use; it must be the same all through one epoch.
#[derive(Debug)]
pub(crate) struct TimeRing {
    /// Of successes, one a stripe, a power of two of them; then one of failures, and one of slow calls. All in one
    /// place elsewhere, so that a ring takes no more room than it has to where there are many.
    rows: Box<[Row]>,
    /// One less than the stripes: what it leaves of a number is that of a stripe.
    mask: usize,
    /// The tag of the tick in which the window was last added up, and whether a success can matter no more in it; any
    /// other number than [`SETTLED`] says that it can.
    added_up: AtomicU64,
    /// How often all was to be judged again.
    turns: AtomicU32,
    /// The number of the tick in which old tags were last swept out, whole.
    last_sweep: AtomicU64,
}

/// Two cache lines of its own, and no other's.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Row([AtomicU64; BUCKETS]);

/// A moment as the ring sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tick {
    number: u64,
    tag: u32,
}

impl Tick {
    /// `now` and `length` are in nanoseconds. The offset is added to the number, so that a window that begins anew has
    /// newer tags than the one before it, whatever its length.
    #[inline]
    pub(crate) fn new(offset: u32, length: u64, now: u64) -> Self {
        Tick::numbered(offset, now / length)
    }

    #[inline]
    pub(crate) fn numbered(offset: u32, number: u64) -> Self {
        Tick { number, tag: (number as u32).wrapping_add(offset) }
    }

    /// The offset of a window with ticks of this length that begins now and has nothing of this one, unless it is
    /// refilled: a whole ring further for each tick that may be, so even the oldest of them is newer than all that is
    /// here.
    pub(crate) fn offset_after(self, length: u64, now: u64) -> u32 {
        let next = self.tag.wrapping_add(2 * BUCKETS as u32);
        next.wrapping_sub((now / length) as u32)
    }

    /// Its number, and that of its window, as it stands in the words.
    #[inline]
    pub(crate) fn tag(self) -> u32 {
        self.tag
    }

    /// The tick of this tag, in a window whose offset is zero.
    #[inline]
    pub(crate) fn of_tag(tag: u32) -> Self {
        Tick { number: u64::from(tag), tag }
    }

    /// This tick as [`record_good`](TimeRing::record_good) wants it.
    pub(crate) fn stamp(self) -> u64 {
        word::pack(self.tag, 0)
    }

    fn bucket(self) -> usize {
        self.tag as usize % BUCKETS
    }

    #[inline]
    pub(crate) fn has_inside(self, tag: u32) -> bool {
        let oldest = self.tag.wrapping_sub(BACK);
        word::age(oldest, tag) != Greater && word::age(tag, self.tag) != Greater
    }
}

/// The length of a tick for a window of this length, in nanoseconds.
pub(crate) fn tick_length(window: std::time::Duration) -> u64 {
    u64::try_from(window.as_nanos().div_ceil(u128::from(BACK))).unwrap_or(u64::MAX)
}

impl TimeRing {
    /// With so many stripes, or the next power of two.
    pub(crate) fn new(stripes: usize) -> Self {
        let stripes = stripes.next_power_of_two();
        TimeRing {
            rows: (0..stripes + 2).map(|_| Row::new()).collect(),
            mask: stripes - 1,
            added_up: AtomicU64::new(0),
            turns: AtomicU32::new(SETTLED + 1),
            last_sweep: AtomicU64::new(0),
        }
    }

    /// Records a call. `Some`: the figures with it, added up. `None`: nothing has changed that could cross a threshold,
    /// as long as that is only asked of figures of at least `minimum` calls, and of shares.
    #[inline]
    pub(crate) fn record(&self, tick: Tick, stripe: usize, sample: Sample, minimum: u64) -> Option<Sums> {
        if sample.failed {
            self.failed().add(tick, 1);
        } else {
            self.good(stripe).add(tick, 1);
        }
        if sample.slow {
            self.slow().add(tick, 1);
        }
        if !sample.failed && !sample.slow && !self.may_matter(tick) {
            return None;
        }
        Some(self.add_up(tick, minimum))
    }

    /// Records a success in the tick of this [stamp](Tick::stamp), if it has begun on its stripe. Says whether it could
    /// cross a threshold, and has to be [added up](Self::add_up); `None` if it was not recorded.
    #[inline(always)]
    pub(crate) fn record_good(&self, stamp: u64, stripe: usize) -> Option<bool> {
        let bucket = &self.good(stripe).0[(stamp >> 32) as usize % BUCKETS];
        if word::increment(bucket, stamp) {
            Some(self.added_up.load(ORDER) != stamp | u64::from(SETTLED))
        } else {
            None
        }
    }

    /// A success can only lower the shares, unless it completes the minimum or old calls have slid out; and the latter
    /// shows with the first call of each tick.
    #[inline(always)]
    fn may_matter(&self, tick: Tick) -> bool {
        self.added_up.load(ORDER) != word::pack(tick.tag, SETTLED)
    }

    /// Records calls that were counted elsewhere: successes, failures, and how many of both were slow.
    pub(crate) fn refill(&self, tick: Tick, sums: Sums) {
        let counted = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        self.failed().add(tick, counted(sums.failures));
        self.good(0).add(tick, counted(sums.calls - sums.failures));
        self.slow().add(tick, counted(sums.slow));
    }

    pub(crate) fn sums(&self, tick: Tick) -> Sums {
        let failures = self.failed().sum(tick);
        let good: u64 = self.all_good().iter().map(|row| row.sum(tick)).sum();
        Sums { calls: good + failures, failures, slow: self.slow().sum(tick) }
    }

    /// The figures of each tick that is inside, with how many ticks ago it was.
    pub(crate) fn ticks(&self, tick: Tick) -> impl Iterator<Item = (u64, Sums)> {
        (0..=BACK).rev().map(move |back| {
            let then = Tick { number: tick.number, tag: tick.tag.wrapping_sub(back) };
            let at = |row: &Row| u64::from(word::value(&row.0[then.bucket()], then.tag));
            let failures = at(self.failed());
            let good: u64 = self.all_good().iter().map(at).sum();
            (u64::from(back), Sums { calls: good + failures, failures, slow: at(self.slow()) })
        })
    }

    #[inline(never)]
    pub(crate) fn add_up(&self, tick: Tick, minimum: u64) -> Sums {
        let seen = self.added_up.load(ORDER);
        if tick.number.abs_diff(self.last_sweep.load(ORDER)) > SWEEP_EVERY {
            self.last_sweep.store(tick.number, ORDER);
            self.sweep(tick);
        }
        let sums = self.sums(tick);
        if sums.calls >= minimum {
            // Lost to another that has added up, or to thresholds that have changed since; then the next call is judged
            // too.
            let _ = self.added_up.compare_exchange(seen, word::pack(tick.tag, SETTLED), ORDER, ORDER);
        }
        sums
    }

    /// Judge the next call, whatever it is: thresholds have changed.
    pub(crate) fn judge_again(&self) {
        // Never the same number twice, so that who adds up by the old thresholds does not settle it.
        let turn = self.turns.fetch_add(1, ORDER);
        self.added_up.store(word::pack(0, turn.max(SETTLED + 1)), ORDER);
    }

    /// Empties every bucket that is not inside. Rows are used unequally: one of failures may rest for months.
    #[cold]
    fn sweep(&self, tick: Tick) {
        self.rows.iter().for_each(|row| row.sweep(tick));
    }

    #[inline(always)]
    fn good(&self, stripe: usize) -> &Row {
        &self.rows[stripe & self.mask]
    }

    fn all_good(&self) -> &[Row] {
        &self.rows[..=self.mask]
    }

    fn failed(&self) -> &Row {
        &self.rows[self.mask + 1]
    }

    fn slow(&self) -> &Row {
        &self.rows[self.mask + 2]
    }
}

impl Row {
    pub(crate) fn new() -> Self {
        Row(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// The bucket of this tick: a counter tagged with its number.
    #[inline]
    pub(crate) fn bucket(&self, tick: Tick) -> &AtomicU64 {
        &self.0[tick.bucket()]
    }

    /// Empties every bucket that is too old to be inside. Another thread may be in a later tick already, and have
    /// counted in it.
    pub(crate) fn sweep(&self, tick: Tick) {
        for bucket in &self.0 {
            let seen = bucket.load(ORDER);
            let tag = word::unpack(seen).0;
            if !tick.has_inside(tag) && tag.wrapping_sub(tick.tag) > AHEAD {
                // Lost to a record of this very moment, which has emptied it already.
                let _ = bucket.compare_exchange(seen, 0, ORDER, ORDER);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn add(&self, tick: Tick, n: u32) {
        word::update(&self.0[tick.bucket()], tick.tag, |count| Some(count.saturating_add(n)));
    }

    #[inline]
    pub(crate) fn sum(&self, tick: Tick) -> u64 {
        self.sum_of(|tag| tick.has_inside(tag))
    }

    /// Without those of the tick itself.
    pub(crate) fn sum_before(&self, tick: Tick) -> u64 {
        self.sum_of(|tag| tick.has_inside(tag) && tag != tick.tag)
    }

    #[inline]
    fn sum_of(&self, counts: impl Fn(u32) -> bool) -> u64 {
        let live = |bucket: &AtomicU64| {
            let (tag, count) = word::unpack(bucket.load(ORDER));
            if counts(tag) { u64::from(count) } else { 0 }
        };
        self.0.iter().map(live).sum()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const FAILED: Sample = Sample { failed: true, slow: false };

    /// Buckets as a list of `(tick, sample)`: what is inside is what is at most ten ticks old.
    fn naive(calls: &VecDeque<(u64, Sample)>, now: u64) -> Sums {
        let inside = || calls.iter().filter(|(tick, _)| now - tick <= 10).map(|(_, s)| s);
        Sums {
            calls: inside().count() as u64,
            failures: inside().filter(|s| s.failed).count() as u64,
            slow: inside().filter(|s| s.slow).count() as u64,
        }
    }

    #[test]
    fn who_comes_late_does_not_sweep_out_what_is_newer() {
        let (row, at) = (Row::new(), |number: u64| Tick::new(1, 100, number * 100));
        row.add(at(7), 3);
        row.sweep(at(6));
        assert_eq!(row.sum(at(7)), 3);
        row.sweep(at(18));
        assert_eq!(row.sum(at(7)), 0);
    }

    proptest! {
        #[test]
        fn equals_a_list(
            start in prop_oneof![Just(0u64), Just((1 << 31) - 20), Just((1 << 32) - 20), Just((1 << 24) - 20), any::<u32>().prop_map(u64::from)],
            epoch in any::<u32>(),
            calls in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..40u64, 0..8usize, 0..60u8), 0..400),
        ) {
            let length = 1_000;
            let (ring, mut epoch, mut list) = (TimeRing::new(STRIPES), epoch, VecDeque::new());
            let mut now = start * length;
            for (failed, slow, step, stripe, turn) in calls {
                now += step * 100;
                if turn == 0 {
                    epoch = epoch.wrapping_add(BUCKETS as u32);
                    list.clear();
                }
                let (tick, sample) = (Tick::new(epoch, length, now), Sample { failed, slow });
                list.push_back((now / length, sample));
                if let Some(sums) = ring.record(tick, stripe, sample, 1) {
                    prop_assert_eq!(sums, naive(&list, now / length));
                }
                prop_assert_eq!(ring.sums(tick), naive(&list, now / length));
                // Late results of an emptied window change nothing that counts.
                ring.record(Tick::new(epoch.wrapping_sub(BUCKETS as u32), length, now), stripe, FAILED, 1);
                prop_assert_eq!(ring.sums(tick), naive(&list, now / length));
            }
        }
    }

    #[test]
    fn keeps_the_young_and_drops_the_old() {
        let length = tick_length(std::time::Duration::from_secs(10));
        assert_eq!(length, 1_000_000_000);
        let ring = TimeRing::new(STRIPES);
        let at = |seconds: f64| Tick::new(1, length, (seconds * 1e9) as u64);
        ring.record(at(0.999), 0, FAILED, 1);
        // 10 s later it is still in, and no later than at 11 s of age it is out.
        assert_eq!(ring.sums(at(10.998)).failures, 1);
        assert_eq!(ring.sums(at(11.0)).failures, 0);
    }

    #[test]
    fn a_success_asks_for_a_sum_only_when_it_could_matter() {
        let (ring, good) = (TimeRing::new(STRIPES), Sample::default());
        let tick = |n: u64| Tick::new(1, 10, n * 10);
        assert!(ring.record(tick(5), 0, good, 3).is_some());
        assert!(ring.record(tick(5), 1, good, 3).is_some());
        assert_eq!(ring.record(tick(5), 2, good, 3).map(|s| s.calls), Some(3));
        assert_eq!(ring.record(tick(5), 0, good, 3), None);
        assert!(ring.record(tick(5), 0, FAILED, 3).is_some());
        assert_eq!(ring.record(tick(6), 0, good, 3).map(|s| s.calls), Some(6));
        assert_eq!(ring.record(tick(6), 0, good, 3), None);
    }

    #[test]
    fn a_silence_of_any_length_is_no_riddle() {
        for silence in [17, 1 << 20, 1 << 31, (1 << 31) + 5, (1 << 32) - 3, 1 << 32, (1 << 32) + 1, 1 << 40] {
            let ring = TimeRing::new(STRIPES);
            for n in 0..20u64 {
                ring.record(Tick::new(1, 10, n * 10), 0, FAILED, 1);
            }
            let later = |n: u64| Tick::new(1, 10, (20 + silence + n) * 10);
            // The first record may be lost to a bucket that looks newer; the silence is over after it.
            ring.record(later(0), 0, Sample::default(), 1);
            for n in 1..16 {
                ring.record(later(n), 0, FAILED, 1);
            }
            assert_eq!(ring.sums(later(15)), Sums { calls: 11, failures: 11, slow: 0 }, "{silence}");
        }
    }

    /// Rows rest while others run: of old failures nothing is left, and new ones count, however many ticks lie between.
    #[test]
    fn a_row_that_rests_is_no_riddle_either() {
        for step in [1 << 27, 1 << 28, (1 << 28) + 1] {
            for rests in [(1u64 << 31) / step + 1, (1u64 << 32) / step - 1, (1 << 32) / step, (1 << 32) / step + 1] {
                let (ring, tick) = (TimeRing::new(STRIPES), |n| Tick::new(1, 1, n));
                ring.record(tick(20), 0, FAILED, 1);
                let mut now = 20;
                for _ in 0..rests {
                    now += step;
                    ring.record(tick(now), 1, Sample::default(), 1);
                }
                assert_eq!(ring.sums(tick(now)).failures, 0, "{step} {rests}");
                ring.record(tick(now), 0, FAILED, 1);
                assert_eq!(ring.sums(tick(now)), Sums { calls: 2, failures: 1, slow: 0 }, "{step} {rests}");
            }
        }
    }

    #[test]
    fn threads_lose_nothing_across_ticks() {
        let ring = TimeRing::new(STRIPES);
        let (threads, each) = (4, 50_000u64);
        std::thread::scope(|s| {
            for stripe in 0..threads {
                let ring = &ring;
                s.spawn(move || {
                    for i in 0..each {
                        // All ticks stay inside the window.
                        ring.record(
                            Tick::new(1, 1, i * 10 / each),
                            stripe,
                            Sample { failed: i % 4 == 0, slow: false },
                            1,
                        );
                    }
                });
            }
        });
        let sums = ring.sums(Tick::new(1, 1, 9));
        assert_eq!((sums.calls, sums.failures), (threads as u64 * each, threads as u64 * each / 4));
    }
}
