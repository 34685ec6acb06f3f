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
    window::{Sample, Sums},
};

impl Machine {
    /// The way of nearly all results: of a call that was admitted while it was closed, and it still is. Gives back
    /// whether that trips it. The time is asked for once it is known what the window is: one of calls needs none, and an
    /// update may make it another at any moment.
    #[inline(always)]
    pub(crate) fn record_closed(
        &self,
        ticket: Ticket,
        outcome: Outcome,
        now: impl FnOnce() -> u64,
        stripe: usize,
    ) -> Option<bool> {
        let before = self.gate();
        let shape = self.calls.shape();
        let steady = before == self.gate() && before.is_closed_in(ticket.generation);
        if !steady || ticket.slot_number != 0 || ticket.lease.is_some() {
            return None;
        }
        let now = if shape.needs_time() { now() } else { 0 };
        let (sums, run) = self.record(shape, outcome, false, now, stripe);
        Some(self.trips(sums, run))
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

    #[inline]
    fn trips(&self, sums: Option<Sums>, run: u32) -> bool {
        sums.is_some_and(|s| self.limits.rate_trips(s)) || run > 0 && self.limits.consecutive_trips(run)
    }

    /// Books a result. Not for calls that say nothing: those are [`release`](Self::release)d. `stripe` is any number
    /// that is the same for one thread.
    #[inline]
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

    #[inline(always)]
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
