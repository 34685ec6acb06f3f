//! How long to wait before the next attempt.
//!
//! Full and equal jitter, and the decorrelated form: Marc Brooker, "Exponential Backoff And Jitter" (AWS, 2015).

use std::time::Duration;

use crate::{config::Checks, time::LONGEST};

/// How long to wait before the next attempt. Zero is allowed everywhere, and costs no timer.
///
/// The n-th delay, from 1, is that between attempt n and attempt n + 1.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Backoff {
    /// Always as long. 0 to 365 days.
    Constant(Duration),
    /// The n-th is n x `step`, up to `max`.
    Linear {
        /// 0 to 365 days.
        step: Duration,
        /// 0 to 365 days.
        max: Duration,
    },
    /// The n-th is `base` x `factor` ^ (n - 1), up to `max`, and what `jitter` makes of it.
    Exponential {
        /// 0 to `max`.
        base: Duration,
        /// From 1, finite.
        factor: f64,
        /// `base` to 365 days.
        max: Duration,
        /// How much of it is drawn.
        jitter: Jitter,
    },
    /// Each is drawn between `base` and three times the one drawn before it, up to `max`; the first up to three times
    /// `base`.
    Decorrelated {
        /// 0 to `max`.
        base: Duration,
        /// `base` to 365 days.
        max: Duration,
    },
}

/// How much of a delay is drawn, so that many clients do not come back at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jitter {
    /// From zero to the whole.
    Full,
    /// From the half to the whole.
    Equal,
    /// Nothing: always the whole.
    None,
}

/// Exponential: 50 ms, doubled up to 5 s, with full jitter.
impl Default for Backoff {
    fn default() -> Self {
        Backoff::Exponential {
            base: Duration::from_millis(50),
            factor: 2.0,
            max: Duration::from_secs(5),
            jitter: Jitter::Full,
        }
    }
}

impl Backoff {
    pub(crate) fn check(&self, checks: &mut Checks) {
        let in_range = |d: Duration| d <= LONGEST;
        let (durations, ordered, factor) = match *self {
            Backoff::Constant(d) => (in_range(d), true, 1.0),
            Backoff::Linear { step, max } => (in_range(step) && in_range(max), true, 1.0),
            Backoff::Exponential { base, factor, max, .. } => (in_range(max), base <= max, factor),
            Backoff::Decorrelated { base, max } => (in_range(max), base <= max, 1.0),
        };
        checks.require(durations, "backoff", self, "durations from 0 to 365 days");
        checks.require(ordered, "backoff", self, "`base` at most `max`");
        checks.require(factor >= 1.0 && factor.is_finite(), "backoff", self, "a finite `factor` of at least 1");
    }

    /// The `n`-th delay, from 1. `last` is the delay before it, and `random` is asked only where something is drawn: a
    /// number in `0.0..1.0`.
    #[inline]
    pub(crate) fn delay(&self, n: u32, last: Duration, random: impl FnOnce() -> f64) -> Duration {
        match *self {
            Backoff::Constant(d) => d,
            Backoff::Linear { step, max } => step.checked_mul(n).unwrap_or(max).min(max),
            Backoff::Exponential { base, factor, max, jitter } => {
                let steps = i32::try_from(n.saturating_sub(1)).unwrap_or(i32::MAX);
                // Floats of seconds do not overflow here: infinity is above every `max`.
                let whole = seconds(base.as_secs_f64() * factor.powi(steps), max);
                match jitter {
                    Jitter::None => whole,
                    _ if whole.is_zero() => whole,
                    Jitter::Full => seconds(whole.as_secs_f64() * random(), whole),
                    Jitter::Equal => seconds(whole.as_secs_f64() * (0.5 + random() / 2.0), whole),
                }
            }
            Backoff::Decorrelated { base, max } => {
                let (from, to) = (base.as_secs_f64(), last.max(base).as_secs_f64() * 3.0);
                if to <= 0.0 { Duration::ZERO } else { seconds(from + (to - from) * random(), max) }
            }
        }
    }
}

fn seconds(s: f64, max: Duration) -> Duration {
    // Zero times infinity is no number, and means nothing to wait for.
    if s.is_nan() { Duration::ZERO } else { Duration::try_from_secs_f64(s).unwrap_or(max).min(max) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn row(backoff: Backoff, random: f64, n: u32) -> Vec<u128> {
        let mut last = Duration::ZERO;
        let mut next = |n| {
            last = backoff.delay(n, last, || random);
            last.as_millis()
        };
        (1..=n).map(&mut next).collect()
    }

    fn exponential(base: u64, max: u64, jitter: Jitter) -> Backoff {
        Backoff::Exponential { base: ms(base), factor: 2.0, max: ms(max), jitter }
    }

    /// Scenarios 51, 61 and 63, as far as they say the same.
    #[test]
    fn the_rows() {
        assert_eq!(row(exponential(1_000, 60_000, Jitter::None), 0.7, 4), [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(row(exponential(1_000, 3_000, Jitter::None), 0.7, 4), [1_000, 2_000, 3_000, 3_000]);
        assert_eq!(row(exponential(100, 100_000, Jitter::None), 0.7, 13)[10..], [100_000, 100_000, 100_000]);
        assert_eq!(row(exponential(100, 100_000, Jitter::Full), 0.5, 3), [50, 100, 200]);
        assert_eq!(row(exponential(100, 100_000, Jitter::Equal), 0.5, 3), [75, 150, 300]);
        let linear = Backoff::Linear { step: ms(1_000), max: ms(2_500) };
        assert_eq!(row(linear, 0.7, 4), [1_000, 2_000, 2_500, 2_500]);
        let decorrelated = Backoff::Decorrelated { base: ms(100), max: ms(1_000) };
        assert_eq!(row(decorrelated, 0.0, 3), [100, 100, 100]);
        assert_eq!(row(decorrelated, 0.5, 4), [200, 350, 575, 912]);
        assert_eq!(row(Backoff::Constant(Duration::ZERO), 0.5, 2), [0, 0]);
    }

    /// Scenario 57.
    #[test]
    fn no_overflow() {
        for n in [33, 34, 64, 1_100, u32::MAX] {
            assert_eq!(exponential(1_000, 9_000, Jitter::None).delay(n, ms(9_000), || 0.0), ms(9_000));
            let linear = Backoff::Linear { step: LONGEST, max: LONGEST };
            assert_eq!(linear.delay(n, ms(0), || 0.0), LONGEST);
            assert_eq!(exponential(0, 9_000, Jitter::Full).delay(n, ms(0), || 0.9), ms(0));
        }
    }

    proptest! {
        #[test]
        fn never_above_the_maximum(
            base in 0..=LONGEST.as_nanos() as u64, more in 0..=LONGEST.as_nanos() as u64, factor in 1.0..1e9f64,
            n in 1..=u32::MAX, last in any::<u64>(), random in 0.0..1.0f64,
        ) {
            let base = Duration::from_nanos(base);
            let max = (base + Duration::from_nanos(more)).min(LONGEST);
            let last = Duration::from_nanos(last);
            for jitter in [Jitter::Full, Jitter::Equal, Jitter::None] {
                let d = Backoff::Exponential { base, factor, max, jitter }.delay(n, last, || random);
                prop_assert!(d <= max);
            }
            let d = Backoff::Decorrelated { base, max }.delay(n, last, || random);
            prop_assert!(d <= max && (d >= base || base - d < Duration::from_micros(10)), "{:?} {:?}", base, d);
            let linear = Backoff::Linear { step: base, max };
            prop_assert!(linear.delay(n, last, || random) <= max);
        }
    }
}
