//! One quota in use: the word in which it is counted, and the line of those who wait.
//!
//! The word has the tick at which all is there again, in the meter's ticks; a lock bit; and which meter that was.
//! Taking is a read of the word, a read of the meter, and a compare-and-swap of the word. Whoever changes the meter
//! takes the lock bit first and gives the word a new epoch after. So a swap that succeeds was computed with the meter
//! that was in force: had any part of another been read, the word would have changed.

use std::{sync::PoisonError, task::Waker};

use crate::{
    rate_limit::{
        gcra::{LAST, Left, Meter},
        line::Line,
        taken::{Joined, Taken, Turn},
    },
    sync::{AtomicU64, Mutex, MutexGuard, Ordering::*, step_aside},
    wake::wake_all,
};

#[derive(Debug)]
pub(crate) struct Bucket {
    word: AtomicU64,
    mul: AtomicU64,
    div: AtomicU64,
    unit: AtomicU64,
    burst: AtomicU64,
    line: Mutex<Line>,
}

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u64);

const LOCKED: u64 = 1;
/// Lock bit and two bits of epoch.
const BITS: u32 = 3;
const EPOCH: u64 = 0b110;

impl Bucket {
    /// With so much used: all will be there again at `full_at`.
    pub(crate) fn new(meter: Meter, full_at: u64) -> Self {
        Bucket {
            word: AtomicU64::new(full_at.min(LAST) << BITS),
            mul: AtomicU64::new(meter.mul),
            div: AtomicU64::new(meter.div),
            unit: AtomicU64::new(meter.unit),
            burst: AtomicU64::new(meter.burst),
            line: Mutex::default(),
        }
    }

    /// Takes one unit if it is there. `Some`: when the next one will be, in nanoseconds, if that was the last; else
    /// zero.
    #[inline(always)]
    pub(crate) fn try_take(&self, now: u64) -> Option<u64> {
        let mut word = self.word.load(Acquire);
        while word & LOCKED == 0 {
            let meter = self.meter();
            let tick = meter.at(now);
            let next = meter.take(word >> BITS, tick, meter.unit).ok()?;
            match self.swap(word, next) {
                Ok(_) => return Some(if next + meter.unit > tick + meter.burst { meter.next_unit(next) } else { 0 }),
                Err(other) => word = other,
            }
        }
        None
    }

    /// When the next unit will be there, if it is not now.
    pub(crate) fn next_unit(&self, now: u64) -> Option<u64> {
        let word = self.word.load(Acquire);
        let meter = self.meter();
        let at = meter.take(word >> BITS, meter.at(now), meter.unit).err()?;
        // Of one piece, or not known.
        (word & LOCKED == 0 && self.word.load(Acquire) == word).then(|| meter.instant(at))
    }

    /// Takes units if they are there.
    pub(crate) fn take(&self, units: u32, now: u64) -> Taken {
        let mut word = self.word.load(Acquire);
        loop {
            if word & LOCKED != 0 {
                word = self.unlocked();
            }
            let meter = self.meter();
            let (tick, cost, full_at) = (meter.at(now), meter.ticks(units), word >> BITS);
            match meter.take(full_at, tick, cost) {
                Ok(next) => match self.swap(word, next) {
                    Ok(_) => return Taken::Yes(Left::new(next, now, &meter)),
                    Err(now) => word = now,
                },
                // Read anew unless the word is what it was: the meter may have changed in between.
                Err(at) => match self.word.load(Acquire) {
                    same if same == word => return Taken::not(&meter, at, cost, full_at, now),
                    other => word = other,
                },
            }
        }
    }

    /// What is left now.
    pub(crate) fn left(&self, now: u64) -> Left {
        self.change(|full_at, meter| (full_at, Left::new(full_at, now, meter)))
    }

    /// When all is there again, and the meter that says so.
    pub(crate) fn full_at(&self) -> (u64, Meter) {
        self.change(|full_at, meter| (full_at, (full_at, *meter)))
    }

    /// Takes units whether they are there or not: what is owed then has to come back first, for those who wait already
    /// too.
    pub(crate) fn charge(&self, units: u32, now: u64) {
        let mut wake = Vec::new();
        let mut line = self.line();
        line.move_back(self.meter().ticks(units), &mut wake);
        self.change(|full_at, meter| (full_at.max(meter.at(now)).saturating_add(meter.ticks(units)), ()));
        drop(line);
        wake_all(wake);
    }

    /// Gives units back; those who wait move up.
    pub(crate) fn refund(&self, units: u32, now: u64) {
        let mut wake = Vec::new();
        let mut line = self.line();
        self.change_in_line(|full_at, meter| {
            full_at.saturating_sub(line.refund(meter.ticks(units), meter, meter.at(now), &mut wake))
        });
        drop(line);
        wake_all(wake);
    }

    /// Takes units, or a place in the line if that comes to its turn until `latest`.
    pub(crate) fn join(&self, units: u32, now: u64, latest: u64) -> Joined {
        let mut line = self.line();
        let mut word = self.word.load(Acquire);
        loop {
            if word & LOCKED != 0 {
                word = self.unlocked();
            }
            let meter = self.meter();
            let (tick, cost, full_at) = (meter.at(now), meter.ticks(units), word >> BITS);
            let (next, waits) = match meter.take(full_at, tick, cost) {
                Ok(next) => (next, false),
                Err(_) if cost > meter.burst => return Joined::Never(Left::new(full_at, now, &meter)),
                Err(at) => {
                    let at = meter.instant(at);
                    if at > latest {
                        return Joined::TooLate(at, Left::new(full_at, now, &meter));
                    }
                    (full_at.max(tick).saturating_add(cost), true)
                }
            };
            match self.swap(word, next) {
                Ok(_) if waits => return Joined::Waits(Place(line.join(units, next)), Left::new(next, now, &meter)),
                Ok(_) => return Joined::Now(Left::new(next, now, &meter)),
                Err(now) => word = now,
            }
        }
    }

