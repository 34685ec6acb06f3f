//! The generic cell rate algorithm, on integers and without rounding that adds up.
//!
//! A quota is one number: the tick at which all of it will be there again. What was used is that tick less the present
//! one; taking units moves it on; it stands still while time catches up. (ITU-T I.371, "virtual scheduling".)
//!
//! Ticks are not nanoseconds, because the time that brings a unit back need not be a whole number of those: three a
//! second would drift. They are a fraction of a nanosecond such that a unit is a whole number of them. Where none such
//! is coarse enough to last for 14 years of running, the present is rounded down to the next tick: then a unit is early
//! by less than one tick, which is below 2^-20 of a unit up to 4,000 units a second, and this never adds up.

use crate::rate_limit::Quota;

/// How the time of a quota runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meter {
    /// Ticks per nanosecond, as a fraction.
    pub(crate) mul: u64,
    pub(crate) div: u64,
    /// Ticks that bring one unit back.
    pub(crate) unit: u64,
    /// Ticks that bring all of them back.
    pub(crate) burst: u64,
}

/// Ticks per nanosecond, at most: with [`LAST`] they last for 14 years.
const FASTEST: u64 = 5;
/// The last tick there is. Debt stops there.
pub(crate) const LAST: u64 = (1 << 61) - 1;
/// The longest a whole quota may take to come back, in ticks.
const LONGEST: u64 = 1 << 60;

impl Meter {
    /// `None` for a quota that is none, or out of range.
    pub(crate) fn new(quota: Quota) -> Option<Meter> {
        let per = u64::try_from(quota.per.as_nanos()).ok()?;
        let (units, burst) = (u64::from(quota.units), u64::from(quota.burst));
        if units == 0 || burst == 0 || per == 0 {
            return None;
        }
        let common = gcd(units, per);
        let (units, per) = (units / common, per / common);
        // The whole quota in nanoseconds, as it has to be in any ticks that are at least as fine.
        if u128::from(burst) * u128::from(per) > u128::from(units) * u128::from(LONGEST / FASTEST) {
            return None;
        }
        if units <= FASTEST && burst.checked_mul(per).is_some_and(|whole| whole <= LONGEST) {
            return Some(Meter { mul: units, div: 1, unit: per, burst: burst * per });
        }
        // The finest power of two that is coarse enough.
        let fits = |unit: u64| {
            u128::from(units) * u128::from(unit) <= u128::from(FASTEST) * u128::from(per)
                && u128::from(burst) * u128::from(unit) <= u128::from(LONGEST)
        };
        let unit = (0..60).rev().map(|bits| 1 << bits).find(|unit| fits(*unit))?;
        Some(Meter { mul: units * unit, div: per, unit, burst: burst * unit })
    }

    /// Is there one for this quota? Asked for every call that has a quota of its own.
    #[cfg_attr(not(feature = "http"), allow(dead_code, reason = "quotas of keys are for HTTP"))]
    pub(crate) fn has(quota: &Quota) -> bool {
        let (per, units) = (quota.per.as_nanos(), u128::from(quota.units));
        let Some(whole) = per.checked_mul(quota.burst.into()) else { return false };
        whole <= units * u128::from(LONGEST / FASTEST) && units <= per.saturating_mul(FASTEST.into())
    }

    /// The tick at this instant, in nanoseconds.
    #[inline(always)]
    pub(crate) fn at(&self, now: u64) -> u64 {
        if self.div == 1 { now.wrapping_mul(self.mul) } else { by_fraction(now, self.mul, self.div) }
    }

    /// The first nanosecond at which it is this tick.
    #[inline]
    pub(crate) fn instant(&self, tick: u64) -> u64 {
        // Ticks are nanoseconds for every quota whose units come back after a whole number of those.
        if self.mul == 1 && self.div == 1 { tick } else { self.instant_by_fraction(tick) }
    }

