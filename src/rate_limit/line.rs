//! Who waits for units, in the order in which they came.
//!
//! A call that waits has taken its units from the future: it may go at the tick that its units end at, less the burst.
//! So newcomers queue up behind it by themselves. When one leaves, what it took is given back, and all behind it move
//! up.

use std::{collections::VecDeque, task::Waker};

use crate::rate_limit::gcra::Meter;

#[derive(Debug, Default)]
pub(crate) struct Line {
    next: u64,
    waiting: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    units: u32,
    /// The tick at which, when it has gone, all will be there again.
    ends: u64,
    waker: Option<Waker>,
}

impl Line {
    /// Somebody came; its units end at this tick.
    pub(crate) fn join(&mut self, units: u32, ends: u64) -> u64 {
        self.next += 1;
        self.waiting.push_back(Entry { id: self.next, units, ends, waker: None });
        self.next
    }

    /// From which tick on it may go.
    pub(crate) fn turn(&mut self, id: u64, meter: &Meter) -> u64 {
        self.find(id).map_or(0, |at| self.waiting[at].ends.saturating_sub(meter.burst))
    }

    /// It has been told when, and wants to be told when that changes. Gives back the waker that is of no use any more.
    pub(crate) fn register(&mut self, id: u64, waker: Waker) -> Option<Waker> {
        match self.find(id) {
            Some(at) => self.waiting[at].waker.replace(waker),
            None => Some(waker),
        }
    }

    /// Its turn has come. Gives back its waker.
    pub(crate) fn go(&mut self, id: u64) -> Option<Waker> {
        self.waiting.remove(self.find(id)?)?.waker
    }

    /// It does not wait any longer. Gives back how many ticks all behind it, and whoever comes next, move up; and its
    /// waker.
    pub(crate) fn leave(&mut self, id: u64, meter: &Meter, now: u64, wake: &mut Vec<Waker>) -> (u64, Option<Waker>) {
        let Some(at) = self.find(id) else { return (0, None) };
        let Some(gone) = self.waiting.remove(at) else { return (0, None) };
        // What has come back by itself since can't be given back once more.
        let by = meter.ticks(gone.units).min(gone.ends.saturating_sub(now));
        self.move_up(at, by, wake);
        (by, gone.waker)
    }

    /// Units that were taken come back: all move up, and whoever comes next. Gives back by how many ticks.
    pub(crate) fn refund(&mut self, ticks: u64, meter: &Meter, now: u64, wake: &mut Vec<Waker>) -> u64 {
        let Some(first) = self.waiting.front() else { return ticks };
        // More than everything can't be there, however much comes back.
        let used = first.ends.saturating_sub(meter.ticks(first.units)).saturating_sub(now);
        let by = ticks.min(used);
        self.move_up(0, by, wake);
        by
    }

    /// More was taken than was there: all have to wait for that much longer.
    pub(crate) fn move_back(&mut self, by: u64, wake: &mut Vec<Waker>) {
        for waiting in &mut self.waiting {
            waiting.ends = waiting.ends.saturating_add(by);
            wake.extend(waiting.waker.take());
        }
    }

    /// Another quota: the places stay, counted in units.
    pub(crate) fn carry(&mut self, from: &Meter, to: &Meter, now: u64, wake: &mut Vec<Waker>) {
        for waiting in &mut self.waiting {
            waiting.ends = from.carry(waiting.ends, now, to);
            wake.extend(waiting.waker.take());
        }
    }

    /// All look again.
    pub(crate) fn call_all(&mut self, wake: &mut Vec<Waker>) {
        wake.extend(self.waiting.iter_mut().filter_map(|waiting| waiting.waker.take()));
    }

    fn move_up(&mut self, behind: usize, by: u64, wake: &mut Vec<Waker>) {
        for waiting in self.waiting.range_mut(behind..) {
            waiting.ends = waiting.ends.saturating_sub(by);
            wake.extend(waiting.waker.take());
        }
    }

    fn find(&self, id: u64) -> Option<usize> {
        self.waiting.binary_search_by_key(&id, |w| w.id).ok()
    }
}
