//! The slots of a half-open breaker: who may try, and until when.
//!
//! A slot is a lease. It holds the instant at which it ends; zero is free. A probe gives its slot back by swapping
//! exactly the word it was given, so one that comes back late, after its slot went to somebody else, changes nothing.

use std::{num::NonZeroU64, sync::OnceLock};

use crate::sync::{AtomicU64, Ordering::SeqCst};

/// The most probes that can run at once.
pub(crate) const MOST: u32 = if cfg!(loom) { 4 } else { 64 };

/// The lowest bit of a lease: the head of the response was there, and was good.
const GOOD_HEAD: u64 = 1;
const SHORTEST: NonZeroU64 = NonZeroU64::new(2).unwrap();

#[derive(Debug)]
pub(crate) struct Probes {
    // Elsewhere, for there may be many breakers, and few that are not closed.
    slots: OnceLock<Box<Slots>>,
}

type Slots = [AtomicU64; MOST as usize];

/// A slot that was given to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: u32,
    /// Never zero, so that a call without a slot takes no more room.
    pub(crate) lease: NonZeroU64,
}

/// What became of a slot that was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Returned {
    /// In time: the verdict counts.
    InTime,
    /// The lease had ended, but not before a good head had come: that is the verdict.
    GoodHead,
    /// Too late: given up. The verdict does not count.
    Late,
}

/// Can a slot be had?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    Got(Slot),
    /// None is free, but this one's lease has ended with a good head: it has to be counted before its slot is used.
    GoodHead,
    Full,
}

impl Probes {
    pub(crate) fn new() -> Self {
        let probes = Probes::later();
        probes.all();
        probes
    }

    /// Makes its slots when the first is claimed.
    pub(crate) fn later() -> Self {
        Probes { slots: OnceLock::new() }
    }

    fn all(&self) -> &Slots {
        self.slots.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))))
    }

    /// Those that may not be free.
    fn known(&self) -> &[AtomicU64] {
        self.slots.get().map_or(&[], |slots| &**slots)
    }

    /// Takes one of `limit` slots until `lease_end`: a free one, or one whose lease has ended.
    pub(crate) fn claim(&self, limit: u32, now: u64, lease_end: u64) -> Claim {
        // The lowest bit is spoken for; two nanoseconds are near enough.
        let lease = NonZeroU64::new(lease_end & !GOOD_HEAD).unwrap_or(SHORTEST);
        for (number, slot) in (0..self.within(limit, now)).zip(self.all()) {
            let mut seen = slot.load(SeqCst);
            while seen == 0 || is_over(seen, now) {
                let good_head = seen & GOOD_HEAD != 0;
                let new = if good_head { 0 } else { lease.get() };
                match slot.compare_exchange(seen, new, SeqCst, SeqCst) {
                    Ok(_) if good_head => return Claim::GoodHead,
                    Ok(_) => return Claim::Got(Slot { number, lease }),
                    Err(now) => seen = now,
                }
            }
        }
        Claim::Full
    }

    /// Notes that the head of this probe's response is good, if it came before its lease was over. That goes on.
    pub(crate) fn good_head(&self, slot: Slot, now: u64) {
        if is_over(slot.lease.get(), now) {
            return;
        }
        let word = self.word(slot);
        let _ = word.compare_exchange(slot.lease.get(), slot.lease.get() | GOOD_HEAD, SeqCst, SeqCst);
    }

    /// Gives a slot back. `None`: it had been given to somebody else, or all were cleared.
    pub(crate) fn give_back(&self, slot: Slot, now: u64) -> Option<Returned> {
        let word = self.word(slot);
        for lease in [slot.lease.get(), slot.lease.get() | GOOD_HEAD] {
            if word.compare_exchange(lease, 0, SeqCst, SeqCst).is_ok() {
                return Some(match (is_over(lease, now), lease & GOOD_HEAD != 0) {
                    (false, _) => Returned::InTime,
                    (true, true) => Returned::GoodHead,
                    (true, false) => Returned::Late,
                });
            }
        }
        None
    }

    pub(crate) fn clear(&self) {
        for slot in self.known() {
            slot.store(0, SeqCst);
        }
    }

    /// Probes that are out and whose lease runs.
    pub(crate) fn out(&self, now: u64) -> u32 {
        self.running(now).filter(|running| *running).count() as u32
    }

    /// Is no slot to be had?
    pub(crate) fn are_out(&self, limit: u32, now: u64) -> bool {
        let within = self.within(limit, now);
        self.running(now).take(within as usize).filter(|running| *running).count() >= within as usize
    }

    /// Of so many slots, the first ones, each may be given away. Where the limit was higher others may be out still,
    /// and then there are fewer.
    fn within(&self, limit: u32, now: u64) -> u32 {
        let limit = limit.min(MOST);
        let mut beyond = self.running(now).skip(limit as usize).filter(|running| *running).count();
        let mut within = limit as usize;
        while beyond > 0 && within > 0 && within + beyond > limit as usize {
            within -= 1;
            beyond += usize::from(self.running(now).nth(within).unwrap_or(false));
        }
        within as u32
    }

    /// Of each slot that may not be free: is it, with a lease that runs?
    fn running(&self, now: u64) -> impl Iterator<Item = bool> {
        self.known().iter().map(move |slot| {
            let seen = slot.load(SeqCst);
            seen != 0 && !is_over(seen, now)
        })
    }

    fn word(&self, slot: Slot) -> &AtomicU64 {
        &self.all()[slot.number as usize]
    }
}

