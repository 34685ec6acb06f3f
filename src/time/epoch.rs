//! Instants as numbers, which is how a pure core takes them.

use std::{
    hash::{Hash, Hasher},
    time::Duration,
};

use super::{Instant, nanos, now};

/// Where the numbers begin: nanoseconds since it was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epoch {
    base: Instant,
    /// The base by its [`Parts`]; later than everything where they can't be read.
    zero: i64,
}

impl Epoch {
    pub(crate) fn new() -> Self {
        let base = now();
        Epoch { base, zero: Parts::zero(base).unwrap_or(i64::MAX) }
    }

    /// This instant as a number: zero before the epoch, and the last number beyond that.
    #[inline(always)]
    pub(crate) fn at(&self, instant: Instant) -> u64 {
        match Parts::of(instant).checked() {
            Some(parts) if parts > self.zero => (parts - self.zero) as u64,
            _ => self.by_difference(instant),
        }
    }

    #[inline(always)]
    pub(crate) fn now(&self) -> u64 {
        let now = now();
        // The present is not beyond any number; a deadline may be.
        let parts = Parts::of(now).unchecked();
        if parts > self.zero { (parts - self.zero) as u64 } else { self.by_difference(now) }
    }

    /// When that is. `None` beyond the clock's range.
    #[inline]
    pub(crate) fn instant(&self, nanos: u64) -> Option<Instant> {
        self.base.checked_add(Duration::from_nanos(nanos))
    }

    /// For an instant before the epoch too: a clock may have been paused before it began.
    #[cold]
    #[inline(never)]
    fn by_difference(&self, instant: Instant) -> u64 {
        nanos(instant.saturating_duration_since(self.base))
    }
}

/// The seconds and nanoseconds of an instant, which std shows to nobody but a hasher.
///
/// The difference of two instants costs more than reading the clock does: a call, three normalisations, a [`Duration`].
/// What an instant tells a hasher are two numbers. std doesn't promise that it will always be these two, so each epoch
/// tries whether they grow as time does, and subtracts where they don't.
#[derive(Default)]
struct Parts {
    seconds: u64,
    nanos: u64,
}

impl Parts {
    #[inline(always)]
    fn of(instant: Instant) -> Parts {
        let mut parts = Parts::default();
        instant.hash(&mut parts);
        parts
    }

    /// As nanoseconds since whatever the operating system counts from: since it was started, as a rule. `None` beyond
    /// 292 years.
    #[inline(always)]
    fn checked(&self) -> Option<i64> {
        // Where the sum does not fit it is below zero, which is before everything too.
        Some((self.seconds as i64).checked_mul(1_000_000_000)?.wrapping_add(self.nanos as i64))
    }

    #[inline(always)]
    fn unchecked(&self) -> i64 {
        self.finish() as i64
    }

    /// Those of this instant, if they can be read.
    fn zero(base: Instant) -> Option<i64> {
        // It must not be from a clock that counts centuries, or is behind itself.
        let zero = Parts::of(base).checked().filter(|zero| (0..i64::MAX / 2).contains(zero))?;
        // So that each of the two parts has to grow by itself, and one has to carry into the other.
        let grows = [0, 1, 999_999_999, 1_000_000_000, 86_400_000_000_001].into_iter().all(|step| {
            let later = base.checked_add(Duration::from_nanos(step));
            later.is_some_and(|later| Parts::of(later).checked() == Some(zero + step as i64))
        });
        grows.then_some(zero)
    }
}

impl Hasher for Parts {
    #[inline(always)]
    fn write_i64(&mut self, seconds: i64) {
        self.seconds = seconds as u64;
    }

    #[inline(always)]
    fn write_u64(&mut self, seconds: u64) {
        self.seconds = seconds;
    }

    #[inline(always)]
    fn write_u32(&mut self, nanos: u32) {
        self.nanos = nanos.into();
    }

    /// Something else: then it does not grow as time does.
    fn write(&mut self, _other: &[u8]) {}

    #[inline(always)]
    fn finish(&self) -> u64 {
        self.seconds.wrapping_mul(1_000_000_000).wrapping_add(self.nanos)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_readable_here() {
        // Where they are not, all is right and costs some 40 instructions more: say so in the README then.
        assert_ne!(Epoch::new().zero, i64::MAX);
    }

    /// As deadlines are that are meant to be none.
    #[test]
    fn what_is_far_is_far() {
        let epoch = Epoch::new();
        let later = epoch.base + Duration::from_millis(500);
        for far in [
            Duration::from_millis(u64::MAX),
            Duration::from_micros(u64::MAX),
            Duration::from_nanos(u64::MAX),
            Duration::from_secs(u64::MAX / 4),
            Duration::from_secs(20_000_000_000),
            Duration::from_secs(9_223_372_036),
        ] {
            assert_eq!(epoch.at(later + far), nanos(far + Duration::from_millis(500)), "{far:?}");
        }
    }

    proptest! {
        #[test]
        fn both_ways_give_the_same(before in 0..u64::MAX / 8, after in 0..=u64::MAX) {
            let quick = Epoch::new();
            let slow = Epoch { zero: i64::MAX, ..quick };
            let later = quick.instant(after).unwrap();
            prop_assert_eq!((quick.at(later), slow.at(later)), (after, after));
            if let Some(earlier) = quick.base.checked_sub(Duration::from_nanos(before)) {
                prop_assert_eq!((quick.at(earlier), slow.at(earlier)), (0, 0));
            }
        }
    }
}
