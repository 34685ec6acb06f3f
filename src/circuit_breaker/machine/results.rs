//! How did a call end, and what follows from it?

use super::{
    Change, Machine, Ticket,
    calls::{Run, Shape},
    gate::{Gate, Pass},
    probes::{Returned, Slot},
};
use crate::{
    circuit_breaker::State,
    outcome::Outcome,
    sync::{
        Ordering::{Relaxed, SeqCst},
        step_aside,
    },
    window::{Sample, Sums, count::Turn},
};

/// What became of a success on the short way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Booked {
    Done,
    /// Nothing was booked: [`settle`](Machine::settle) it.
    NotYet,
    /// It was booked, and could have crossed a threshold: [`judge`](Machine::judge).
    ToBeJudged,
    /// It has its turn, and something has changed meanwhile: [`among_others`](Machine::among_others).
    AmongOthers(Turn),
}

impl Machine {
    /// The pass that a call of this generation would get now, whatever is asked of it.
    pub(crate) fn pass_of(&self, generation: u32) -> Option<Pass> {
        let gate = self.gate();
        gate.is_closed_in(generation).then(|| gate.pass())
    }

    /// The way of nearly all results where the window has ticks: a success that finds the gate as it was. `stamp` is
    /// that of the tick that runs, if it is at hand, under the number of the pass.
    #[inline(always)]
    pub(crate) fn succeeded_in_tick(&self, pass: Pass, stripe: usize, stamp: impl FnOnce() -> Option<u64>) -> Booked {
        if !self.gate().is(pass) {
            return Booked::NotYet;
        }
        let Some(stamp) = stamp() else { return Booked::NotYet };
        let Some(ring) = self.calls.time() else { return Booked::NotYet };
        match ring.record_good(stamp, stripe) {
            Some(false) => Booked::Done,
            Some(true) => Booked::ToBeJudged,
            None => Booked::NotYet,
        }
    }

    /// The same where the window is one of calls.
    #[inline(always)]
    pub(crate) fn succeeded_in_turn(&self, pass: Pass) -> Booked {
        let Some(turn) = self.take_turn(|gate| gate.is(pass)) else { return Booked::NotYet };
        // And again, now that it counts. Others that come from now on will judge, and see it.
        if self.gate().is(pass) { Booked::Done } else { Booked::AmongOthers(turn) }
    }

    /// Takes a turn as long as the gate is as it has to be.
    #[inline(always)]
    fn take_turn(&self, is_right: impl Fn(Gate) -> bool) -> Option<Turn> {
        let ring = self.calls.count();
        // The gate is asked after the turn was read, and so says whose it is; a window that begins anew has new turns.
        let mut turn = ring.turn();
        loop {
            if !is_right(self.gate()) {
                return None;
            }
            match ring.take(turn) {
                Ok(()) => return Some(turn),
                Err(next) => turn = next?,
            }
        }
    }

    /// The way of a success that has others beside it and no run to end, in a window of calls, which needs no clock:
    /// does it trip? `None`: nothing was booked.
    pub(crate) fn succeeded_among_others(&self, pass: Pass) -> Option<bool> {
        if pass.has_ticks() || self.calls.has_run() {
            return None;
        }
        let turn = self.take_turn(|gate| gate.pass() == pass)?;
        let generation = pass.generation();
        Some(self.among_others(generation, turn) || self.tell_of_others(generation) && self.judge_turns(generation))
    }

    /// Books the rest of a success that has others beside it, and judges: does that trip it?
    pub(crate) fn among_others(&self, generation: u32, turn: Turn) -> bool {
        self.calls.count().make_good(turn);
        self.judge_turns(generation)
    }

    fn judge_turns(&self, generation: u32) -> bool {
        // A window of calls asks for no time; if it has become another since, its ticks are judged by their next call.
        self.steady(generation).is_some_and(|(_, shape)| !shape.has_ticks() && self.judge(generation, 0))
    }

