//! The budget of gRPC's retry throttling (gRFC A6): failures take, successes give a little, and only the upper half is
//! for retries.

use crate::sync::{AtomicU64, Ordering};

/// What a token counts.
pub(crate) const THOUSAND: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct Tokens {
    /// In thousandths, all three.
    left: AtomicU64,
    most: u64,
    ratio: u64,
}

impl Tokens {
    pub(crate) fn new(most: u32, ratio: u64) -> Self {
        let most = u64::from(most) * THOUSAND;
        Tokens { left: AtomicU64::new(most), most, ratio }
    }

    /// A success. Nothing is written while all are there.
    #[inline]
    pub(crate) fn succeeded(&self) {
        if self.left.load(Ordering::Relaxed) < self.most {
            self.change(|left| (left + self.ratio).min(self.most));
        }
    }

    /// A failed attempt. May it be retried?
    pub(crate) fn failed(&self) -> bool {
        self.change(|left| left.saturating_sub(THOUSAND)) > self.most / 2
    }

    /// Are there enough for a further attempt?
    pub(crate) fn are_enough(&self) -> bool {
        self.left() > self.most / 2
    }

    /// As [`failed`](Self::failed), but nothing is taken where the answer is no: then the failure is for somebody else
    /// to count.
    pub(crate) fn failed_if_enough(&self) -> bool {
        let mut seen = self.left();
        loop {
            let new = seen.saturating_sub(THOUSAND);
            if new <= self.most / 2 {
                return false;
            }
            match self.left.compare_exchange_weak(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    fn change(&self, to: impl Fn(u64) -> u64) -> u64 {
        let mut seen = self.left.load(Ordering::Relaxed);
        loop {
            let new = to(seen);
            match self.left.compare_exchange_weak(seen, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return new,
                Err(now) => seen = now,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Scenario 69.
    #[test]
    fn the_upper_half_is_for_retries() {
        let tokens = Tokens::new(10, 100);
        let retried: Vec<_> = (0..5).map(|_| tokens.failed()).collect();
        assert_eq!((retried, tokens.left()), (vec![true, true, true, true, false], 5_000));
        tokens.succeeded();
        assert_eq!(tokens.left(), 5_100);
        // 5.1 is above the half: a retry could be made. The next failure takes it below.
        assert!(!tokens.failed());
        for _ in 0..100 {
            tokens.failed();
        }
        assert_eq!(tokens.left(), 0);
        for _ in 0..1_000 {
            tokens.succeeded();
        }
        assert_eq!(tokens.left(), 10_000);
        assert!(tokens.failed());
    }
}