/// A lease ends strictly after its last instant.
fn is_over(lease: u64, now: u64) -> bool {
    now > lease | GOOD_HEAD
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn got(claim: Claim) -> Slot {
        let Claim::Got(slot) = claim else { panic!("{claim:?}") };
        slot
    }

    #[test]
    fn as_many_as_the_limit() {
        let probes = Probes::new();
        let first = got(probes.claim(2, 0, 100));
        got(probes.claim(2, 0, 100));
        assert_eq!((probes.claim(2, 0, 100), probes.out(0)), (Claim::Full, 2));
        assert_eq!(probes.give_back(first, 5), Some(Returned::InTime));
        assert_eq!(probes.give_back(first, 5), None);
        got(probes.claim(2, 5, 105));
    }

    #[test]
    fn a_lease_ends_and_its_late_probe_changes_nothing() {
        let probes = Probes::new();
        let hung = got(probes.claim(1, 0, 100));
        assert_eq!(probes.claim(1, 100, 200), Claim::Full);
        let next = got(probes.claim(1, 102, 200));
        assert_eq!(probes.give_back(hung, 103), None);
        assert_eq!(probes.out(103), 1);
        assert_eq!(probes.give_back(next, 103), Some(Returned::InTime));
    }

    #[test]
    fn late_without_a_rival() {
        let probes = Probes::new();
        let slot = got(probes.claim(1, 0, 100));
        assert_eq!(probes.out(102), 0);
        assert_eq!(probes.give_back(slot, 102), Some(Returned::Late));
    }

    #[test]
    fn a_good_head_is_the_verdict_of_a_long_stream() {
        let probes = Probes::new();
        let slot = got(probes.claim(1, 0, 100));
        probes.good_head(slot, 50);
        assert_eq!(probes.claim(1, 50, 150), Claim::Full);
        assert_eq!(probes.claim(1, 102, 202), Claim::GoodHead);
        assert_eq!(probes.give_back(slot, 102), None);
        let slot = got(probes.claim(1, 102, 202));
        probes.good_head(slot, 203);
        assert_eq!(probes.give_back(slot, 203 + 1), Some(Returned::GoodHead));
        let slot = got(probes.claim(1, 210, 310));
        probes.good_head(slot, 312);
        assert_eq!(probes.give_back(slot, 312), Some(Returned::Late));
    }

    #[test]
    fn a_lower_limit_counts_those_beyond_it() {
        let probes = Probes::new();
        let out: Vec<_> = (0..5).map(|_| got(probes.claim(5, 0, 100))).collect();
        // Of three one may come once two beside them are gone, wherever these were.
        for (gone, limit, room) in [(0, 3, false), (4, 3, false), (1, 3, true)] {
            probes.give_back(out[gone], 1);
            assert_eq!(!probes.are_out(limit, 1), room, "{gone}");
            assert_eq!(matches!(probes.claim(limit, 1, 100), Claim::Got(_)), room, "{gone}");
        }
        assert_eq!((probes.out(1), probes.are_out(1, 1), probes.are_out(4, 1)), (3, true, false));
        // Those that hang are given up.
        assert!(!probes.are_out(1, 102));
    }
}
