//! How did a call end, and what follows from it?

use super::{
    Change, Machine, Ticket,
    calls::{Run, Shape},
    gate::Gate,
    probes::{Returned, Slot},
};
use crate::{
    circuit_breaker::State,
    outcome::Outcome,
    sync::{
        Ordering::{Relaxed, SeqCst},
        step_aside,
    },
    window::{Sample, Sums, time::Tick},
};

/// What became of a success on the short way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Booked {
    Done,
    /// Nothing was booked: [`settle`](Machine::settle) it.
    NotYet,
    /// It was booked, and could have crossed a threshold: [`judge`](Machine::judge).
    ToBeJudged,
    /// It has its turn, and there are failures or slow calls: [`among_others`](Machine::among_others).
    AmongOthers {
        epoch: u32,
        n: u32,
        head: u32,
    },
}

impl Machine {
    /// Has the window ticks?
    #[inline(always)]
    pub(crate) fn has_ticks(&self) -> bool {
        self.calls.has_ticks()
    }

    /// The length of the ticks of the window. One of calls has none, and needs no clock.
    #[inline(always)]
    pub(crate) fn tick_length(&self) -> Option<u64> {
        self.calls.tick_length()
    }

    /// The way of nearly all results where the window has ticks: a success of a plain call of this generation, which still
    /// is, and is closed. `tick` turns their length into the number of the one that runs, if that is at hand.
    #[inline(always)]
    pub(crate) fn succeeded_in_tick(
        &self,
        generation: u32,
        stripe: usize,
        tick: impl FnOnce(u64) -> Option<u64>,
    ) -> Booked {
        let before = self.gate();
        let Some((ring, offset, length)) = self.calls.ticks() else { return Booked::NotYet };
        if before != self.gate() || !before.is_closed_in(generation) {
            return Booked::NotYet;
        }
        if self.calls.has_run() {
            return Booked::NotYet;
        }
        let Some(number) = tick(length) else { return Booked::NotYet };
        match ring.record_good(Tick::numbered(offset, number), stripe) {
            Some(false) => Booked::Done,
            Some(true) => Booked::ToBeJudged,
            None => Booked::NotYet,
        }
    }

    /// The same where the window is one of calls.
    #[inline(always)]
    pub(crate) fn succeeded_in_turn(&self, generation: u32) -> Booked {
        let before = self.gate();
        let Some((ring, epoch, n)) = self.calls.turns() else { return Booked::NotYet };
        if before != self.gate() || !before.is_closed_in(generation) {
            return Booked::NotYet;
        }
        if self.calls.has_run() {
            return Booked::NotYet;
        }
        match ring.record_good(epoch, n) {
            Some(head) => Booked::AmongOthers { epoch, n, head },
            None => Booked::Done,
        }
    }

    /// Books the rest of a success that has others beside it, and judges: does that trip it?
    pub(crate) fn among_others(&self, generation: u32, epoch: u32, n: u32, head: u32) -> bool {
        self.calls.replace_by_good(epoch, n, head);
        // A window of calls asks for no time; if it has become another since, its ticks are judged by their next call.
        self.steady(generation).is_some_and(|(_, shape)| !shape.has_ticks() && self.judge(generation, 0))
    }

    /// Do the figures of this generation trip it? Then [`trip`](Self::trip).
    pub(crate) fn judge(&self, generation: u32, now: u64) -> bool {
        self.steady(generation)
            .is_some_and(|(_, shape)| self.limits.rate_trips(self.calls.add_up(shape, now, self.limits.minimum())))
    }

    /// A success as the shell books it: on the short way where that will do.
    #[cfg(any(test, loom))]
    pub(crate) fn succeed(&self, ticket: Ticket, now: u64, stripe: usize) -> Option<Change> {
        let generation = ticket.generation;
        let booked = match self.tick_length() {
            _ if !ticket.is_plain() => Booked::NotYet,
            Some(_) => self.succeeded_in_tick(generation, stripe, |length| Some(now / length)),
            None => self.succeeded_in_turn(generation),
        };
        let trips = match booked {
            Booked::Done => false,
            Booked::AmongOthers { epoch, n, head } => self.among_others(generation, epoch, n, head),
            Booked::ToBeJudged => self.judge(generation, now),
            Booked::NotYet => return self.settle(ticket, Outcome::Success, false, now, stripe),
        };
        if trips { self.trip(ticket, now) } else { None }
    }

    /// Opens it, if it is still closed in the generation of this ticket.
    #[cold]
    pub(crate) fn trip(&self, ticket: Ticket, now: u64) -> Option<Change> {
        loop {
            let (gate, shape) = self.steady(ticket.generation)?;
            if gate.state() != State::Closed {
                return None;
            }
            // Lost to an update at worst: then once more.
            if let Some(change) = self.open(gate, shape, now) {
                return Some(change);
            }
        }
    }

