//! How many are in, how many may be, and whether somebody waits: one atomic word.

use crate::sync::{AtomicU64, Ordering};

/// The highest limit there is.
pub(crate) const MOST: usize = 1_000_000_000;

/// Somebody waits. The bit right above the count: with it the lower half is above every limit, so that one comparison
/// finds out whether a newcomer may pass.
const WAITING: u64 = 1 << 31;

/// The lower half counts who is in, the upper one is the limit.
///
/// One word, so that whoever comes to wait and whoever leaves can't miss each other: either the one who leaves sees the
/// flag, or the one who sets it sees the count that went down.
#[derive(Debug)]
// Written by every call of every thread: nothing that is only read may stand on its cache line.
#[repr(align(128))]
pub(crate) struct Gate(AtomicU64);

/// The word at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View(u64);

impl View {
    /// Room for one more, and nobody who was here first?
    #[inline(always)]
    pub(crate) fn lets_pass(self) -> bool {
        self.0 & 0xffff_ffff < self.0 >> 32
    }

    /// Room for one more?
    pub(crate) fn has_room(self) -> bool {
        self.in_flight() < self.limit()
    }

    #[inline(always)]
    pub(crate) fn somebody_waits(self) -> bool {
        self.0 & WAITING != 0
    }

    pub(crate) fn in_flight(self) -> usize {
        (self.0 & (WAITING - 1)) as usize
    }

    pub(crate) fn limit(self) -> usize {
        (self.0 >> 32) as usize
    }
}

impl Gate {
    pub(crate) fn new(limit: usize) -> Self {
        Gate(AtomicU64::new(upper(limit)))
    }

    #[inline(always)]
    pub(crate) fn view(&self) -> View {
        View(self.0.load(Ordering::Relaxed))
    }

    /// Goes in if there is room and nobody waits.
    #[inline(always)]
    pub(crate) fn pass(&self) -> bool {
        let mut word = self.0.load(Ordering::Relaxed);
        while View(word).lets_pass() {
            match self.0.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Goes in whatever the limit says. Gives back the word before.
    pub(crate) fn push_in(&self) -> View {
        View(self.0.fetch_add(1, Ordering::AcqRel))
    }

    /// Goes out. Gives back the word before: where somebody waits, it is on the caller to let the next one in.
    #[inline(always)]
    pub(crate) fn leave(&self) -> View {
        View(self.0.fetch_sub(1, Ordering::AcqRel))
    }

    /// From now on nobody passes. Gives back the word before.
    pub(crate) fn shut(&self) -> View {
        View(self.0.fetch_or(WAITING, Ordering::AcqRel))
    }

    /// Nobody waits any more.
    pub(crate) fn open(&self) {
        self.0.fetch_and(!WAITING, Ordering::AcqRel);
    }

    /// Gives back the word before.
    pub(crate) fn set_limit(&self, limit: usize) -> View {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let new = word & 0xffff_ffff | upper(limit);
            match self.0.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(before) => return View(before),
                Err(now) => word = now,
            }
        }
    }
}

fn upper(limit: usize) -> u64 {
    (limit.min(MOST) as u64) << 32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn passes_up_to_the_limit_and_not_past_a_waiter() {
        let gate = Gate::new(2);
        assert!(gate.pass() && gate.pass() && !gate.pass());
        assert!(!gate.shut().somebody_waits());
        assert!(gate.leave().somebody_waits());
        assert!(!gate.pass(), "somebody was here first");
        assert_eq!((gate.view().in_flight(), gate.view().has_room()), (1, true));
        gate.open();
        assert!(gate.pass());
    }

    #[test]
    fn a_limit_changes_under_what_runs() {
        let gate = Gate::new(3);
        assert!(gate.pass() && gate.pass());
        assert_eq!(gate.set_limit(1).limit(), 3);
        assert!(!gate.pass());
        gate.leave();
        assert!(!gate.pass());
        gate.leave();
        assert!(gate.pass());
        assert_eq!(gate.set_limit(usize::MAX).limit(), 1);
        assert_eq!((gate.view().limit(), gate.view().in_flight()), (MOST, 1));
    }

    #[test]
    fn pushing_in_goes_above() {
        let gate = Gate::new(1);
        assert_eq!(gate.push_in().in_flight(), 0);
        assert_eq!(gate.push_in().in_flight(), 1);
        assert_eq!((gate.view().in_flight(), gate.view().lets_pass()), (2, false));
    }
}