    #[inline(never)]
    fn instant_by_fraction(&self, tick: u64) -> u64 {
        let nanos = (u128::from(tick) * u128::from(self.div)).div_ceil(u128::from(self.mul));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// So many units, in ticks.
    #[inline(always)]
    pub(crate) fn ticks(&self, units: u32) -> u64 {
        self.unit.saturating_mul(u64::from(units))
    }

    /// When all will be there again, if `cost` is taken now; or from when on it could be taken.
    #[inline(always)]
    pub(crate) fn take(&self, full_at: u64, now: u64, cost: u64) -> Result<u64, u64> {
        // None of these is above `LAST` but the cost.
        let next = full_at.max(now).saturating_add(cost);
        if next <= now + self.burst { Ok(next) } else { Err(next - self.burst) }
    }

    /// From when on there is a unit again, in nanoseconds.
    #[cold]
    pub(crate) fn next_unit(&self, full_at: u64) -> u64 {
        self.instant((full_at + self.unit).saturating_sub(self.burst))
    }

    /// Whole units that are left.
    pub(crate) fn left(&self, full_at: u64, now: u64) -> u64 {
        now.saturating_add(self.burst).saturating_sub(full_at.max(now)) / self.unit
    }

    /// A tick of this meter as one of another: what is still to come back is as many units.
    pub(crate) fn carry(&self, tick: u64, now: u64, to: &Meter) -> u64 {
        let used = tick.saturating_sub(self.at(now));
        let used = (u128::from(used) * u128::from(to.unit)).div_ceil(u128::from(self.unit));
        to.at(now).saturating_add(u64::try_from(used).unwrap_or(LAST)).min(LAST)
    }
}

/// What was left when an answer was given. Worked out by whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    full_at: u64,
    now: u64,
    meter: Meter,
}

impl Left {
    #[inline(always)]
    pub(crate) fn new(full_at: u64, now: u64, meter: &Meter) -> Self {
        Left { full_at, now, meter: *meter }
    }

    /// Whole units.
    pub(crate) fn units(&self) -> u64 {
        self.meter.left(self.full_at, self.meter.at(self.now))
    }

    /// From when on there is a unit again, if there is none; in nanoseconds.
    pub(crate) fn nothing_until(&self) -> Option<u64> {
        (self.units() == 0).then(|| self.meter.next_unit(self.full_at))
    }

    /// Nanoseconds until all are there again.
    pub(crate) fn reset(&self) -> u64 {
        self.meter.instant(self.full_at).saturating_sub(self.now)
    }
}

