//! Sends at the rate that the rule found: units that come back evenly, the units of one second at once.
//!
//! One word, the instant at which all units are there again; in nanoseconds. Those who wait have a [`Line`], and take
//! their unit when it is there and not before.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::Waker,
};

use crate::adaptive_rate::line::{Line, Place};

#[derive(Debug, Default)]
pub(crate) struct Pacer {
    full_at: AtomicU64,
    /// Between two calls. Zero: there is no rate yet.
    interval: AtomicU64,
    /// Nothing is sent before.
    hold_until: AtomicU64,
    line: Line,
}

/// What was taken for a call: so long a time, then; nothing, where there was no rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unit(u64);

/// What a call finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Goes(Unit),
    Waits(Place),
    /// Its turn would come then, and that is too late.
    Late(u64),
}

/// What one finds who looks after its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It goes, and has no place any more.
    Now(Unit),
    /// It looks again then, at the latest.
    At(u64),
    /// It waits in vain, and has no place any more: its turn would come then.
    Late(u64),
}

const SECOND: u64 = 1_000_000_000;
/// So many wait, at most. With a rate it is `wait` that bounds them; while a server wants nothing, only this does.
const MOST: usize = 16 * 1024;
/// Timers are no finer than that.
const TICK: u64 = 1_000_000;

impl Pacer {
    /// Is there no rate, and nothing to wait for?
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.interval.load(Relaxed) == 0 && self.hold_until.load(Relaxed) == 0
    }

    /// Has it been asked for less?
    #[inline]
    pub(crate) fn has_rate(&self) -> bool {
        self.interval.load(Relaxed) != 0
    }

    /// Calls per second; `None`: there is no rate yet.
    pub(crate) fn rate(&self) -> Option<f64> {
        let interval = self.interval.load(Relaxed);
        (interval > 0).then(|| SECOND as f64 / interval as f64)
    }

    /// Another rate, for those who wait too: [`call_first`](Self::call_first) is to follow, outside of every lock. The
    /// first begins with nothing there: what made it was too much.
    pub(crate) fn set_rate(&self, rate: f64, now: u64) {
        let interval = ((SECOND as f64 / rate) as u64).max(1);
        let before = self.interval.swap(interval, Relaxed);
        let carry = |full_at| (before != interval).then(|| carry(full_at, now, before, interval));
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, carry);
    }

    /// Nothing is sent before that, nor by those who wait.
    pub(crate) fn hold(&self, until: u64) {
        self.hold_until.fetch_max(until, Relaxed);
        self.line.call_first();
    }

    /// Until when nothing is sent.
    pub(crate) fn held_until(&self) -> u64 {
        self.hold_until.load(Relaxed)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.line.len()
    }

    /// From when on a call may be made that comes now. Takes nothing.
    pub(crate) fn peek(&self, now: u64) -> u64 {
        self.turn(self.full_at.load(Relaxed), now, self.line.len()).1
    }

    /// May a call be made, or come to its turn until `latest`?
    pub(crate) fn ask(&self, now: u64, latest: u64) -> Asked {
        if self.line.len() == 0
            && let Ok(unit) = self.take(now)
        {
            return Asked::Goes(unit);
        }
        match self.peek(now) {
            turn if turn > latest || self.line.len() >= MOST => Asked::Late(turn),
            _ => Asked::Waits(self.line.join()),
        }
    }

    /// Has the turn of this place come? The waker is called when that may have changed.
    pub(crate) fn look(&self, place: Place, now: u64, latest: u64, waker: &Waker) -> Turn {
        if !self.line.is_first(place, waker) {
            if now <= latest {
                // Those before it may be about to go.
                return Turn::At(latest.saturating_add(TICK));
            }
            self.line.leave(place);
            return Turn::Late(self.peek(now));
        }
        let turn = match self.take(now) {
            Ok(unit) => {
                self.line.leave(place);
                return Turn::Now(unit);
            }
            Err(turn) => turn,
        };
        if turn > latest {
            self.line.leave(place);
            return Turn::Late(turn);
        }
        Turn::At(turn)
    }

    /// One who waited does so no more.
    pub(crate) fn leave(&self, place: Place) {
        self.line.leave(place);
    }

    /// The first who waits looks again.
    pub(crate) fn call_first(&self) {
        self.line.call_first();
    }

    /// Those who wait look again, all of them.
    pub(crate) fn call_all(&self) {
        self.line.call_all();
    }

    /// Takes a unit, whether it is there or not.
    pub(crate) fn charge(&self, now: u64) {
        let interval = self.interval.load(Relaxed);
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| Some(full_at.max(now).saturating_add(interval)));
    }

    /// A call that was not made after all. Its unit comes back as one of now.
    pub(crate) fn give_back(&self, unit: Unit) {
        if unit == Unit(0) {
            return;
        }
        let interval = self.interval.load(Relaxed);
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| Some(full_at.saturating_sub(interval)));
        self.line.call_first();
    }

    /// `Err`: when there will be a unit.
    fn take(&self, now: u64) -> Result<Unit, u64> {
        let mut full_at = self.full_at.load(Relaxed);
        loop {
            let (next, turn) = self.turn(full_at, now, 0);
            if turn > now {
                return Err(turn);
            }
            if next == full_at {
                return Ok(Unit(0));
            }
            match self.full_at.compare_exchange(full_at, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(Unit(next - full_at.max(now))),
                Err(other) => full_at = other,
            }
        }
    }

    /// Of one who has so many before it: when all units will be there again after it has gone, and when it may go.
    fn turn(&self, full_at: u64, now: u64, before: usize) -> (u64, u64) {
        let interval = self.interval.load(Relaxed);
        // Units do not pile up while it holds.
        let from = now.max(self.hold_until.load(Relaxed));
        if interval == 0 {
            // There are none.
            return (full_at, from);
        }
        let next = full_at.max(from).saturating_add(interval.saturating_mul(before as u64 + 1));
        (next, from.max(next.saturating_sub(depth(interval))))
    }
}