    /// Says in the gate whether there are others, after something was booked. True: nobody had said so, and whoever was
    /// booked meanwhile has not seen them. Then it is to be judged once more.
    fn tell_of_others(&self, generation: u32) -> bool {
        loop {
            let Some((gate, shape)) = self.steady(generation) else { return false };
            let others = self.calls.has_others(shape);
            if gate.state() != State::Closed || gate.has_others() == others {
                return false;
            }
            let told = self.gate.compare_exchange(gate.0, gate.with_others(others).0, SeqCst, SeqCst).is_ok();
            if told && others {
                return true;
            }
            // Where it says that there are none it looks again: some may have come that found it said already.
        }
    }

    /// The window as it is under this pass, if that is so now: what the stamp of a tick is made of.
    pub(crate) fn shape_of(&self, generation: u32) -> Option<(Pass, Shape)> {
        self.steady(generation).map(|(gate, shape)| (gate.pass(), shape))
    }

    /// Do the figures of this generation trip it? Then [`trip`](Self::trip).
    pub(crate) fn judge(&self, generation: u32, now: u64) -> bool {
        self.steady(generation)
            .is_some_and(|(_, shape)| self.limits.rate_trips(self.calls.add_up(shape, now, self.limits.minimum())))
    }

    /// A success as the shell books it: on the short way where that will do.
    #[cfg(any(test, loom))]
    pub(crate) fn succeed(&self, pass: Pass, now: u64, stripe: usize) -> Option<Change> {
        let generation = pass.generation();
        let stamp = || {
            let (its, shape) = self.shape_of(generation).filter(|(its, _)| *its == pass)?;
            debug_assert_eq!(its.has_ticks(), shape.has_ticks());
            Some(shape.tick(now / shape.tick_length()?).stamp())
        };
        let booked = match pass.has_ticks() {
            true => self.succeeded_in_tick(pass, stripe, stamp),
            false => self.succeeded_in_turn(pass),
        };
        let ticket = Ticket::plain(generation);
        let trips = match booked {
            Booked::Done => false,
            Booked::AmongOthers(turn) => self.among_others(generation, turn),
            Booked::ToBeJudged => self.judge(generation, now),
            Booked::NotYet => match self.succeeded_among_others(pass) {
                Some(trips) => trips,
                None => return self.settle(ticket, Outcome::Success, false, now, stripe),
            },
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

    /// The gate and the window, of one piece; `None` if this generation is over. Waits for the few instructions in
    /// which another thread changes them: a result that comes just then counts too.
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
        let trips =
            self.trips(sums, run) || self.tell_of_others(ticket.generation) && self.judge(ticket.generation, now);
        if trips && gate.state() == State::Closed { self.trip(ticket, now) } else { None }
    }

    /// The call ended and says nothing: its slot is free again. A probe that had outstayed its lease after a good head
    /// has decided by that.
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
    pub(crate) fn good_head(&self, ticket: Ticket, now: impl FnOnce() -> u64) {
        // A lease does not say whose it was: two generations may have begun in the same instant.
        if let Some(slot) = ticket.slot()
            && self.gate().generation() == ticket.generation
        {
            self.probes.good_head(slot, now());
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
        let (outcome, slow) = match self.probes.give_back(slot, now)? {
            Returned::Late => return None,
            // By its head, of which nothing is slow.
            Returned::GoodHead => (Outcome::Success, false),
            Returned::InTime => (outcome, slow),
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
            // By this probe: where the numbers have changed meanwhile, a bad one does not win the trial, nor a good one
            // lose it.
            let change = if !failed && after.good() >= needed {
                self.close(gate, now)
            } else if failed && after.failed() > bearable {
                self.open(gate, shape, now)
            } else if self.gate.compare_exchange(gate.0, after.0, SeqCst, SeqCst).is_ok() {
                return None;
            } else {
                // Another one has ended meanwhile.
                continue;
            };
            if change.is_some() {
                return change;
            }
        }
    }
}