// By value: a meter that somebody points at can't stay in registers.
#[inline(never)]
fn by_fraction(now: u64, mul: u64, div: u64) -> u64 {
    (u128::from(now) * u128::from(mul) / u128::from(div)).min(u128::from(LAST)) as u64
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn meter(quota: Quota) -> Meter {
        Meter::new(quota).unwrap()
    }

    #[test]
    fn three_a_second_do_not_drift() {
        for units in [1, 3, 7, 10, 997, 4_000, 1_000_003, u32::MAX] {
            let m = meter(Quota::per_second(units));
            let mut full_at = 0;
            // Emptied each second: all are there again on the dot, for a year.
            for second in [0, 1, 2, 3, 1_000, 31_536_000] {
                let now = m.at(second * SECOND);
                assert_eq!(m.left(full_at, now), u64::from(units), "{units} at {second}");
                full_at = m.take(full_at, now, m.ticks(units)).unwrap();
                assert_eq!(m.left(full_at, now), 0);
                assert!(m.take(full_at, now, m.unit).is_err());
                assert!(m.instant(full_at) <= (second + 1) * SECOND);
            }
        }
    }

    #[test]
    fn ranges() {
        let year = Duration::from_secs(365 * 24 * 3600);
        for good in [
            Quota::per(1, year),
            Quota::per(1, year).burst(7),
            Quota::per(u32::MAX, year),
            Quota::per(1, Duration::from_nanos(1)),
            Quota::per_second(u32::MAX),
            Quota::per_second(1).burst(100_000_000),
        ] {
            let m = meter(good);
            assert!(m.at(14 * year.as_nanos() as u64) <= LAST, "{good:?}");
            assert!(m.burst <= LONGEST);
        }
        for bad in [
            Quota::per_second(0),
            Quota::per_second(1).burst(0),
            Quota::per(1, Duration::ZERO),
            Quota::per(1, Duration::MAX),
            Quota::per(1, year).burst(8),
            Quota::per(6, Duration::from_nanos(1)),
        ] {
            assert_eq!(Meter::new(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn debt_has_an_end() {
        let m = meter(Quota::per(1, Duration::from_secs(3600)));
        assert_eq!(m.carry(LAST, 0, &meter(Quota::per(1, Duration::from_secs(36_000)))), LAST);
    }

    fn quotas() -> impl Strategy<Value = Quota> {
        let per = prop_oneof![Just(SECOND), Just(60 * SECOND), 1_000_u64..10_000_000_000];
        let units = prop_oneof![1_u32..20, 1_u32..100_000];
        (units, per, 1_u32..200).prop_map(|(n, per, burst)| Quota::per(n, Duration::from_nanos(per)).burst(burst))
    }

    proptest! {
        /// The law, in rational numbers: in any window no more than the burst and what came back meanwhile, to one
        /// tick.
        #[test]
        fn never_more_than_burst_and_rate(
            quota in quotas(),
            steps in prop::collection::vec((0_u64..3_000_000_000, 1_u32..5), 1..200),
        ) {
            let m = meter(quota);
            let (mut now, mut full_at) = (1_234_567_891, 0);
            let mut taken: Vec<(u64, u32)> = Vec::new();
            for (step, cost) in steps {
                now += step / 7;
                let tick = m.at(now);
                if let Ok(next) = m.take(full_at, tick, m.ticks(cost)) {
                    full_at = next;
                    taken.push((now, cost));
                } else if cost <= quota.burst {
                    // And no less: what does not fit now does at the instant it was told.
                    let at = m.instant(m.take(full_at, tick, m.ticks(cost)).unwrap_err());
                    prop_assert!(m.take(full_at, m.at(at), m.ticks(cost)).is_ok());
                    prop_assert!(m.take(full_at, m.at(at - 1), m.ticks(cost)).is_err());
                }
            }
            let per = u128::from(quota.per.as_nanos() as u64);
            for i in 0..taken.len() {
                let mut sum = 0;
                for (at, cost) in &taken[i..] {
                    sum += u128::from(*cost);
                    // In units times the period times the ticks of a unit.
                    let rate = u128::from(at - taken[i].0) * u128::from(quota.units);
                    let bound = (u128::from(quota.burst) * per + rate) * u128::from(m.unit) + per;
                    prop_assert!(sum * per * u128::from(m.unit) <= bound, "{sum} in {}", at - taken[i].0);
                }
            }
        }

        #[test]
        fn has_says_the_same_as_new(
            units in prop_oneof![1_u32..20, 1..=u32::MAX],
            per in prop_oneof![1_u64..20, 1..=crate::time::LONGEST.as_nanos() as u64],
            burst in prop_oneof![1_u32..20, 1..=u32::MAX],
        ) {
            let quota = Quota::per(units, Duration::from_nanos(per)).burst(burst);
            prop_assert_eq!(Meter::has(&quota), Meter::new(quota).is_some(), "{:?}", quota);
        }

        #[test]
        fn what_was_used_stays_used(a in quotas(), b in quotas(), used in 0_u32..100, at in 0_u64..100_000_000_000_000) {
            let (a, b) = (meter(a), meter(b));
            let full_at = a.at(at) + a.ticks(used);
            let carried = a.carry(full_at, at, &b);
            prop_assert_eq!(carried - b.at(at), b.ticks(used));
        }
    }
}