    /// Has the turn of this place come? Else the waker is told when it moves.
    pub(crate) fn turn(&self, place: Place, now: u64, waker: &Waker) -> Turn {
        // A waker is the task's own code: it is cloned and dropped outside the lock.
        let waker = waker.clone();
        // The meter does not change while the line is held.
        let (mut line, meter) = (self.line(), self.meter());
        let turn = line.turn(place.0, &meter);
        let is_now = turn <= meter.at(now);
        let old = if is_now { line.go(place.0) } else { line.register(place.0, waker) };
        drop(line);
        drop(old);
        if is_now { Turn::Now } else { Turn::At(meter.instant(turn)) }
    }

    /// It goes, whether its turn has come or not.
    pub(crate) fn go(&self, place: Place) {
        let waker = self.line().go(place.0);
        drop(waker);
    }

    /// All who wait look again.
    pub(crate) fn call_all(&self, wake: &mut Vec<Waker>) {
        self.line().call_all(wake);
    }

    /// Gives a place up; those behind move up.
    pub(crate) fn leave(&self, place: Place, now: u64) {
        let mut wake = Vec::new();
        let mut line = self.line();
        let meter = self.meter();
        let (by, waker) = line.leave(place.0, &meter, meter.at(now), &mut wake);
        self.change_in_line(|full_at, _| full_at.saturating_sub(by));
        drop(line);
        drop(waker);
        wake_all(wake);
    }

    /// Another quota; what was used stays used. Those who wait are to be woken.
    pub(crate) fn set(&self, meter: Meter, now: u64, wake: &mut Vec<Waker>) {
        let mut line = self.line();
        let before = self.meter();
        let mut word = self.word.load(Acquire);
        while let Err(other) = self.word.compare_exchange(word, word | LOCKED, AcqRel, Acquire) {
            word = other;
        }
        self.mul.store(meter.mul, Release);
        self.div.store(meter.div, Release);
        self.unit.store(meter.unit, Release);
        self.burst.store(meter.burst, Release);
        let full_at = before.carry(word >> BITS, now, &meter);
        self.word.store(full_at << BITS | (word + 0b10) & EPOCH, Release);
        line.carry(&before, &meter, now, wake);
    }

    /// Acquire: whoever sees a part of a new meter sees the lock bit too, if it looks at the word after.
    #[inline(always)]
    fn meter(&self) -> Meter {
        Meter {
            mul: self.mul.load(Acquire),
            div: self.div.load(Acquire),
            unit: self.unit.load(Acquire),
            burst: self.burst.load(Acquire),
        }
    }

    #[inline(always)]
    fn swap(&self, word: u64, full_at: u64) -> Result<u64, u64> {
        // Release, so that what was read of the meter was read before.
        self.word.compare_exchange(word, full_at.min(LAST) << BITS | word & EPOCH, AcqRel, Acquire)
    }

    #[cold]
    fn unlocked(&self) -> u64 {
        loop {
            // The meter is being changed: a few stores.
            step_aside();
            let word = self.word.load(Acquire);
            if word & LOCKED == 0 {
                return word;
            }
        }
    }

    /// Changes the word under the meter that is in force.
    fn change<T>(&self, mut change: impl FnMut(u64, &Meter) -> (u64, T)) -> T {
        let mut word = self.word.load(Acquire);
        loop {
            if word & LOCKED != 0 {
                word = self.unlocked();
            }
            let (next, result) = change(word >> BITS, &self.meter());
            match self.swap(word, next) {
                Ok(_) => return result,
                Err(now) => word = now,
            }
        }
    }

    /// As [`change`](Self::change), by whoever holds the line. Nobody else changes what they compute it from.
    fn change_in_line(&self, change: impl FnOnce(u64, &Meter) -> u64) {
        let (before, _) = self.full_at();
        let by = before - change(before, &self.meter()).min(before);
        if by > 0 {
            self.change(|full_at, _| (full_at.saturating_sub(by), ()));
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        task::Wake,
        thread,
        time::Duration,
    };

    use super::*;
    use crate::rate_limit::Quota;

    /// An executor may keep a task in its wakers: with the last one it goes, and with it another place.
    struct Owns(Arc<Bucket>, Place);

    impl Wake for Owns {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Owns {
        fn drop(&mut self) {
            self.0.leave(self.1, 0);
        }
    }

    #[test]
    fn wakers_go_outside_of_the_lock() {
        let ends: [fn(&Bucket, Place); 3] = [
            |bucket, place| assert_ne!(bucket.turn(place, 0, Waker::noop()), Turn::Now),
            |bucket, place| bucket.go(place),
            |bucket, place| bucket.leave(place, 0),
        ];
        for end in ends {
            let (done, is_done) = mpsc::channel();
            thread::spawn(move || {
                let meter = Meter::new(Quota::per(1, Duration::from_secs(60))).unwrap();
                let bucket = Arc::new(Bucket::new(meter, 0));
                let join = || match bucket.join(1, 0, u64::MAX) {
                    Joined::Waits(place, _) => place,
                    other => panic!("{other:?}"),
                };
                assert!(matches!(bucket.join(1, 0, u64::MAX), Joined::Now(_)));
                let place = join();
                bucket.turn(place, 0, &Arc::new(Owns(Arc::clone(&bucket), join())).into());
                end(&bucket, place);
                done.send(()).unwrap();
            });
            // On the real clock: a lock that waits for itself does so for ever.
            is_done.recv_timeout(Duration::from_secs(20)).expect("it hangs");
        }
    }
}
