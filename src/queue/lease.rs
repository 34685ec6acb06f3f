//! When was a frame of each running stream last handed out?
//!
//! A reader that stalls keeps its response open for as long as it likes, and the right to run with it. So a response
//! that goes on after its head takes a slot in here and notes in it when a frame was last handed out. Whoever finds no
//! room looks through the slots and takes the right from those that have noted nothing for too long. No task, no timer,
//! no lock; nothing at all for a response that is over with its head.

use std::{fmt, iter, sync::OnceLock};

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Slots of the first chunk; each further chunk has twice as many as the one before.
const FIRST: u32 = 64;
const CHUNKS: usize = 24;

/// Nobody's slot.
const FREE: u64 = 0;
/// The right is gone; the slot is still its stream's.
const EXPIRED: u64 = u64::MAX;
const NONE: u32 = u32::MAX;

/// The slots of all streams that run. There are as many as have ever run at once.
pub(crate) struct Leases {
    chunks: [OnceLock<Box<[Slot]>>; CHUNKS],
    /// How many slots were ever used.
    used: AtomicU32,
    /// The first of the free ones and, above it, a number that changes with every change: what has been taken and given
    /// back in between is not what it was.
    free: AtomicU64,
    /// Before this no lease is over: until then nobody need look through them.
    next_look: AtomicU64,
    /// How often leases have changed their length.
    changes: AtomicU64,
}

#[derive(Debug)]
struct Slot {
    /// `FREE`, `EXPIRED`, or one more than the time of the last frame.
    word: AtomicU64,
    /// The next of the free ones.
    next: AtomicU32,
}

/// A stream's own slot. Given back by [`Leases::end`].
#[derive(Debug)]
pub(crate) struct Lease {
    slot: u32,
    noted: u64,
}

impl Leases {
    pub(crate) fn new() -> Self {
        Leases {
            chunks: [const { OnceLock::new() }; CHUNKS],
            used: AtomicU32::new(0),
            free: AtomicU64::new(NONE.into()),
            next_look: AtomicU64::new(0),
            changes: AtomicU64::new(0),
        }
    }

    /// `None` with a billion streams: then it is not leased.
    pub(crate) fn begin(&self, now: u64) -> Option<Lease> {
        let slot = self.reuse().or_else(|| self.add())?;
        let noted = word(now);
        self.slot(slot)?.word.store(noted, Ordering::Release);
        Some(Lease { slot, noted })
    }

    /// A frame was handed out. After the lease has expired this does nothing any more.
    pub(crate) fn note(&self, lease: &mut Lease, now: u64) {
        let Some(slot) = self.slot(lease.slot).filter(|_| lease.noted != EXPIRED) else { return };
        let noted = word(now);
        let swapped = slot.word.compare_exchange(lease.noted, noted, Ordering::AcqRel, Ordering::Relaxed);
        lease.noted = if swapped.is_ok() { noted } else { EXPIRED };
    }

    /// The stream is over. False if its lease had expired: then the right to run is not its own any more.
    pub(crate) fn end(&self, lease: Lease) -> bool {
        let Some(slot) = self.slot(lease.slot) else { return true };
        let was = slot.word.swap(FREE, Ordering::AcqRel);
        self.give_back(lease.slot, slot);
        was != EXPIRED
    }

    /// Takes the right from every stream that has noted nothing for `length`. Gives back how many.
    pub(crate) fn expire(&self, now: u64, length: impl FnOnce() -> u64) -> usize {
        let came = self.next_look.load(Ordering::SeqCst);
        if now < came {
            return 0;
        }
        // Asked only after that: who does not see a new length here finds below that `next_look` is not what it was.
        let length = length();
        let mut expired = 0;
        // A lease that begins from now on is over no sooner.
        let mut next = now.saturating_add(length);
        for slot in self.slots() {
            let seen = slot.word.load(Ordering::Relaxed);
            if seen == FREE || seen == EXPIRED {
                continue;
            }
            let due = seen.saturating_sub(1).saturating_add(length);
            if due > now {
                next = next.min(due);
            } else if slot.word.compare_exchange(seen, EXPIRED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                expired += 1;
            }
        }
        // Not where somebody said meanwhile that leases are shorter now: then it is looked at anew.
        let _ = self.next_look.compare_exchange(came, next, Ordering::Relaxed, Ordering::Relaxed);
        expired
    }

