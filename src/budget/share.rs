//! A budget that is a share of the recent calls, and a minimum.
//!
//! In every window: withdrawals <= ratio x deposits + minimum. Window and ticks are those of [`window::time`].
//!
//! Deposits come with every call, so they are counted by [`deposits`] in a way that costs next to nothing. A withdrawal
//! has to be taken from all of them at once, and adding them up takes hundreds of instructions; so each tick has a
//! *limit*, how many withdrawals may be made in it, which is worked out with the first of them and again when it is
//! reached. Deposits only come in, so what was worked out may be too little, and never too much.
//!
//! Two words make one decision, the limit and the bucket of withdrawals. Whoever begins a tick first publishes that,
//! with a limit of zero, and adds up then; whoever withdraws first counts and then looks whether the tick is still the
//! same. So of the two at least one sees the other, and no withdrawal from an old tick is missing in the sum of the
//! new.
//!
//! An attempt that waits for its turn counts for as long as it does, and then in the tick in which it is made: waits
//! that begin in many windows may end in the same moment. So its withdrawal goes from its bucket to those that wait,
//! and from there to the bucket of a later tick. One thread at a time moves them, for the limit moves with them: down
//! before there is room in a bucket, up after there is less. Whoever withdraws looks at the limit again once it has
//! counted, and sees that.

use std::sync::PoisonError;

use crate::{
    budget::deposits::Deposits,
    sync::{AtomicU64, Mutex, MutexGuard},
    window::{
        time::{AHEAD, Row, Tick},
        word::{self, ORDER},
    },
};

/// A ratio is kept as an integer.
const MILLION: u64 = 1_000_000;

/// See the module. `now` is in nanoseconds of any clock that does not go back.
#[derive(Debug)]
pub(crate) struct Share {
    /// In millionths.
    ratio: u64,
    minimum: u64,
    /// The length of a tick.
    tick: u64,
    deposits: Deposits,
    withdrawals: Row,
    /// The tag of the running tick, and how many withdrawals it may have.
    limit: AtomicU64,
    /// Withdrawals for attempts that wait.
    waiting: AtomicU64,
    /// Held by whoever writes the limit.
    books: Mutex<()>,
    /// When the running tick ends: until then nobody has to work out which one it is.
    until: AtomicU64,
}

/// A withdrawal that can be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Withdrawal(u32);

impl Withdrawal {
    /// Where nothing is counted. It is not given back to a share.
    pub(crate) const NOTHING: Withdrawal = Withdrawal(0);
}

impl Share {
    /// `ratio` and `minimum` (in a window) are in millionths.
    pub(crate) fn new(ratio: u64, minimum: u64, tick: u64) -> Self {
        Share {
            ratio,
            minimum,
            tick,
            deposits: Deposits::new(),
            withdrawals: Row::new(),
            limit: AtomicU64::new(word::pack(0, 0)),
            waiting: AtomicU64::new(0),
            books: Mutex::new(()),
            until: AtomicU64::new(0),
        }
    }

    /// Ratio, minimum, and the length of a tick.
    #[cfg(feature = "http")]
    pub(crate) fn numbers(&self) -> (u64, u64, u64) {
        (self.ratio, self.minimum, self.tick)
    }

    /// Nothing in it counts any more.
    #[cfg(feature = "http")]
    pub(crate) fn is_as_new(&self, now: u64) -> bool {
        let tick = self.tick(now);
        self.deposits.sum(tick) == 0 && self.withdrawals.sum(tick) == 0 && self.waiting.load(ORDER) == 0
    }

    // The first tick is number 1, for a limit of tick 0 is what there is before the first.
    #[inline]
    fn tick(&self, now: u64) -> Tick {
        Tick::new(1, self.tick, now)
    }

    /// The clock is not always asked.
    #[inline(always)]
    pub(crate) fn deposit(&self, now: impl FnOnce() -> u64, stripe: usize) {
        self.deposits.add(|| self.tick(now()), stripe);
    }

