//! Quotas in memory: one for all, and one for each key.

use std::{fmt, sync::Arc, task::Waker};

use crate::{
    keyed::{Keyed, State},
    rate_limit::{
        Quota,
        bucket::Bucket,
        gcra::{LAST, Left, Meter},
        taken::Taken,
    },
    sync::{AtomicU64, Ordering::*},
    wake::wake_all,
};

/// All quotas of one layer.
pub(crate) struct Buckets {
    /// Of a layer without keys, of plain services, and of requests without a key.
    pub(crate) common: Arc<Bucket>,
    keyed: Keyed<Cell, Meter>,
}

/// The quota of one key. Most have nothing but the tick at which they are whole again; the meter is the shard's.
#[derive(Debug)]
enum Cell {
    Lean(AtomicU64),
    /// One that can be held, for a call that waits or is charged later.
    Full(Arc<Bucket>),
    /// One of a quota of its own.
    Tier(Box<(Quota, Arc<Bucket>)>),
    /// Of all keys that have none of their own: always with the quota that all have in common.
    Overflow(Arc<Bucket>),
}

/// What is asked of a key's quota.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask {
    pub(crate) units: u32,
    pub(crate) now: u64,
    /// The quota of this key, if it is not the common one.
    pub(crate) tier: Option<Quota>,
    /// Will somebody have to find it again?
    pub(crate) hold: bool,
}

impl Buckets {
    pub(crate) fn new(meter: Meter, most_keys: usize) -> Self {
        let common = || Arc::new(Bucket::new(meter, 0));
        Buckets { common: common(), keyed: Keyed::new(most_keys, meter, || Cell::Overflow(common())) }
    }

    pub(crate) fn keys(&self) -> usize {
        self.keyed.len()
    }

    /// Takes one unit of a key's quota if it is there, and says nothing more.
    #[inline]
    pub(crate) fn try_take(&self, key: &[u8], now: u64) -> bool {
        self.keyed.with(key, now, |meter, cell| cell.try_take(meter, now))
    }

    /// Takes units of a key's quota, if they are there. The quota comes along where it was asked for.
    #[inline]
    pub(crate) fn take(&self, key: &[u8], ask: Ask) -> (Taken, Option<Arc<Bucket>>) {
        if !ask.hold && ask.tier.is_none() {
            let taken = self.keyed.with(key, ask.now, |meter, cell| cell.take_lean(meter, ask.units, ask.now));
            if let Some(taken) = taken {
                return (taken, None);
            }
        }
        let bucket = self.bucket(key, ask);
        (bucket.take(ask.units, ask.now), ask.hold.then_some(bucket))
    }

    /// A key's quota, to be kept.
    pub(crate) fn bucket(&self, key: &[u8], ask: Ask) -> Arc<Bucket> {
        let known = self.keyed.with(key, ask.now, |_, cell| cell.bucket(ask.tier).cloned());
        known.unwrap_or_else(|| {
            let mut wake = Vec::new();
            let bucket =
                self.keyed.with_mut(key, ask.now, |meter, cell| cell.fill(meter, ask.tier, ask.now, &mut wake));
            wake_all(wake);
            bucket
        })
    }

    /// Another common quota. What was used stays used; keys that have a quota of their own keep it.
    pub(crate) fn set(&self, meter: Meter, now: impl Fn() -> u64, wake: &mut Vec<Waker>) {
        self.common.set(meter, now(), wake);
        self.keyed.update(&meter, |before, meter, cell| cell.set(before, meter, now(), wake));
    }

    /// All who wait look again.
    pub(crate) fn call_all(&self, wake: &mut Vec<Waker>) {
        self.common.call_all(wake);
        self.keyed.for_each(|cell| match cell {
            Cell::Lean(_) => {}
            Cell::Full(bucket) | Cell::Overflow(bucket) => bucket.call_all(wake),
            Cell::Tier(own) => own.1.call_all(wake),
        });
    }
}

