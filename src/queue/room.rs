//! The waiting room: the gate, the line before it, and the leases of those who are in.

use std::{mem, sync::PoisonError, task::Waker};

use crate::{
    queue::{
        gate::{Gate, View},
        lease::{Lease, Leases},
        line::{Entrant, Fate, Line},
        patience::Patience,
    },
    rejection::Reason,
    sync::{Mutex, MutexGuard},
    wake::wake_all,
};

/// Lets at most `limit` in at once, and keeps those who wait in line. Time is in nanoseconds from anywhere.
///
/// Whoever is in ends with [`leave`](Room::leave), whoever has a place in the line with [`give_up`](Room::give_up),
/// each exactly once.
#[derive(Debug)]
pub(crate) struct Room {
    gate: Gate,
    line: Mutex<Line<Option<Waker>>>,
    leases: Leases,
}

/// What becomes of one who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Is in.
    In,
    /// Has this place in the line.
    Waits(u32),
    Refused(Reason),
}

/// What had become of one who waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing yet.
    Waiting,
    /// Is in, and has to leave.
    In,
    Refused(Reason),
}

/// The wakers of those whose fate was decided. They are other people's code, so they run once the lock is gone.
#[derive(Default)]
struct Wakes {
    // Nearly always one; a vector without elements does not allocate.
    first: Option<Waker>,
    more: Vec<Waker>,
}

impl Room {
    pub(crate) fn new(limit: usize, patience: Patience) -> Self {
        Room { gate: Gate::new(limit), line: Mutex::new(Line::new(patience)), leases: Leases::new() }
    }

    #[inline(always)]
    pub(crate) fn view(&self) -> View {
        self.gate.view()
    }

    /// Goes in if there is room and nobody waits.
    #[inline(always)]
    pub(crate) fn pass(&self) -> bool {
        self.gate.pass()
    }

    /// Goes in whatever the limit says. Gives back how many were in before.
    pub(crate) fn push_in(&self) -> usize {
        self.gate.push_in().in_flight()
    }

    /// Goes out. True where somebody waits: then [`let_in`](Room::let_in) is due, and until then nobody else gets in.
    #[must_use]
    #[inline(always)]
    pub(crate) fn leave(&self) -> bool {
        self.gate.leave().somebody_waits()
    }

    /// Lets in who is next, as far as there is room.
    #[cold]
    pub(crate) fn let_in(&self, now: u64) {
        let mut wakes = Wakes::default();
        let mut line = self.lock();
        self.call_line(&mut line, now, &mut wakes);
        self.unlock(line, wakes);
    }

    /// Goes in, or takes a place in the line, with at most `most` there.
    #[cold]
    pub(crate) fn enter(&self, now: u64, entrant: Entrant, most: usize) -> Entry {
        let mut wakes = Wakes::default();
        let mut line = self.lock();
        // From here on nobody passes, and whoever leaves comes to the lock: what is seen now can't be missed.
        self.gate.shut();
        self.call_line(&mut line, now, &mut wakes);
        let entry = if line.waiting() == 0 && self.gate.view().has_room() {
            self.gate.push_in();
            Entry::In
        } else {
            match line.push(now, entrant, most, &mut |w| wakes.add(w)) {
                Ok(place) => Entry::Waits(place),
                Err(reason) => Entry::Refused(reason),
            }
        };
        self.unlock(line, wakes);
        entry
    }

    /// What has become of the one with this place? Still waiting, it will be woken by this waker.
    pub(crate) fn poll(&self, place: u32, waker: &Waker) -> Option<Left> {
        // Cloned and dropped outside of the lock: it is somebody else's.
        let mut waker = Some(waker.clone());
        let mut line = self.lock();
        let left = match line.fate(place) {
            Fate::Waits => {
                mem::swap(line.payload(place), &mut waker);
                None
            }
            Fate::Granted => Some(Left::In),
            Fate::Refused(reason) => Some(Left::Refused(reason)),
        };
        if left.is_some() {
            line.take_back(place);
        }
        drop(line);
        left
    }