    /// One withdrawal, if the budget has it. Under contention it may refuse the last one, and never gives too many.
    #[inline(always)]
    pub(crate) fn withdraw(&self, now: u64) -> Option<Withdrawal> {
        // What nearly always is so: the tick runs, has a limit, and nobody else withdraws at this very moment.
        // Its end before its limit: whoever sees the end of a tick sees its limit, or that of a later one.
        let running = now < self.until.load(ORDER);
        let limit = self.limit.load(ORDER);
        let (tag, _) = word::unpack(limit);
        let bucket = self.withdrawals.bucket(Tick::of_tag(tag));
        let seen = bucket.load(ORDER);
        if running
            && word::unpack(seen).0 == tag
            && seen < limit
            && bucket.compare_exchange_weak(seen, seen + 1, ORDER, ORDER).is_ok()
        {
            let taken = Withdrawal(tag);
            if self.is_valid(seen + 1) {
                return Some(taken);
            }
            self.give_back(taken);
        }
        self.withdraw_by_hand(now)
    }

    #[cold]
    #[inline(never)]
    fn withdraw_by_hand(&self, now: u64) -> Option<Withdrawal> {
        let own = self.tick(now).tag();
        loop {
            let (tag, limit) = word::unpack(self.limit.load(ORDER));
            // Where another thread's clock is a little ahead, the tick is the one that runs there.
            if is_over(tag, own) {
                self.begin(own, now, &self.lock());
                continue;
            }
            let Some(count) = self.count(tag, limit) else {
                if self.raise(tag, limit) {
                    continue;
                }
                return None;
            };
            let taken = Withdrawal(tag);
            if self.is_valid(word::pack(tag, count)) {
                return Some(taken);
            }
            self.give_back(taken);
        }
    }