impl Cell {
    #[inline(always)]
    fn try_take(&self, meter: &Meter, now: u64) -> bool {
        let word = match self {
            Cell::Lean(word) => word,
            Cell::Full(bucket) | Cell::Overflow(bucket) => return bucket.try_take(now).is_some(),
            Cell::Tier(_) => return false,
        };
        let (tick, mut full_at) = (meter.at(now), word.load(Relaxed));
        loop {
            let Ok(next) = meter.take(full_at, tick, meter.unit) else { return false };
            match word.compare_exchange(full_at, next.min(LAST), Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(other) => full_at = other,
            }
        }
    }

    /// `None`: it is not the common quota by which it goes.
    fn take_lean(&self, meter: &Meter, units: u32, now: u64) -> Option<Taken> {
        let word = match self {
            Cell::Lean(word) => word,
            Cell::Full(bucket) | Cell::Overflow(bucket) => return Some(bucket.take(units, now)),
            Cell::Tier(_) => return None,
        };
        let (tick, cost) = (meter.at(now), meter.ticks(units));
        let mut full_at = word.load(Relaxed);
        loop {
            match meter.take(full_at, tick, cost) {
                Ok(next) => match word.compare_exchange(full_at, next.min(LAST), Relaxed, Relaxed) {
                    Ok(_) => return Some(Taken::Yes(Left::new(next, now, meter))),
                    Err(other) => full_at = other,
                },
                Err(at) => return Some(Taken::not(meter, at, cost, full_at, now)),
            }
        }
    }

    /// The quota as something that can be held, if it is that and of this tier.
    fn bucket(&self, tier: Option<Quota>) -> Option<&Arc<Bucket>> {
        match self {
            Cell::Overflow(bucket) => Some(bucket),
            Cell::Full(bucket) => tier.is_none().then_some(bucket),
            Cell::Tier(own) => (tier == Some(own.0)).then_some(&own.1),
            Cell::Lean(_) => None,
        }
    }

    /// Makes it one that can be held, of this tier.
    fn fill(&mut self, meter: &Meter, tier: Option<Quota>, now: u64, wake: &mut Vec<Waker>) -> Arc<Bucket> {
        if let Some(known) = self.bucket(tier) {
            return Arc::clone(known);
        }
        // A tier was checked before it was asked for.
        let target = tier.and_then(Meter::new).unwrap_or(*meter);
        let bucket = match self {
            Cell::Lean(word) => Arc::new(Bucket::new(target, meter.carry(word.load(Relaxed), now, &target))),
            Cell::Full(bucket) | Cell::Overflow(bucket) => Arc::clone(bucket),
            Cell::Tier(own) => Arc::clone(&own.1),
        };
        bucket.set(target, now, wake);
        *self = match tier {
            Some(quota) => Cell::Tier(Box::new((quota, Arc::clone(&bucket)))),
            None => Cell::Full(Arc::clone(&bucket)),
        };
        bucket
    }

    fn set(&mut self, before: &Meter, meter: &Meter, now: u64, wake: &mut Vec<Waker>) {
        match self {
            Cell::Lean(word) => *word = AtomicU64::new(before.carry(word.load(Relaxed), now, meter)),
            Cell::Full(bucket) | Cell::Overflow(bucket) => bucket.set(*meter, now, wake),
            Cell::Tier(_) => {}
        }
    }

    fn idle_from(bucket: &Arc<Bucket>) -> Option<u64> {
        let (full_at, meter) = bucket.full_at();
        // Whoever holds it may have something to charge.
        (Arc::strong_count(bucket) == 1).then(|| meter.instant(full_at))
    }
}

impl State<Meter> for Cell {
    fn idle_at(&self, meter: &Meter) -> Option<u64> {
        match self {
            Cell::Lean(word) => Some(meter.instant(word.load(Relaxed))),
            Cell::Full(bucket) | Cell::Overflow(bucket) => Cell::idle_from(bucket),
            Cell::Tier(own) => Cell::idle_from(&own.1),
        }
    }

