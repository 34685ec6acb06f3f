//! Sends at the rate that the rule found: units that come back evenly, the units of one second at once.
//!
//! One word, the instant at which all units are there again; in nanoseconds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub(crate) struct Pacer {
    full_at: AtomicU64,
    /// Between two calls. Zero: there is no rate yet.
    interval: AtomicU64,
    /// Nothing is sent before.
    hold_until: AtomicU64,
}

const SECOND: u64 = 1_000_000_000;

impl Pacer {
    /// Is there no rate, and nothing to wait for?
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.interval.load(Relaxed) == 0 && self.hold_until.load(Relaxed) == 0
    }

    /// Calls per second; `None`: there is no rate yet.
    pub(crate) fn rate(&self) -> Option<f64> {
        let interval = self.interval.load(Relaxed);
        (interval > 0).then(|| SECOND as f64 / interval as f64)
    }

    /// Another rate. The first begins with nothing there: what made it was too much.
    pub(crate) fn set_rate(&self, rate: f64, now: u64) {
        let interval = ((SECOND as f64 / rate) as u64).max(1);
        if self.interval.swap(interval, Relaxed) == 0 {
            self.full_at.store(now + depth(interval), Relaxed);
        }
    }

    /// Nothing is sent before that.
    pub(crate) fn hold(&self, until: u64) {
        self.hold_until.fetch_max(until, Relaxed);
    }

    /// From when on a call may be made. Takes nothing.
    pub(crate) fn peek(&self, now: u64) -> u64 {
        self.turn(self.full_at.load(Relaxed), now).1
    }

    /// When a call may be made, that instant and its unit taken; or when it could be, if that is after `latest`.
    pub(crate) fn take(&self, now: u64, latest: u64) -> Result<u64, u64> {
        let mut full_at = self.full_at.load(Relaxed);
        loop {
            let (next, turn) = self.turn(full_at, now);
            if turn > latest.max(now) {
                return Err(turn);
            }
            match self.full_at.compare_exchange(full_at, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(turn),
                Err(other) => full_at = other,
            }
        }
    }

    /// A call that was not made after all.
    pub(crate) fn give_back(&self) {
        let interval = self.interval.load(Relaxed);
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| Some(full_at.saturating_sub(interval)));
    }

    fn turn(&self, full_at: u64, now: u64) -> (u64, u64) {
        let interval = self.interval.load(Relaxed);
        // Units do not pile up while it holds.
        let from = now.max(self.hold_until.load(Relaxed));
        let next = full_at.max(from) + interval;
        (next, from.max(next.saturating_sub(depth(interval))))
    }
}

/// How long it takes until all units are there: those of a second, or the one there is.
fn depth(interval: u64) -> u64 {
    if interval == 0 { 0 } else { interval.max(SECOND) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rate_begins_with_nothing() {
        let pacer = Pacer::default();
        assert!(pacer.is_free());
        assert_eq!((pacer.take(5, 5), pacer.rate()), (Ok(5), None));
        pacer.set_rate(10.0, 1_000);
        assert_eq!(pacer.rate(), Some(10.0));
        assert_eq!(pacer.take(1_000, 1_000), Err(1_000 + SECOND / 10));
        assert_eq!(pacer.take(1_000, u64::MAX), Ok(1_000 + SECOND / 10));
        assert_eq!(pacer.peek(1_000), 1_000 + SECOND / 5);
        pacer.give_back();
        assert_eq!(pacer.peek(1_000), 1_000 + SECOND / 10);
        // A second later ten are there, and after an hour no more.
        for now in [1_000 + SECOND, 3_600 * SECOND] {
            let taken = (0..100).take_while(|_| pacer.take(now, now).is_ok()).count();
            assert_eq!(taken, 10);
        }
    }

    #[test]
    fn one_in_two_seconds() {
        let pacer = Pacer::default();
        pacer.set_rate(0.5, 0);
        assert_eq!(pacer.take(0, u64::MAX), Ok(2 * SECOND));
        assert_eq!(pacer.take(10 * SECOND, 0), Ok(10 * SECOND));
        assert_eq!(pacer.take(10 * SECOND, 0), Err(12 * SECOND));
    }

    #[test]
    fn holds() {
        let pacer = Pacer::default();
        pacer.hold(7 * SECOND);
        pacer.hold(5 * SECOND);
        assert!(!pacer.is_free());
        assert_eq!(pacer.take(SECOND, SECOND), Err(7 * SECOND));
        assert_eq!(pacer.take(7 * SECOND, 0), Ok(7 * SECOND));
        pacer.set_rate(1.0, 0);
        pacer.hold(9 * SECOND);
        assert_eq!(pacer.take(8 * SECOND, u64::MAX), Ok(9 * SECOND));
        assert_eq!(pacer.take(8 * SECOND, u64::MAX), Ok(10 * SECOND));
    }
}
