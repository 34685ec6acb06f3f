//! The numbers a machine decides by, each readable without a lock.

use crate::{
    circuit_breaker::{CircuitBreakerConfig, Window},
    sync::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::nanos,
    window::Sums,
};

/// Shares are stored in billionths.
const WHOLE: u64 = 1_000_000_000;
/// Where a share, a count or a time is not asked for.
const NONE: u64 = u64::MAX;

/// The numbers of a [`CircuitBreakerConfig`], parsed. Each changes by itself: a call that runs during an update may see
/// some old ones and some new ones, all of them valid.
#[derive(Debug)]
pub(crate) struct Limits {
    failure_rate: AtomicU64,
    slow_call_rate: AtomicU64,
    slow_call: AtomicU64,
    consecutive: AtomicU64,
    minimum: AtomicU64,
    pub(crate) throttled_is_failure: AtomicBool,
    pub(crate) obey_retry_after: AtomicBool,
    pub(crate) probes: AtomicU32,
    pub(crate) successes_to_close: AtomicU32,
    pub(crate) probe_lease: AtomicU64,
    pub(crate) ramp: AtomicU64,
}

impl Limits {
    pub(crate) fn new(config: &CircuitBreakerConfig) -> Self {
        let limits = Limits {
            failure_rate: AtomicU64::new(NONE),
            slow_call_rate: AtomicU64::new(NONE),
            slow_call: AtomicU64::new(NONE),
            consecutive: AtomicU64::new(NONE),
            minimum: AtomicU64::new(1),
            throttled_is_failure: AtomicBool::new(false),
            obey_retry_after: AtomicBool::new(false),
            probes: AtomicU32::new(1),
            successes_to_close: AtomicU32::new(1),
            probe_lease: AtomicU64::new(1),
            ramp: AtomicU64::new(0),
        };
        limits.store(config);
        limits
    }

    pub(crate) fn store(&self, c: &CircuitBreakerConfig) {
        // Rounded down, so that two of three is two thirds however the caller has rounded.
        let share = |rate: Option<f64>| rate.map_or(NONE, |r| (r * WHOLE as f64) as u64);
        self.failure_rate.store(share(c.failure_rate), Relaxed);
        self.slow_call_rate.store(share(c.slow_call_rate), Relaxed);
        self.slow_call.store(c.slow_call_rate.map_or(NONE, |_| nanos(c.slow_call)), Relaxed);
        self.consecutive.store(c.consecutive_failures.map_or(NONE, u64::from), Relaxed);
        self.minimum.store(u64::from(c.minimum_calls), Relaxed);
        self.throttled_is_failure.store(c.throttled_is_failure, Relaxed);
        self.obey_retry_after.store(c.obey_retry_after, Relaxed);
        self.probes.store(c.probes, Relaxed);
        self.successes_to_close.store(c.successes_to_close, Relaxed);
        self.probe_lease.store(nanos(c.probe_lease), Relaxed);
        self.ramp.store(c.ramp.map_or(0, nanos), Relaxed);
    }

    #[inline]
    pub(crate) fn minimum(&self) -> u64 {
        self.minimum.load(Relaxed)
    }

    /// Nanoseconds above which a call is slow; `None` where nobody asks.
    #[inline]
    pub(crate) fn slow_call(&self) -> Option<u64> {
        Some(self.slow_call.load(Relaxed)).filter(|t| *t != NONE)
    }

    #[cfg(feature = "http")]
    pub(crate) fn asks_for_runs(&self) -> bool {
        self.consecutive.load(Relaxed) != NONE
    }

    /// Do these figures trip?
    #[inline(never)]
    pub(crate) fn rate_trips(&self, sums: Sums) -> bool {
        sums.calls >= self.minimum()
            && (crosses(self.failure_rate.load(Relaxed), sums.failures, sums.calls)
                || crosses(self.slow_call_rate.load(Relaxed), sums.slow, sums.calls))
    }

    #[inline]
    pub(crate) fn consecutive_trips(&self, failures: u32) -> bool {
        u64::from(failures) >= self.consecutive.load(Relaxed)
    }
}

/// A threshold of zero is crossed by the first such call, not by the want of any.
#[inline]
fn crosses(threshold: u64, part: u64, calls: u64) -> bool {
    threshold != NONE && part > 0 && u128::from(part) * u128::from(WHOLE) >= u128::from(threshold) * u128::from(calls)
}

/// Which window, as the machine takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The last so many calls.
    Count(u32),
    /// Ticks of so many nanoseconds.
    Time(u64),
}

impl From<Window> for Layout {
    fn from(window: Window) -> Self {
        match window {
            Window::Count(n) => Layout::Count(n),
            Window::Time(t) => Layout::Time(crate::window::time::tick_length(t)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_met_by_their_own_share() {
        let share = |r: f64| (r * WHOLE as f64) as u64;
        for (rate, part, calls, trips) in [
            (0.1, 1, 10, true),
            (0.1, 1, 11, false),
            (2.0 / 3.0, 2, 3, true),
            (1.0 / 3.0, 1, 3, true),
            (0.7, 7, 10, true),
            (1.0, 10, 10, true),
            (1.0, 9, 10, false),
            (0.0, 0, 10, false),
            (0.0, 1, 1_000_000, true),
        ] {
            assert_eq!(crosses(share(rate), part, calls), trips, "{part} of {calls} at {rate}");
        }
        assert!(!crosses(NONE, 10, 10));
    }
}