    // The meter is that of the overflow too.
    fn promoted(overflow: &Self, _meter: &Meter, _now: u64) -> Self {
        let used = match overflow {
            Cell::Overflow(bucket) | Cell::Full(bucket) => bucket.full_at().0,
            Cell::Lean(word) => word.load(Relaxed),
            Cell::Tier(_) => 0,
        };
        Cell::Lean(AtomicU64::new(used))
    }
}

impl fmt::Debug for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buckets").field("common", &self.common).field("keyed", &self.keyed).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn ask(now: u64) -> Ask {
        Ask { units: 1, now, tier: None, hold: false }
    }

    fn takes(buckets: &Buckets, key: &[u8], ask: Ask) -> u32 {
        (0..1_000).take_while(|_| matches!(buckets.take(key, ask).0, Taken::Yes(_))).count() as u32
    }

    #[test]
    fn a_cell_is_two_words() {
        assert_eq!(size_of::<Cell>(), 16);
    }

    #[test]
    fn tiers_come_and_go_and_what_was_used_stays_used() {
        let buckets = Buckets::new(Meter::new(Quota::per_second(10)).unwrap(), 100);
        assert_eq!(takes(&buckets, b"a", ask(0)), 10);
        let gold = Ask { tier: Some(Quota::per_second(25)), ..ask(0) };
        assert_eq!(takes(&buckets, b"a", gold), 15);
        assert_eq!(takes(&buckets, b"b", gold), 25);
        let silver = Ask { tier: Some(Quota::per_second(12)), ..ask(0) };
        assert_eq!(takes(&buckets, b"b", silver), 0);
        // 25 were used; at 10 a second the last 15 of them are gone after 1.5 s.
        assert_eq!(takes(&buckets, b"b", ask(0)), 0);
        assert_eq!(takes(&buckets, b"b", ask(SECOND + SECOND / 2)), 0);
        assert_eq!(takes(&buckets, b"b", ask(2 * SECOND)), 5);
    }

    #[test]
    fn another_common_quota_leaves_tiers_alone() {
        let buckets = Buckets::new(Meter::new(Quota::per_second(10)).unwrap(), 100);
        let gold = Ask { tier: Some(Quota::per_second(20)), ..ask(0) };
        assert_eq!((takes(&buckets, b"gold", gold), takes(&buckets, b"a", ask(0))), (20, 10));
        assert_eq!(takes(&buckets, b"held", Ask { hold: true, ..ask(0) }), 10);
        buckets.set(Meter::new(Quota::per(30, Duration::from_secs(1))).unwrap(), || 0, &mut Vec::new());
        assert_eq!(takes(&buckets, b"gold", gold), 0);
        assert_eq!((takes(&buckets, b"a", ask(0)), takes(&buckets, b"held", ask(0))), (20, 20));
        assert_eq!(takes(&buckets, b"new", ask(0)), 30);
    }

    #[test]
    fn overflow_has_the_common_quota() {
        let buckets = Buckets::new(Meter::new(Quota::per_second(10)).unwrap(), 1);
        let gold = Ask { tier: Some(Quota::per_second(20)), ..ask(0) };
        assert_eq!(takes(&buckets, b"a", gold), 20);
        assert_eq!(takes(&buckets, b"b", gold), 10);
        assert_eq!(takes(&buckets, b"c", ask(0)), 0, "there is one overflow state");
        assert_eq!(buckets.keys(), 1);
        // Both are idle after a second: c is promoted, and b shares nothing with it.
        assert_eq!((takes(&buckets, b"c", ask(SECOND)), takes(&buckets, b"b", ask(SECOND))), (10, 10));
    }

    #[test]
    fn moving_out_of_the_overflow_is_no_fresh_start() {
        let buckets = Buckets::new(Meter::new(Quota::per_second(10)).unwrap(), 1);
        assert_eq!(takes(&buckets, b"a", ask(0)), 10);
        assert_eq!(takes(&buckets, b"b", ask(SECOND - 1)), 10);
        assert_eq!(takes(&buckets, b"b", ask(SECOND)), 0, "promoted, with what it has used");
        assert_eq!(takes(&buckets, b"a", ask(SECOND)), 0, "in the overflow, with what b has used");
    }
}