    /// Gives the place in the line back, and says what had become of it. One who is in has to leave.
    #[cold]
    pub(crate) fn give_up(&self, place: u32) -> Left {
        let mut line = self.lock();
        let (fate, waker) = line.take_back(place);
        self.unlock(line, Wakes::default());
        drop(waker);
        match fate {
            Fate::Waits => Left::Waiting,
            Fate::Granted => Left::In,
            Fate::Refused(reason) => Left::Refused(reason),
        }
    }

    /// Sets the limit and gives back the old one. What is in stays in; where there is more room, who waits comes in.
    pub(crate) fn set_limit(&self, limit: usize, now: u64) -> usize {
        let before = self.gate.set_limit(limit);
        if before.somebody_waits() {
            self.let_in(now);
        }
        before.limit()
    }

    pub(crate) fn set_patience(&self, patience: Patience) {
        self.lock().patience = patience;
    }

    /// Lets everybody in who waits, whatever the limit says.
    pub(crate) fn let_all_in(&self) {
        let mut wakes = Wakes::default();
        let mut line = self.lock();
        for _ in 0..line.call_all(&mut |w| wakes.add(w)) {
            self.gate.push_in();
        }
        self.unlock(line, wakes);
    }

    /// Has everybody who waits look again.
    pub(crate) fn call_waiters(&self) {
        let mut wakes = Wakes::default();
        let mut line = self.lock();
        line.payloads().for_each(|waker| wakes.add(waker));
        self.unlock(line, wakes);
    }

    /// How many wait, and since when the one who has waited longest.
    pub(crate) fn waiting(&self) -> (usize, Option<u64>) {
        let line = self.lock();
        (line.waiting(), line.oldest())
    }

    // === leases ===

    /// The response of one who is in goes on. It ends by [`leave_stream`](Room::leave_stream).
    pub(crate) fn begin_stream(&self, now: u64) -> Option<Lease> {
        self.leases.begin(now)
    }

    pub(crate) fn note_frame(&self, lease: &mut Lease, now: u64) {
        self.leases.note(lease, now);
    }

    /// As [`leave`](Room::leave).
    #[must_use]
    pub(crate) fn leave_stream(&self, lease: Lease) -> bool {
        // Else it was put out before.
        self.leases.end(lease) && self.leave()
    }

    /// Has there ever been one whose lease can be over?
    pub(crate) fn has_streams(&self) -> bool {
        self.leases.is_in_use()
    }

    /// Puts out whose reader has stalled for `lease`. Gives back how many.
    pub(crate) fn put_out_stalled(&self, now: u64, lease: impl FnOnce() -> u64) -> usize {
        if !self.has_streams() {
            return 0;
        }
        let expired = self.leases.expire(now, lease);
        for _ in 0..expired {
            if self.leave() {
                self.let_in(now);
            }
        }
        expired
    }

    /// When the next lease may be over, if each lasts for `lease`. Later than now.
    pub(crate) fn next_look(&self, now: u64, lease: u64) -> u64 {
        // One that begins now is over no sooner than that.
        let latest = now.saturating_add(lease);
        if self.leases.is_in_use() { self.leases.next_look().clamp(now.saturating_add(1), latest) } else { latest }
    }

    /// The length of leases has changed.
    pub(crate) fn look_anew(&self) {
        self.leases.look_anew();
    }

    // === the line ===

    /// Calls as many as there is room for. Those who are called are counted here, so that nobody comes in between.
    fn call_line(&self, line: &mut Line<Option<Waker>>, now: u64, wakes: &mut Wakes) {
        while self.gate.view().has_room() && line.call(now, &mut |w| wakes.add(w)) {
            self.gate.push_in();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Line<Option<Waker>>> {
        // Nothing in there panics, and what it holds is whole between any two steps.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unlock(&self, line: MutexGuard<'_, Line<Option<Waker>>>, wakes: Wakes) {
        if line.waiting() == 0 {
            self.gate.open();
        }
        drop(line);
        wake_all(wakes.first.into_iter().chain(wakes.more));
    }
}

impl Wakes {
    fn add(&mut self, waker: Option<Waker>) {
        match waker {
            Some(waker) if self.first.is_none() => self.first = Some(waker),
            waker => self.more.extend(waker),
        }
    }
}
