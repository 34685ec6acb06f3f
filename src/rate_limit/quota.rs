//! How much, per how long, and how much at once.

use std::time::Duration;

use crate::{
    config::{Checks, ConfigError},
    rate_limit::gcra::Meter,
    time,
};

/// So many units per so long, and how many of them at once.
///
/// Units come back one after another, evenly, and not all at the end of a period: with ten a second one every 100 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub(crate) units: u32,
    pub(crate) per: Duration,
    pub(crate) burst: u32,
}

impl Quota {
    /// `n` units a second, all of them at once if nothing was used. `n` from 1.
    pub fn per_second(n: u32) -> Self {
        Quota::per(n, Duration::from_secs(1))
    }

    /// `n` units per `t`, all of them at once if nothing was used. `n` from 1; `t` from 1 ns to 365 days; at most five
    /// units a nanosecond.
    pub fn per(n: u32, t: Duration) -> Self {
        Quota { units: n, per: t, burst: n }
    }

    /// At most `b` units at once, from 1. More than the quota gives per period is allowed: it takes longer to come
    /// back, but no longer than 7 years.
    #[must_use]
    pub fn burst(self, b: u32) -> Self {
        Quota { burst: b, ..self }
    }

    /// As [`check`](Self::check), for one that comes with every call.
    #[cfg_attr(not(feature = "http"), allow(dead_code, reason = "quotas of keys are for HTTP"))]
    pub(crate) fn is_valid(&self) -> bool {
        self.units > 0 && self.burst > 0 && !self.per.is_zero() && self.per <= time::LONGEST && Meter::has(self)
    }

    /// Notes what is wrong with it; if nothing is, how its time runs.
    pub(crate) fn check(&self, checks: &mut Checks) -> Option<Meter> {
        checks.require(self.units > 0, "quota", self, "at least 1 unit");
        checks.require(self.burst > 0, "quota", self, "a burst of at least 1");
        let ok = !self.per.is_zero() && self.per <= time::LONGEST;
        checks.require(ok, "quota", self, "a period from 1ns to 365 days");
        let expected = "at most 5 units a nanosecond, and a burst that is there again within 7 years";
        let meter = Meter::new(*self);
        checks.require(meter.is_some(), "quota", self, expected);
        meter.filter(|_| ok)
    }

    pub(crate) fn checked(&self) -> Result<Meter, ConfigError> {
        let mut checks = Checks::default();
        self.check(&mut checks).ok_or_else(|| checks.into_error())
    }
}