    /// When it is worth looking again. Never later than when a lease is over.
    pub(crate) fn next_look(&self) -> u64 {
        self.next_look.load(Ordering::Relaxed)
    }

    /// The length of leases has been changed. A time long past, and each time another one: whoever looks right now by
    /// the old length must see that it is not what it was.
    pub(crate) fn look_anew(&self) {
        let changes = self.changes.fetch_add(1, Ordering::Relaxed) + 1;
        self.next_look.store(changes, Ordering::SeqCst);
    }

    /// Has there ever been one?
    pub(crate) fn is_in_use(&self) -> bool {
        self.used.load(Ordering::Relaxed) > 0
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        let used = self.used.load(Ordering::Acquire) as usize;
        self.chunks.iter().map_while(OnceLock::get).flatten().take(used)
    }

    fn slot(&self, n: u32) -> Option<&Slot> {
        let (chunk, offset) = split(n);
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    fn reuse(&self) -> Option<u32> {
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            let first = head as u32;
            if first == NONE {
                return None;
            }
            let next = self.slot(first)?.next.load(Ordering::Relaxed);
            match self.free.compare_exchange_weak(head, follow(head, next), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(first),
                Err(now) => head = now,
            }
        }
    }

    #[cold]
    fn add(&self) -> Option<u32> {
        let n = self.used.fetch_add(1, Ordering::AcqRel);
        let (chunk, _) = split(n);
        let slots = || iter::repeat_with(Slot::new).take((FIRST << chunk) as usize).collect();
        match self.chunks.get(chunk) {
            Some(chunk) => chunk.get_or_init(slots),
            None => {
                self.used.fetch_sub(1, Ordering::AcqRel);
                return None;
            }
        };
        Some(n)
    }

    fn give_back(&self, n: u32, slot: &Slot) {
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            slot.next.store(head as u32, Ordering::Relaxed);
            match self.free.compare_exchange_weak(head, follow(head, n), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

impl Slot {
    fn new() -> Self {
        Slot { word: AtomicU64::new(FREE), next: AtomicU32::new(NONE) }
    }
}

fn word(now: u64) -> u64 {
    now.saturating_add(1).min(EXPIRED - 1)
}

/// The next head of the free ones after this one.
fn follow(head: u64, first: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | u64::from(first)
}

/// The chunk of a slot, and its place there.
fn split(n: u32) -> (usize, usize) {
    let chunk = (n / FIRST + 1).ilog2();
    (chunk as usize, (n - FIRST * ((1 << chunk) - 1)) as usize)
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("used", &self.used).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_slot_of_its_own() {
        let mut expected = (0, 0);
        for n in 0..10_000 {
            assert_eq!(split(n), expected, "{n}");
            expected.1 += 1;
            if expected.1 == 64 << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
    }

    #[test]
    fn what_notes_nothing_expires_once() {
        let leases = Leases::new();
        let mut reads = leases.begin(0).unwrap();
        let stalls = leases.begin(0).unwrap();
        leases.note(&mut reads, 60);
        assert_eq!(leases.expire(99, || 100), 0);
        assert_eq!(leases.next_look(), 100);
        assert_eq!((leases.expire(100, || 100), leases.expire(100, || 100)), (1, 0));
        assert_eq!(leases.next_look(), 160);
        assert!(!leases.end(stalls) && leases.end(reads));
        assert_eq!(leases.expire(1_000, || 100), 0);
    }

    #[test]
    fn an_expired_one_that_reads_again_stays_expired() {
        let leases = Leases::new();
        let mut stalls = leases.begin(0).unwrap();
        assert_eq!(leases.expire(100, || 100), 1);
        leases.note(&mut stalls, 101);
        leases.note(&mut stalls, 102);
        assert_eq!(leases.expire(1_000, || 100), 0);
        assert!(!leases.end(stalls));
    }

    #[test]
    fn slots_are_used_again() {
        let leases = Leases::new();
        for round in 0..3 {
            let all: Vec<_> = (0..500).map(|n| leases.begin(round * 1_000 + n).unwrap()).collect();
            assert_eq!(leases.expire(round * 1_000 + 350, || 100), 251, "the due ones of round {round}");
            assert_eq!(all.into_iter().map(|l| leases.end(l)).filter(|own| *own).count(), 249);
        }
        assert_eq!(leases.used.load(Ordering::Relaxed), 500);
    }
}