/// What is there stays, in units, as far as there is room for it; and so does what is owed.
fn carry(full_at: u64, now: u64, from: u64, to: u64) -> u64 {
    if from == 0 {
        return now.saturating_add(depth(to));
    }
    let there = i128::from(now) + i128::from(depth(from)) - i128::from(full_at.max(now));
    let there = there * i128::from(to) / i128::from(from);
    u64::try_from(i128::from(now) + (i128::from(depth(to)) - there).max(0)).unwrap_or(u64::MAX)
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
        assert_eq!((pacer.ask(5, 5), pacer.rate()), (Asked::Goes(Unit(0)), None));
        pacer.set_rate(10.0, 1_000);
        assert_eq!(pacer.rate(), Some(10.0));
        let turn = 1_000 + SECOND / 10;
        assert_eq!(pacer.ask(1_000, 1_000), Asked::Late(turn));
        assert_eq!((pacer.peek(1_000), pacer.ask(turn, turn)), (turn, Asked::Goes(Unit(SECOND / 10))));
        assert_eq!(pacer.peek(turn), turn + SECOND / 10);
        pacer.give_back(Unit(SECOND / 10));
        assert_eq!(pacer.peek(turn), turn);
        // A second later ten are there, and after an hour no more.
        for now in [1_000 + SECOND, 3_600 * SECOND] {
            let taken = (0..100).take_while(|_| pacer.take(now).is_ok()).count();
            assert_eq!(taken, 10);
        }
    }

    #[test]
    fn one_in_two_seconds() {
        let pacer = Pacer::default();
        pacer.set_rate(0.5, 0);
        assert_eq!(pacer.take(0), Err(2 * SECOND));
        assert!(pacer.take(10 * SECOND).is_ok());
        assert_eq!(pacer.take(10 * SECOND), Err(12 * SECOND));
    }

    #[test]
    fn holds() {
        let pacer = Pacer::default();
        pacer.hold(7 * SECOND);
        pacer.hold(5 * SECOND);
        assert!(!pacer.is_free());
        assert_eq!(pacer.take(SECOND), Err(7 * SECOND));
        assert!(pacer.take(7 * SECOND).is_ok());
        pacer.set_rate(1.0, 0);
        pacer.hold(9 * SECOND);
        assert_eq!(pacer.take(8 * SECOND), Err(9 * SECOND));
        assert_eq!(pacer.turn(pacer.full_at.load(Relaxed), 8 * SECOND, 1).1, 10 * SECOND);
    }

    /// Two threads that read the clock and then come in the other order.
    #[test]
    fn without_a_rate_nobody_is_too_early_but_for_a_hold() {
        let pacer = Pacer::default();
        pacer.hold(7 * SECOND);
        assert!(pacer.take(8 * SECOND).is_ok());
        assert_eq!(pacer.peek(8 * SECOND - 10), 8 * SECOND - 10);
        assert!(pacer.take(8 * SECOND - 10).is_ok());
        pacer.give_back(Unit(0));
        pacer.set_rate(10.0, 9 * SECOND);
        assert_eq!(pacer.take(9 * SECOND), Err(9 * SECOND + SECOND / 10));
    }

    #[test]
    fn a_unit_comes_back_at_the_rate_of_now() {
        let (pacer, now) = (Pacer::default(), 10 * SECOND);
        pacer.set_rate(0.5, 0);
        let slow = pacer.take(now).unwrap();
        pacer.set_rate(1_000.0, now);
        pacer.give_back(slow);
        assert_eq!((pacer.take(now).is_ok(), pacer.take(now).is_ok()), (true, false), "one, and not a second's worth");
    }

    #[test]
    fn while_nothing_is_wanted_only_so_many_wait() {
        let pacer = Pacer::default();
        pacer.hold(9 * SECOND);
        assert!((0..16_384).all(|_| matches!(pacer.ask(0, 60 * SECOND), Asked::Waits(_))));
        assert_eq!(pacer.ask(0, 60 * SECOND), Asked::Late(9 * SECOND));
    }

    /// What is there does not grow by a rate that has room for less.
    #[test]
    fn another_rate_brings_no_units() {
        let pacer = Pacer::default();
        for (rate, turn) in [(1.0, SECOND), (0.5, 2 * SECOND), (0.8, SECOND * 5 / 4), (10.0, SECOND / 10)] {
            pacer.set_rate(rate, 0);
            assert_eq!(pacer.take(0), Err(turn), "{rate}");
        }
    }

    #[test]
    fn those_who_wait_go_in_order_at_the_rate_of_now() {
        let (pacer, waker) = (Pacer::default(), Waker::noop());
        pacer.set_rate(1.0, 0);
        let wait = |now, latest| match pacer.ask(now, latest) {
            Asked::Waits(place) => place,
            other => panic!("{other:?}"),
        };
        let (first, second, third) = (wait(0, 9 * SECOND), wait(0, 9 * SECOND), wait(0, 9 * SECOND));
        assert_eq!(pacer.ask(0, 3 * SECOND), Asked::Late(4 * SECOND), "behind all who wait");
        assert_eq!(pacer.look(first, 0, 9 * SECOND, waker), Turn::At(SECOND));
        assert_eq!(pacer.look(second, SECOND, 9 * SECOND, waker), Turn::At(9 * SECOND + TICK), "not before the first");
        pacer.set_rate(0.5, SECOND / 2);
        // Half of a unit was there.
        let turn = SECOND * 3 / 2;
        assert_eq!(pacer.look(first, SECOND, 9 * SECOND, waker), Turn::At(turn));
        assert_eq!(pacer.look(first, turn, 9 * SECOND, waker), Turn::Now(Unit(2 * SECOND)));
        // One that leaves has taken nothing.
        pacer.leave(second);
        pacer.set_rate(10.0, 3 * SECOND);
        let turn = 3 * SECOND + SECOND / 40;
        assert_eq!(pacer.look(third, 3 * SECOND, 9 * SECOND, waker), Turn::At(turn), "three quarters were there");
        pacer.hold(20 * SECOND);
        assert_eq!(pacer.look(third, turn, 9 * SECOND, waker), Turn::Late(20 * SECOND), "in vain");
        assert_eq!(pacer.line.len(), 0);
    }
}