    /// With it there are so many in its bucket: is its tick the one that runs, and may it have them? Who begins a tick
    /// after this sees the withdrawal, and who began one before is seen here: that one may have been added up without
    /// this. The same goes for who has lowered the limit.
    #[inline(always)]
    fn is_valid(&self, counted: u64) -> bool {
        let limit = self.limit.load(ORDER);
        // Of another tick the difference is larger than any limit.
        limit.wrapping_sub(counted) <= (limit & u64::from(u32::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // It holds nothing that could be broken.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempt waits for its turn.
    pub(crate) fn put_off(&self, taken: Withdrawal) {
        let _books = self.lock();
        self.waiting.fetch_add(1, ORDER);
        let limit = self.limit.load(ORDER);
        let (tag, most) = word::unpack(limit);
        // What an older tick in the window had was taken off this limit before.
        let is_taken_off = taken.0 != tag && Tick::of_tag(tag).has_inside(taken.0);
        if !is_taken_off && most > 0 {
            self.limit.store(limit - 1, ORDER);
        }
        self.give_back(taken);
    }

    /// The attempt that waited is made now.
    pub(crate) fn make(&self, now: u64) {
        let books = self.lock();
        let own = self.tick(now).tag();
        if is_over(word::unpack(self.limit.load(ORDER)).0, own) {
            self.begin(own, now, &books);
        }
        let (tag, limit) = word::unpack(self.limit.load(ORDER));
        self.withdrawals.add(Tick::of_tag(tag), 1);
        self.limit.store(word::pack(tag, limit.saturating_add(1)), ORDER);
        self.waiting.fetch_sub(1, ORDER);
    }

    /// The attempt that waited is not made.
    pub(crate) fn call_off(&self) {
        self.waiting.fetch_sub(1, ORDER);
    }

    /// The withdrawal was not used.
    pub(crate) fn give_back(&self, Withdrawal(tag): Withdrawal) {
        let bucket = self.withdrawals.bucket(Tick::of_tag(tag));
        let mut seen = bucket.load(ORDER);
        loop {
            let (its, count) = word::unpack(seen);
            if its != tag || count == 0 {
                // So long ago that it counts no more.
                return;
            }
            match bucket.compare_exchange_weak(seen, word::pack(tag, count - 1), ORDER, ORDER) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// How many withdrawals there are right now.
    pub(crate) fn balance(&self, now: u64) -> u64 {
        let tick = self.tick(now);
        let taken = self.withdrawals.sum(tick).saturating_add(self.waiting.load(ORDER));
        self.allowance(tick).saturating_sub(taken)
    }

    fn allowance(&self, tick: Tick) -> u64 {
        self.deposits.sum(tick).saturating_mul(self.ratio).saturating_add(self.minimum) / MILLION
    }

    /// One more in the bucket of this tick, if there are fewer than `limit`. How many there are with it.
    #[inline(always)]
    fn count(&self, tag: u32, limit: u32) -> Option<u32> {
        let bucket = self.withdrawals.bucket(Tick::of_tag(tag));
        let mut seen = bucket.load(ORDER);
        loop {
            let (its, count) = word::unpack(seen);
            // What is newer ends this tick, and what is older is nothing.
            let count = if its == tag { count } else { 0 };
            if count >= limit || (its != tag && word::age(its, tag).is_gt() && word::unpack(seen).1 > 0) {
                return None;
            }
            match bucket.compare_exchange_weak(seen, word::pack(tag, count + 1), ORDER, ORDER) {
                Ok(_) => return Some(count + 1),
                Err(now) => seen = now,
            }
        }
    }

    /// The tick has begun: from here on withdrawals in older ones are void. Its limit is worked out by whoever needs
    /// it.
    #[cold]
    fn begin(&self, tag: u32, now: u64, _books: &MutexGuard<'_, ()>) {
        if !is_over(word::unpack(self.limit.load(ORDER)).0, tag) {
            return;
        }
        self.limit.store(word::pack(tag, 0), ORDER);
        let until = (now / self.tick).saturating_add(1).saturating_mul(self.tick);
        self.until.fetch_max(until, ORDER);
        // Tags wrap, and rows may rest for months.
        let tick = Tick::of_tag(tag);
        self.deposits.sweep(tick);
        self.withdrawals.sweep(tick);
    }

    /// The limit was reached: have deposits come since it was worked out? `false`: it is still the same.
    #[cold]
    fn raise(&self, tag: u32, limit: u32) -> bool {
        let tick = Tick::of_tag(tag);
        if self.limit_of(tick) <= limit {
            // Somebody else may have changed it, or begun the next tick.
            return word::unpack(self.limit.load(ORDER)) != (tag, limit);
        }
        let _books = self.lock();
        let seen = self.limit.load(ORDER);
        let new = word::pack(tag, self.limit_of(tick));
        if word::unpack(seen).0 == tag && new > seen {
            self.limit.store(new, ORDER);
        }
        true
    }

    /// How many withdrawals this tick may have. Without its own, which this is for: what is given back meanwhile must
    /// not be had twice.
    fn limit_of(&self, tick: Tick) -> u32 {
        let others = self.withdrawals.sum_before(tick).saturating_add(self.waiting.load(ORDER));
        u32::try_from(self.allowance(tick).saturating_sub(others)).unwrap_or(u32::MAX)
    }
}

/// Is the tick with this tag over, by a clock that says the other one?
fn is_over(tag: u32, own: u32) -> bool {
    tag.wrapping_sub(own) > AHEAD
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(ratio: f64, minimum: f64) -> Share {
        Share::new((ratio * 1e6) as u64, (minimum * 1e6) as u64, 100)
    }

    fn takes(share: &Share, now: u64) -> usize {
        (0..100).take_while(|_| share.withdraw(now).is_some()).count()
    }

    /// Scenario 67, in ticks of a tenth of a window.
    #[test]
    fn as_towers_budget() {
        let empty = share(1.0, 0.0);
        assert_eq!(empty.withdraw(0), None);
        empty.deposit(|| 0, 0);
        assert_eq!(takes(&empty, 3_000), 0);
        assert_eq!(takes(&share(1.0, 5.0), 0), 5);
        let half = share(0.5, 0.0);
        half.deposit(|| 0, 0);
        assert_eq!(half.withdraw(0), None);
        half.deposit(|| 0, 1);
        assert_eq!(takes(&half, 901), 1);
    }

    #[test]
    fn what_is_given_back_can_be_had_again() {
        let share = share(0.2, 1.0);
        let taken = share.withdraw(50).unwrap();
        assert_eq!((share.withdraw(50), share.balance(50)), (None, 0));
        share.give_back(taken);
        assert_eq!((share.balance(50), takes(&share, 150)), (1, 1));
        // Twice is not more.
        share.give_back(taken);
        assert_eq!(share.balance(150), 0);
    }

    #[test]
    fn a_rest_of_any_length_is_no_riddle() {
        for rest in [17, 1 << 20, 1 << 31, (1 << 31) + 5, (1 << 32) - 3, 1 << 32, 1 << 33u64] {
            let share = share(0.0, 2.0);
            assert_eq!(takes(&share, 0), 2);
            let later = rest * 100;
            assert!(takes(&share, later + 100) <= 2, "{rest}");
            assert_eq!(takes(&share, later + 5_000), 2, "{rest}");
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Deposit,
        Withdraw,
        GiveBack(usize),
        PutOff(usize),
        /// One that was put off: is it made?
        Settle(bool),
        Step(u64),
    }

    proptest! {
        /// Against lists of all deposits and withdrawals: what a window of eleven ticks allows, never more. What was
        /// put off counts until it is made, and from then on as if it were taken then.
        #[test]
        fn never_exceeded(
            ratio in 0..=1_000_000u64,
            minimum in 0..5_000_000u64,
            ops in proptest::collection::vec(prop_oneof![
                4 => Just(Op::Deposit), 4 => Just(Op::Withdraw), 1 => any::<usize>().prop_map(Op::GiveBack),
                2 => any::<usize>().prop_map(Op::PutOff), 1 => any::<bool>().prop_map(Op::Settle), 2 => (0..400u64).prop_map(Op::Step),
            ], 0..300),
        ) {
            let share = Share::new(ratio, minimum, 100);
            let (mut now, mut deposits, mut waiting) = (0, Vec::new(), 0);
            // Those that were put off can't be given back.
            let mut taken = Vec::<(u64, Option<Withdrawal>)>::new();
            let inside = |then: u64, now: u64| now / 100 - then / 100 <= 10;
            for (n, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Deposit => {
                        share.deposit(|| now, n);
                        deposits.push(now);
                    }
                    Op::Step(by) => now += by,
                    Op::GiveBack(i) | Op::PutOff(i) => {
                        let Some((_, Some(w))) = taken.get(i % taken.len().max(1)).copied() else { continue };
                        taken.swap_remove(i % taken.len());
                        if matches!(op, Op::PutOff(_)) {
                            share.put_off(w);
                            waiting += 1;
                        } else {
                            share.give_back(w);
                        }
                    }
                    Op::Settle(_) if waiting == 0 => {}
                    Op::Settle(true) => {
                        share.make(now);
                        waiting -= 1;
                        taken.push((now, None));
                    }
                    Op::Settle(false) => {
                        share.call_off();
                        waiting -= 1;
                    }
                    Op::Withdraw => {
                        let live = deposits.iter().filter(|t| inside(**t, now)).count() as u64;
                        let used = waiting + taken.iter().filter(|(t, _)| inside(*t, now)).count() as u64;
                        let allowed = (live * ratio + minimum) / MILLION;
                        // Some deposits of a busy tick may count as older than they are, so leave earlier.
                        let busy = |then: &u64| deposits.iter().filter(|t| *t / 100 == *then / 100).count() >= 16;
                        let exact = !deposits.iter().any(busy);
                        let got = share.withdraw(now);
                        prop_assert!(got.is_none() || used < allowed, "used {} of {}", used, allowed);
                        prop_assert!(got.is_some() || used >= allowed || !exact, "used {} of {}", used, allowed);
                        if exact {
                            let left = allowed.saturating_sub(used).saturating_sub(u64::from(got.is_some()));
                            prop_assert_eq!(share.balance(now), left);
                        }
                        taken.extend(got.map(|w| (now, Some(w))));
                    }
                }
            }
        }
    }

    #[test]
    fn threads_never_get_more_than_there_is() {
        let share = share(0.1, 10.0);
        let taken: usize = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4)
                .map(|stripe| {
                    let share = &share;
                    s.spawn(move || {
                        let mut taken = 0;
                        for n in 0..20_000u64 {
                            // All within one window, across its ticks.
                            let now = n * 1_000 / 20_000;
                            share.deposit(|| now, stripe);
                            taken += usize::from(share.withdraw(now).is_some());
                        }
                        taken
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        // All of it is one window, so whatever tick a deposit was booked in, it counts.
        assert_eq!(taken + share.balance(999) as usize, 8_010, "{taken}");
    }
}