    /// The gate and the window, of one piece; `None` if this generation is over. Waits for the few instructions in which
    /// another thread changes them: a result that comes just then counts too.
    pub(super) fn steady(&self, generation: u32) -> Option<(Gate, Shape)> {
        loop {
            let before = self.gate();
            if before.generation() != generation {
                return None;
            }
            let shape = self.calls.shape();
            if !before.is_busy() && self.gate() == before {
                return Some((before, shape));
            }
            step_aside();
        }
    }

    fn trips(&self, sums: Option<Sums>, run: u32) -> bool {
        sums.is_some_and(|s| self.limits.rate_trips(s)) || run > 0 && self.limits.consecutive_trips(run)
    }

    /// Books a result. Not for calls that say nothing: those are [`release`](Self::release)d. `stripe` is any number
    /// that is the same for one thread.
    pub(crate) fn settle(
        &self,
        ticket: Ticket,
        outcome: Outcome,
        slow: bool,
        now: u64,
        stripe: usize,
    ) -> Option<Change> {
        if !ticket.is_counted() {
            return None;
        }
        let Some((gate, shape)) = self.steady(ticket.generation) else {
            self.release(ticket, now);
            return None;
        };
        if let Some(slot) = ticket.slot() {
            return self.settle_probe(slot, shape, gate, outcome, slow, now);
        }
        let (sums, run) = self.record(shape, outcome, slow, now, stripe);
        let trips = self.trips(sums, run);
        if trips && gate.state() == State::Closed { self.trip(ticket, now) } else { None }
    }

    /// The call ended and says nothing: its slot is free again. A probe that had outstayed its lease after a good head has
    /// decided by that.
    pub(crate) fn release(&self, ticket: Ticket, now: u64) -> Option<Change> {
        let slot = ticket.slot()?;
        if self.gate().generation() != ticket.generation {
            return None;
        }
        match self.probes.give_back(slot, now)? {
            Returned::GoodHead => self.probe_ended(ticket.generation, false, now),
            Returned::InTime | Returned::Late => None,
        }
    }

    /// The head of a response has come and is good, and its body may take long.
    pub(crate) fn good_head(&self, ticket: Ticket) {
        // A lease does not say whose it was: two generations may have begun in the same instant.
        if let Some(slot) = ticket.slot()
            && self.gate().generation() == ticket.generation
        {
            self.probes.good_head(slot);
        }
    }

    fn record(&self, shape: Shape, outcome: Outcome, slow: bool, now: u64, stripe: usize) -> (Option<Sums>, u32) {
        let run = match outcome {
            Outcome::Failure => Run::GoesOn,
            Outcome::Throttled if self.limits.throttled_is_failure.load(Relaxed) => Run::GoesOn,
            Outcome::Throttled => Run::Keeps,
            _ => Run::Ends,
        };
        let failed = matches!(outcome, Outcome::Failure | Outcome::Throttled);
        let (sums, failures) =
            self.calls.record(shape, now, stripe, Sample { failed, slow }, run, self.limits.minimum());
        // A run that a throttled call has not lengthened was judged when it got that long.
        (sums, if run == Run::GoesOn { failures } else { 0 })
    }

    #[cold]
    fn settle_probe(
        &self,
        slot: Slot,
        shape: Shape,
        gate: Gate,
        outcome: Outcome,
        slow: bool,
        now: u64,
    ) -> Option<Change> {
        let outcome = match self.probes.give_back(slot, now)? {
            Returned::Late => return None,
            Returned::GoodHead => Outcome::Success,
            Returned::InTime => outcome,
        };
        self.record(shape, outcome, slow, now, 0);
        self.probe_ended(gate.generation(), slow || outcome != Outcome::Success, now)
    }

    pub(super) fn probe_ended(&self, generation: u32, failed: bool, now: u64) -> Option<Change> {
        loop {
            let (gate, shape) = self.steady(generation)?;
            if gate.state() != State::HalfOpen {
                return None;
            }
            let after = gate.with_probe(failed);
            let needed = self.limits.successes_to_close.load(Relaxed);
            let bearable = self.limits.probes.load(Relaxed).saturating_sub(needed);
            let change = if after.good() >= needed {
                self.close(gate, now)
            } else if after.failed() > bearable {
                self.open(gate, shape, now)
            } else if self.gate.compare_exchange(gate.0, after.0, SeqCst, SeqCst).is_ok() {
                return None;
            } else {
                None
            };
            if change.is_some() {
                return change;
            }
        }
    }
}
