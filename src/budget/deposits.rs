//! Counting calls of the last T without asking the clock each time.
//!
//! To know to which tick a call belongs takes the time, and reading it is most of what a call through a budget would
//! cost. So once a tick has seen some calls, one in so many looks at the clock, and those between are counted for the
//! tick of the last look. That can only make them older than they are: they leave the window early, never late, and
//! what is bounded by their number stays bounded. At most a sixteenth of a tick's calls is meant; in a tick with fewer
//! than sixteen each is dated exactly. After a fall in traffic that is a sixteenth of what a busy tick had, until the
//! next withdrawal.
//!
//! Stripes: a thread always counts in the same one, on a cache line that it shares with few others.

use crate::{
    sync::AtomicU64,
    window::{
        time::{Row, STRIPES, Tick},
        word::ORDER,
    },
};

/// Of so many calls in a tick one may be undated.
const SHARE: u32 = 16;
const MOST: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct Deposits([Stripe; STRIPES]);

#[derive(Debug)]
#[repr(align(128))]
struct Stripe {
    /// 32 bits: the tag of the last look; 16: how many calls may come until the next one; 16: how many did. Those that
    /// come above are dated, and only for a moment.
    undated: AtomicU64,
    dated: Row,
}

impl Deposits {
    pub(crate) fn new() -> Self {
        let stripe = || Stripe { undated: AtomicU64::new(0), dated: Row::new() };
        Deposits(std::array::from_fn(|_| stripe()))
    }

    /// One call.
    #[inline(always)]
    pub(crate) fn add(&self, tick: impl FnOnce() -> Tick, stripe: usize) {
        let stripe = &self.0[stripe % STRIPES];
        let (_, may, came) = unpack(stripe.undated.fetch_add(1, ORDER));
        if came >= may {
            stripe.look(tick());
        }
    }

    pub(crate) fn sum(&self, tick: Tick) -> u64 {
        self.0.iter().map(|stripe| stripe.sum(tick)).sum()
    }

    pub(crate) fn sweep(&self, tick: Tick) {
        for stripe in &self.0 {
            stripe.dated.sweep(tick);
            stripe.forget_how_busy_it_was(tick);
        }
    }
}

impl Stripe {
    fn sum(&self, tick: Tick) -> u64 {
        // Most stripes are no thread's, and there each bucket would be looked at for nothing.
        if self.undated.load(ORDER) == 0 { 0 } else { self.dated.sum(tick) + self.undated(tick) }
    }

    fn undated(&self, tick: Tick) -> u64 {
        let (tag, may, came) = unpack(self.undated.load(ORDER));
        if tick.has_inside(tag) { may.min(came) } else { 0 }
    }

    /// The next call looks at the clock, if this is not the tick of the last look any more. After a fall in traffic all
    /// that a busy tick left undated would else be taken for calls of that tick, however long they are in coming.
    fn forget_how_busy_it_was(&self, tick: Tick) {
        let seen = self.undated.load(ORDER);
        let (tag, may, came) = unpack(seen);
        if tag != tick.tag() && came < may {
            // A call that comes in between looks the next time.
            let _ = self.undated.compare_exchange(seen, pack(tag, came) | came, ORDER, ORDER);
        }
    }

    /// Dates this call, and from now on those that follow.
    #[inline(never)]
    fn look(&self, tick: Tick) {
        self.dated.add(tick, 1);
        let so_far = crate::window::word::value(self.dated.bucket(tick), tick.tag());
        let may = u64::from(so_far / SHARE).min(MOST);
        let mut seen = self.undated.load(ORDER);
        loop {
            let (tag, old_may, came) = unpack(seen);
            if came < old_may {
                // Another thread has looked meanwhile.
                return;
            }
            match self.undated.compare_exchange_weak(seen, pack(tick.tag(), may), ORDER, ORDER) {
                // Between these two they are in neither place; too few is what they may be.
                Ok(_) if old_may > 0 => return self.dated.add(Tick::of_tag(tag), old_may as u32),
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }
}

fn pack(tag: u32, may: u64) -> u64 {
    u64::from(tag) << 32 | may << 16
}

#[inline]
fn unpack(word: u64) -> (u32, u64, u64) {
    ((word >> 32) as u32, word >> 16 & 0xffff, word & 0xffff)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_busy_tick_looks_seldom_and_counts_all() {
        let deposits = Deposits::new();
        let mut looks = 0;
        let at = |n: u64| Tick::new(1, 100, n);
        for n in 0..100_000 {
            deposits.add(
                || {
                    looks += 1;
                    at(5)
                },
                3,
            );
            assert_eq!(deposits.sum(at(5)), n + 1);
        }
        assert!(looks < 600, "{looks}");
        // They are all of that tick, and gone with it.
        assert_eq!((deposits.sum(at(1_099)), deposits.sum(at(1_100))), (100_000, 0));
    }

    #[test]
    fn after_a_fall_in_traffic_calls_are_dated_again() {
        let deposits = Deposits::new();
        let at = |n: u64| Tick::new(1, 100, n);
        (0..1_600).for_each(|_| deposits.add(|| at(0), 0));
        // Nobody has asked since: these are taken for calls of the busy tick.
        (1..=5).for_each(|n| deposits.add(|| at(n * 100), 0));
        assert_eq!(deposits.sum(at(500)), 1_605);
        deposits.sweep(at(500));
        (6..=15).for_each(|n| deposits.add(|| at(n * 100), 0));
        assert_eq!(deposits.sum(at(1_500)), 10);
    }

    #[test]
    fn undated_ones_are_older_than_they_are_never_younger() {
        let deposits = Deposits::new();
        let at = |n: u64| Tick::new(1, 100, n);
        (0..160).for_each(|_| deposits.add(|| at(0), 0));
        // A moment later, in a later tick: ten of these may count for the first one.
        (0..100).for_each(|_| deposits.add(|| at(1_000), 0));
        assert_eq!(deposits.sum(at(1_000)), 260);
        let left = deposits.sum(at(1_100));
        assert!((90..=100).contains(&left), "{left}");
    }
}
