//! How long calls take: quantiles of the last T, without a lock and without a list.
//!
//! A histogram whose buckets grow with what they hold, as in HdrHistogram: 32 to each doubling, so a quantile is at
//! most 3.2 % too high and never too low. From about a microsecond to 68 s; what is outside counts as the bound. Four
//! of them take turns, each for a third of T, so that it holds what is younger than T and nothing older than 4/3 T.
//! Each bucket is tagged with its turn, so it is emptied by the first record of a later one.

use std::time::Duration;

use crate::{sync::AtomicU64, window::word};

/// Buckets to a doubling.
const FINE: u64 = 32;
/// A unit is 1,024 ns.
const UNIT: u32 = 10;
const MOST: u64 = (1 << 26) - 1;
const BUCKETS: usize = bucket(MOST) + 1;
const TURNS: u32 = 4;

/// Latencies of the last T. `now` is in nanoseconds of any clock that does not go back.
#[derive(Debug)]
pub(crate) struct Latencies {
    /// How long one turn is.
    turn: u64,
    counts: Box<[[AtomicU64; BUCKETS]; TURNS as usize]>,
    /// How many samples each turn has.
    totals: [AtomicU64; TURNS as usize],
}

impl Latencies {
    pub(crate) fn new(over: Duration) -> Self {
        let row = || std::array::from_fn(|_| AtomicU64::new(0));
        Latencies {
            turn: u64::try_from(over.as_nanos() / u128::from(TURNS - 1)).unwrap_or(u64::MAX).max(1),
            // Row by row on the heap: whole it would be 20 KiB on the stack.
            counts: (0..TURNS).map(|_| row()).collect::<Vec<_>>().try_into().unwrap_or_else(|_| unreachable!()),
            totals: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn record(&self, now: u64, took: Duration) {
        let tag = self.tag(now);
        let row = (tag % TURNS) as usize;
        let one_more = |n: u32| Some(n.saturating_add(1));
        word::update(&self.counts[row][bucket(units(took))], tag, one_more);
        word::update(&self.totals[row], tag, one_more);
    }

    /// How many there are.
    pub(crate) fn samples(&self, now: u64) -> u64 {
        let tag = self.tag(now);
        self.inside(tag).map(|(row, tag)| u64::from(word::value(&self.totals[row], tag))).sum()
    }

    /// What the share `q` (0 to 1) of them did not exceed. `None` if there are fewer than `least` (at least one).
    ///
    /// It goes over all buckets, some thousand loads: not for the path of every call.
    pub(crate) fn quantile(&self, now: u64, q: f64, least: u64) -> Option<Duration> {
        let samples = self.samples(now);
        if samples < least.max(1) {
            return None;
        }
        let tag = self.tag(now);
        let wanted = ((samples as f64 * q).ceil() as u64).clamp(1, samples);
        let mut seen = 0;
        for n in 0..BUCKETS {
            seen += self.inside(tag).map(|(row, tag)| u64::from(word::value(&self.counts[row][n], tag))).sum::<u64>();
            if seen >= wanted {
                return Some(highest(n));
            }
        }
        // Counted in the total already, and not yet in its bucket.
        Some(highest(BUCKETS - 1))
    }

    // From 1, for zero is the tag of what was never written.
    fn tag(&self, now: u64) -> u32 {
        ((now / self.turn) as u32).wrapping_add(1)
    }

    fn inside(&self, tag: u32) -> impl Iterator<Item = (usize, u32)> {
        (0..TURNS).map(move |back| tag.wrapping_sub(back)).map(|tag| ((tag % TURNS) as usize, tag))
    }
}

fn units(d: Duration) -> u64 {
    u64::try_from(d.as_nanos() >> UNIT).unwrap_or(u64::MAX).min(MOST)
}

const fn bucket(units: u64) -> usize {
    let shift = (units | FINE).ilog2() - FINE.ilog2();
    (shift as u64 * FINE + (units >> shift)) as usize
}

/// The longest that falls into this bucket.
fn highest(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    let shift = (bucket / FINE).saturating_sub(1);
    let units = (bucket - shift * FINE + 1) << shift;
    Duration::from_nanos((units << UNIT) - 1)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn buckets_meet_and_grow() {
        for n in 0..BUCKETS - 1 {
            let (this, next) = (highest(n), highest(n + 1));
            assert_eq!(bucket(units(this)), n);
            assert_eq!(bucket(units(this + Duration::from_nanos(1))), n + 1);
            assert!(n < 64 || (next - this).as_nanos() * 32 <= this.as_nanos() + 1_024, "{n}");
        }
        assert_eq!(bucket(units(Duration::MAX)), BUCKETS - 1);
        assert!(highest(BUCKETS - 1) > Duration::from_secs(68));
    }

    #[test]
    fn the_young_are_in_and_the_old_are_out() {
        let latencies = Latencies::new(Duration::from_secs(3));
        let second = 1_000_000_000;
        latencies.record(second / 2, ms(10));
        for now in [second, 3 * second, 4 * second - 1] {
            assert_eq!(latencies.samples(now), 1, "{now}");
        }
        assert_eq!(latencies.samples(4 * second), 0);
        assert_eq!(latencies.quantile(4 * second, 0.5, 1), None);
        latencies.record(4 * second, ms(20));
        assert_eq!(latencies.quantile(4 * second, 0.0, 2), None);
        assert_eq!(latencies.quantile(4 * second, 0.0, 1).unwrap().as_millis(), 20);
    }

    proptest! {
        #[test]
        fn close_to_a_sorted_list(mut took in proptest::collection::vec(0..10_000_000_000u64, 1..300), q in 0.0..=1.0f64) {
            let latencies = Latencies::new(Duration::from_secs(30));
            for (n, t) in took.iter().enumerate() {
                latencies.record(n as u64 * 100_000_000, Duration::from_nanos(*t));
            }
            took.sort_unstable();
            let rank = ((took.len() as f64 * q).ceil() as usize).clamp(1, took.len());
            let exact = took[rank - 1];
            let found = latencies.quantile(took.len() as u64 * 100_000_000, q, 1).unwrap().as_nanos() as u64;
            prop_assert!(found >= exact && found - exact <= exact / 31 + 1_024, "{} for {}", found, exact);
        }
    }
}
