//! May this call go?

use super::{
    Change, Machine, Refusal, Ticket,
    gate::{Gate, Pass},
    probes::Claim,
};
use crate::{
    circuit_breaker::State,
    rejection::Reason,
    sync::{
        Ordering::{Relaxed, SeqCst},
        step_aside,
    },
    time::Span,
};

/// What is seen at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Not every call is refused.
    Passes,
    Refuses(Refusal),
    /// [Look closer](Machine::is_shut).
    Unclear,
}

impl Machine {
    /// Would every call be refused now? A call that comes after that may still be. The clock is asked where it is open.
    #[inline(always)]
    pub(crate) fn look(&self, now: impl FnOnce() -> u64) -> Look {
        let gate = self.gate();
        if gate.is_plainly_closed() {
            return Look::Passes;
        }
        if gate.is_open() {
            return self.open_refusal(now()).map_or(Look::Passes, Look::Refuses);
        }
        Look::Unclear
    }

    /// The way of nearly all calls: closed, not ramping, and nobody asks how long they take. One look at one word.
    #[inline(always)]
    pub(crate) fn admit_plain(&self) -> Option<Pass> {
        self.gate().plain_pass()
    }

    /// Closed and not ramping. Needs no clock.
    pub(crate) fn admit_closed(&self) -> Option<Ticket> {
        let gate = self.gate();
        if gate.is_closed() && self.ramp_until.load(SeqCst) == 0 {
            Some(Ticket::plain(gate.generation()))
        } else {
            None
        }
    }

    /// As [`look`](Self::look), whatever it may be.
    #[cold]
    #[inline(never)]
    pub(crate) fn is_shut(&self, now: u64) -> Option<Refusal> {
        let gate = self.gate();
        match gate.state() {
            _ if gate.is_shadow() => None,
            State::Closed | State::ForcedClosed => None,
            State::ForcedOpen => Some(Refusal { reason: Reason::ForcedOpen, retry_after: Span::NONE }),
            State::Open => self.open_refusal(now),
            State::HalfOpen => self.probes.are_out(self.limits.probes.load(Relaxed), now).then_some(Refusal::OPEN),
        }
    }

    /// Admits a call or refuses it. `random` is in `0.0..1.0`, and used during a ramp.
    pub(crate) fn admit(&self, now: u64, random: f64) -> (Result<Ticket, Refusal>, Option<Change>) {
        let mut change = None;
        loop {
            let gate = self.gate();
            let plain = Ticket::plain(gate.generation());
            let answer = match gate.state() {
                State::ForcedClosed => Ok(plain),
                State::Closed => self.admit_in_ramp(now, random).map(|()| plain),
                State::ForcedOpen => Err(Refusal { reason: Reason::ForcedOpen, retry_after: Span::NONE }),
                State::Open => match self.open_refusal(now) {
                    Some(refusal) => Err(refusal),
                    None => {
                        let (probe, begun) = self.half_open_with_probe(gate, now);
                        change = change.or(begun);
                        // Whoever else is at it has the probe.
                        probe.ok_or(Refusal::OPEN)
                    }
                },
                State::HalfOpen => {
                    match self.probes.claim(self.limits.probes.load(Relaxed), now, self.lease_end(now)) {
                        Claim::Full => Err(Refusal::OPEN),
                        Claim::GoodHead => {
                            change = change.or(self.probe_ended(gate.generation(), false, now));
                            continue;
                        }
                        Claim::Got(slot) => {
                            // The slot may be of a generation that has just begun. Then it is not for this call.
                            if self.gate().generation() != gate.generation() {
                                self.probes.give_back(slot, now);
                                continue;
                            }
                            Ok(Ticket::probe(gate.generation(), slot))
                        }
                    }
                }
            };
            return (answer, change);
        }
    }

    #[inline(always)]
    fn open_refusal(&self, now: u64) -> Option<Refusal> {
        let until = self.open_until.load(SeqCst);
        // `NOT_YET` is so far away that it is no time at all.
        let retry_after = Span(until.checked_sub(now)?);
        Some(Refusal { reason: Reason::CircuitOpen, retry_after })
    }

    fn admit_in_ramp(&self, now: u64, random: f64) -> Result<(), Refusal> {
        let until = self.ramp_until.load(SeqCst);
        if until == 0 {
            return Ok(());
        }
        if now >= until {
            // Lost to a newer ramp at worst, and then that one is kept.
            if self.ramp_until.compare_exchange(until, 0, SeqCst, SeqCst).is_ok() {
                self.ask_no_more();
            }
            return Ok(());
        }
        let ramp = self.limits.ramp.load(Relaxed).max(1);
        let share = 1.0 - (until - now) as f64 / ramp as f64;
        if random < share { Ok(()) } else { Err(Refusal::OPEN) }
    }

    /// A ramp is over: if nothing else is asked for either, that stands in the gate.
    fn ask_no_more(&self) {
        loop {
            let gate = self.gate();
            // Asked after the gate is read: what changes them changes the gate too, and then this begins again.
            if !gate.is_asking() || self.is_asked() {
                return;
            }
            if gate.is_busy() {
                step_aside();
            } else if self.gate.compare_exchange(gate.0, gate.asking(false).0, SeqCst, SeqCst).is_ok() {
                return;
            }
        }
    }

    /// A trial begins, with this call as its first probe. Without one: a call that saw the trial before, and comes to
    /// its claim only now, has taken the slot; it will see that it was too late, and give it back. What has changed has
    /// changed all the same.
    fn half_open_with_probe(&self, gate: Gate, now: u64) -> (Option<Ticket>, Option<Change>) {
        if self.hold(gate).is_none() {
            return (None, None);
        }
        self.probes.clear();
        let claim = self.probes.claim(self.limits.probes.load(Relaxed), now, self.lease_end(now));
        self.calls.empty();
        let change = self.publish(gate, State::HalfOpen, now);
        let probe = match claim {
            Claim::Got(slot) => Some(Ticket::probe(change.generation, slot)),
            Claim::GoodHead | Claim::Full => None,
        };
        (probe, Some(change))
    }

    fn lease_end(&self, now: u64) -> u64 {
        now.saturating_add(self.limits.probe_lease.load(Relaxed))
    }
}
