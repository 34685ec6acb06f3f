//! How long an attempt is waited for.
//!
//! Not with hdrhistogram, which wants `&mut self` for a record and a merge for each look at several slots: the crate's
//! own histogram records without a lock, forgets by itself, and is at most 3.2 % too high.

use std::{
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::Duration,
};

use crate::{
    config::Checks,
    hedge::HedgeConfig,
    time::{self, Clock, Instant},
    window::latency::Latencies,
};

/// Attempts are measured over so long.
const WINDOW: Duration = Duration::from_secs(30);
/// A timer is no finer, and an attempt that is sent sooner mostly finds the first one answered.
const LEAST: Duration = Duration::from_millis(1);
/// A quantile is good for so long: working it out takes some thousand loads.
const GOOD_FOR: u64 = 100_000_000;

#[derive(Debug)]
pub(crate) enum Delay {
    /// In nanoseconds.
    Fixed(AtomicU64),
    Measured(Box<Measured>),
}

/// A quantile of what first attempts took.
#[derive(Debug)]
pub(crate) struct Measured {
    /// The bits of a float.
    q: AtomicU64,
    least: AtomicU32,
    clock: Clock,
    latencies: Latencies,
    /// The last answer in nanoseconds, and until when it is good. Whichever of two answers a thread sees, it was right
    /// just now.
    answer: AtomicU64,
    until: AtomicU64,
}

impl Delay {
    pub(crate) fn new(config: &HedgeConfig) -> Self {
        let delay = match config.quantile {
            None => Delay::Fixed(AtomicU64::new(0)),
            Some(_) => Delay::Measured(Box::new(Measured {
                q: AtomicU64::new(0),
                least: AtomicU32::new(0),
                clock: Clock::new(),
                latencies: Latencies::new(WINDOW),
                answer: AtomicU64::new(0),
                until: AtomicU64::new(0),
            })),
        };
        delay.store(config);
        delay
    }

    /// Is it for this one? A delay that is measured stays so.
    pub(crate) fn check(&self, config: &HedgeConfig, checks: &mut Checks) {
        match self {
            Delay::Fixed(_) => {
                checks.require(
                    config.quantile.is_none(),
                    "quantile",
                    config.quantile,
                    "none: it was built with `after`",
                );
            }
            Delay::Measured(_) => {
                checks.require(config.after.is_none(), "after", config.after, "none: it was built with `quantile`");
            }
        }
    }

    pub(crate) fn store(&self, config: &HedgeConfig) {
        match self {
            Delay::Fixed(delay) => delay.store(time::nanos(config.after.unwrap_or_default()), Relaxed),
            Delay::Measured(measured) => {
                measured.q.store(config.quantile.unwrap_or_default().to_bits(), Relaxed);
                measured.least.store(config.minimum_samples, Relaxed);
                // The last answer was to another question.
                measured.until.store(0, Release);
            }
        }
    }

    pub(crate) fn after(&self) -> Option<Duration> {
        match self {
            Delay::Fixed(delay) => Some(Duration::from_nanos(delay.load(Relaxed))),
            Delay::Measured(_) => None,
        }
    }

    pub(crate) fn quantile(&self) -> Option<f64> {
        match self {
            Delay::Fixed(_) => None,
            Delay::Measured(measured) => Some(f64::from_bits(measured.q.load(Relaxed))),
        }
    }

    /// `None`: nobody knows yet.
    pub(crate) fn current(&self, now: Instant) -> Option<Duration> {
        match self {
            Delay::Fixed(_) => self.after(),
            Delay::Measured(measured) => measured.delay(measured.clock.at(now)),
        }
    }

    /// A first attempt took so long.
    pub(crate) fn record(&self, now: Instant, took: Duration) {
        if let Delay::Measured(measured) = self {
            measured.latencies.record(measured.clock.at(now), took);
        }
    }

    pub(crate) fn is_measured(&self) -> bool {
        matches!(self, Delay::Measured(_))
    }
}

impl Measured {
    fn delay(&self, now: u64) -> Option<Duration> {
        // Always asked anew, for it changes with every call when there are few.
        let least = self.least.load(Relaxed).into();
        if self.latencies.samples(now) < least {
            return None;
        }
        if now < self.until.load(Acquire) {
            return Some(Duration::from_nanos(self.answer.load(Relaxed)));
        }
        let q = f64::from_bits(self.q.load(Relaxed));
        let delay = self.latencies.quantile(now, q, least)?.max(LEAST);
        self.answer.store(time::nanos(delay), Relaxed);
        self.until.store(now.saturating_add(GOOD_FOR), Release);
        Some(delay)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn measured(q: f64, least: u32) -> Box<Measured> {
        let config = HedgeConfig { quantile: Some(q), minimum_samples: least, ..HedgeConfig::default() };
        match Delay::new(&config) {
            Delay::Measured(measured) => measured,
            Delay::Fixed(_) => unreachable!(),
        }
    }

    /// Within what a bucket is wide.
    fn about(delay: Option<Duration>, ms: u64) -> bool {
        let (delay, ms) = (delay.expect("nobody knows"), Duration::from_millis(ms));
        delay >= ms && delay <= ms.mul_f64(1.04)
    }

    /// Scenario 99: not before it knows.
    #[test]
    fn with_too_few_samples_nobody_knows() {
        let delay = measured(0.95, 20);
        for n in 0..20 {
            assert_eq!(delay.delay(n * MS), None, "{n}");
            delay.latencies.record(n * MS, Duration::from_millis(5));
        }
        assert!(about(delay.delay(20 * MS), 5));
        // What is old is forgotten, and then nobody knows again.
        assert_eq!(delay.delay(60_000 * MS), None);
    }

    /// Scenario 97.
    #[test]
    fn never_below_a_millisecond() {
        let delay = measured(0.5, 1);
        delay.latencies.record(0, Duration::from_micros(20));
        assert_eq!(delay.delay(0), Some(LEAST));
    }

    #[test]
    fn it_follows_within_a_tenth_of_a_second() {
        let delay = measured(0.5, 1);
        delay.latencies.record(0, Duration::from_millis(5));
        assert!(about(delay.delay(0), 5));
        (0..10).for_each(|_| delay.latencies.record(0, Duration::from_millis(50)));
        assert!(about(delay.delay(99 * MS), 5));
        assert!(about(delay.delay(100 * MS), 50));
    }
}
