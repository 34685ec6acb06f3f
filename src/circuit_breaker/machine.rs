//! The states of a circuit breaker and the moves between them: pure, and without a lock.
//!
//! Time comes in as nanoseconds since some fixed instant, randomness as a number. What changes comes out as a
//! [`Change`], for the shell to report. See [`gate`](super::gate) for how a state is one word, and
//! [`window`](crate::window) for how results of an earlier generation are kept out of a later one.

use std::num::NonZeroU64;

use crate::{
    circuit_breaker::{
        CircuitBreakerConfig, State,
        calls::{Calls, Run, Shape},
        gate::Gate,
        limits::{Layout, Limits},
        probes::{Claim, Probes, Returned, Slot},
    },
    outcome::Outcome,
    rejection::Reason,
    sync::{
        AtomicU32, AtomicU64,
        Ordering::{Relaxed, SeqCst},
        step_aside,
    },
    window::{Sample, Sums},
};

/// The end of an open time that has not been worked out yet.
const NOT_YET: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Machine {
    gate: AtomicU64,
    /// When a ramp ends; zero while there is none.
    ramp_until: AtomicU64,
    limits: Limits,
    calls: Calls,
    probes: Probes,
    since: AtomicU64,
    open_until: AtomicU64,
    /// Openings since it was last closed.
    openings: AtomicU32,
    opened_by: Figures,
}

/// The right to run one call, in one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    generation: u32,
    // A slot in two parts, because an `Option<Slot>` would make a ticket larger by half.
    slot_number: u32,
    lease: Option<NonZeroU64>,
}

impl Ticket {
    /// Of a call that was not admitted. Whatever becomes of it is not booked.
    pub(crate) const UNCOUNTED: Ticket = Ticket { generation: 0, slot_number: u32::MAX, lease: None };

    #[inline]
    pub(crate) fn is_counted(self) -> bool {
        self.slot_number != u32::MAX
    }

    #[inline]
    fn plain(gate: Gate) -> Self {
        Ticket { generation: gate.generation(), slot_number: 0, lease: None }
    }

    fn probe(generation: u32, slot: Slot) -> Self {
        Ticket { generation, slot_number: slot.number, lease: Some(slot.lease) }
    }

    fn slot(self) -> Option<Slot> {
        self.lease.map(|lease| Slot { number: self.slot_number, lease })
    }
}

/// Why a call may not run now, and in how many nanoseconds it may, if that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) retry_after: Option<u64>,
}

/// A move from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) from: State,
    pub(crate) to: State,
    /// The generation that has begun.
    pub(crate) generation: u32,
    /// Where `to` is `Open`: how often it had opened since it was last closed.
    pub(crate) opening: u32,
}

/// What can be seen from outside, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) since: u64,
    pub(crate) open_until: Option<u64>,
    pub(crate) sums: Sums,
    pub(crate) consecutive: u32,
    pub(crate) probes_out: u32,
    pub(crate) minimum: u64,
}

impl Machine {
    pub(crate) fn new(config: &CircuitBreakerConfig, now: u64) -> Self {
        Machine {
            gate: AtomicU64::new(Gate::new(0, State::Closed).0),
            ramp_until: AtomicU64::new(0),
            limits: Limits::new(config),
            calls: Calls::new(Layout::from(config.window)),
            probes: Probes::new(),
            since: AtomicU64::new(now),
            open_until: AtomicU64::new(0),
            openings: AtomicU32::new(0),
            opened_by: Figures::default(),
        }
    }

    #[inline]
    fn gate(&self) -> Gate {
        Gate(self.gate.load(SeqCst))
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    // === may this call go? ===

    /// The way of nearly all calls: closed and not ramping. Needs no clock.
    #[inline]
    pub(crate) fn admit_closed(&self) -> Option<Ticket> {
        let gate = self.gate();
        let admits = gate.is_closed() && self.ramp_until.load(SeqCst) == 0;
        admits.then(|| Ticket::plain(gate))
    }

    /// Would every call be refused now? A call that comes after `None` may still be.
    pub(crate) fn is_shut(&self, now: u64) -> Option<Refusal> {
        let gate = self.gate();
        match gate.state() {
            State::Closed | State::ForcedClosed => None,
            State::ForcedOpen => Some(Refusal { reason: Reason::ForcedOpen, retry_after: None }),
            State::Open => self.open_refusal(now),
            State::HalfOpen => (self.probes.out(now) >= self.limits.probes.load(Relaxed)).then_some(Refusal::OPEN),
        }
    }

    /// Admits a call or refuses it. `random` is in `0.0..1.0`, and used during a ramp.
    pub(crate) fn admit(&self, now: u64, random: f64) -> (Result<Ticket, Refusal>, Option<Change>) {
        let mut change = None;
        loop {
            let gate = self.gate();
            let plain = Ticket::plain(gate);
            let answer = match gate.state() {
                State::ForcedClosed => Ok(plain),
                State::Closed => self.admit_in_ramp(now, random).map(|()| plain),
                State::ForcedOpen => Err(Refusal { reason: Reason::ForcedOpen, retry_after: None }),
                State::Open => match self.open_refusal(now) {
                    Some(refusal) => Err(refusal),
                    None => {
                        let begun = self.half_open_with_probe(gate, now);
                        change = change.or(begun.map(|(_, c)| c));
                        // Whoever else is at it has the probe.
                        begun.map(|(ticket, _)| ticket).ok_or(Refusal::OPEN)
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

    fn open_refusal(&self, now: u64) -> Option<Refusal> {
        let until = self.open_until.load(SeqCst);
        let retry_after = (until != NOT_YET).then(|| until.saturating_sub(now));
        (now <= until).then_some(Refusal { reason: Reason::CircuitOpen, retry_after })
    }

    fn admit_in_ramp(&self, now: u64, random: f64) -> Result<(), Refusal> {
        let until = self.ramp_until.load(SeqCst);
        if until == 0 {
            return Ok(());
        }
        if now >= until {
            // Lost to a newer ramp at worst, and then that one is kept.
            let _ = self.ramp_until.compare_exchange(until, 0, SeqCst, SeqCst);
            return Ok(());
        }
        let ramp = self.limits.ramp.load(Relaxed).max(1);
        let share = 1.0 - (until - now) as f64 / ramp as f64;
        if random < share { Ok(()) } else { Err(Refusal::OPEN) }
    }

    fn half_open_with_probe(&self, gate: Gate, now: u64) -> Option<(Ticket, Change)> {
        self.hold(gate)?;
        self.probes.clear();
        let claim = self.probes.claim(1, now, self.lease_end(now));
        self.calls.empty();
        let change = self.publish(gate, State::HalfOpen, now);
        // All slots are free, so this one is.
        let Claim::Got(slot) = claim else { return None };
        Some((Ticket::probe(change.generation, slot), change))
    }

    fn lease_end(&self, now: u64) -> u64 {
        now.saturating_add(self.limits.probe_lease.load(Relaxed))
    }

    // === how did it end? ===

    /// The way of nearly all results: of a call that was admitted while it was closed, and it still is. Gives back
    /// whether that trips it. With a window of calls `now` is not looked at ([`needs_time`](Self::needs_time)).
    #[inline(always)]
    pub(crate) fn record_closed(&self, ticket: Ticket, outcome: Outcome, now: u64, stripe: usize) -> Option<bool> {
        // NOTE: in this order, as in `settle`.
        let shape = self.calls.shape();
        if self.gate() != Gate::new(ticket.generation, State::Closed)
            || ticket.slot_number != 0
            || ticket.lease.is_some()
        {
            return None;
        }
        let (sums, run) = self.record(shape, outcome, false, now, stripe);
        Some(self.trips(sums, run))
    }

    /// Does a result need a time at all?
    #[inline]
    pub(crate) fn needs_time(&self) -> bool {
        self.calls.shape().needs_time()
    }

    /// Opens it, if it is still closed in the generation of this ticket.
    #[cold]
    pub(crate) fn trip(&self, ticket: Ticket, now: u64) -> Option<Change> {
        let shape = self.calls.shape();
        let gate = self.gate();
        let here = gate.generation() == ticket.generation && gate.state() == State::Closed;
        if here { self.open(gate, shape, now) } else { None }
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
        // NOTE: in this order. If the gate is still this generation's after the shape was read, so is the shape.
        let shape = self.calls.shape();
        let gate = self.gate();
        if gate.generation() != ticket.generation || gate.is_busy() {
            self.release(ticket, now);
            return None;
        }
        if let Some(slot) = ticket.slot() {
            return self.settle_probe(slot, shape, gate, outcome, slow, now);
        }
        let (sums, run) = self.record(shape, outcome, slow, now, stripe);
        let trips = self.trips(sums, run);
        if trips && gate.state() == State::Closed { self.open(gate, shape, now) } else { None }
    }

    /// The call ended and says nothing: its slot is free again.
    pub(crate) fn release(&self, ticket: Ticket, now: u64) {
        if let Some(slot) = ticket.slot()
            && self.gate().generation() == ticket.generation
        {
            self.probes.give_back(slot, now);
        }
    }

    /// The head of a response has come and is good, and its body may take long.
    pub(crate) fn good_head(&self, ticket: Ticket) {
        if let Some(slot) = ticket.slot() {
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

    fn probe_ended(&self, generation: u32, failed: bool, now: u64) -> Option<Change> {
        loop {
            let shape = self.calls.shape();
            let gate = self.gate();
            if gate.generation() != generation || gate.is_busy() || gate.state() != State::HalfOpen {
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

    // === moves ===

    fn open(&self, gate: Gate, shape: Shape, now: u64) -> Option<Change> {
        self.hold(gate)?;
        self.opened_by.store(self.calls.sums(shape, now), self.calls.consecutive(shape));
        self.open_until.store(NOT_YET, SeqCst);
        let opening = self.openings.load(SeqCst);
        self.openings.store(opening.saturating_add(1), SeqCst);
        Some(Change { opening, ..self.publish(gate, State::Open, now) })
    }

    fn close(&self, gate: Gate, now: u64) -> Option<Change> {
        self.hold(gate)?;
        self.calls.empty();
        self.openings.store(0, SeqCst);
        let ramp = self.limits.ramp.load(Relaxed);
        self.ramp_until.store(if ramp == 0 { 0 } else { now.saturating_add(ramp) }, SeqCst);
        Some(self.publish(gate, State::Closed, now))
    }

    /// Says how long this opening lasts. It was worked out outside, because that may run code of the user's.
    pub(crate) fn stay_open(&self, generation: u32, until: u64) {
        if self.gate().generation() == generation {
            let _ = self.open_until.compare_exchange(NOT_YET, until.min(NOT_YET - 1), SeqCst, SeqCst);
        }
    }

    /// Moves by hand. `Ok(None)`: it is there already. `Err`: not from this state.
    pub(crate) fn move_by_hand(&self, to: State, now: u64) -> Result<Option<Change>, State> {
        let gate = self.seize();
        let from = gate.state();
        let legal = to != State::HalfOpen || from == State::Open;
        if from == to || !legal {
            self.let_go(gate);
            return if from == to { Ok(None) } else { Err(from) };
        }
        if to == State::HalfOpen {
            self.probes.clear();
            self.calls.empty();
        }
        self.ramp_until.store(0, SeqCst);
        Ok(Some(self.publish(gate, to, now)))
    }

    /// Closed, as if it were new. `None` if it was closed before.
    pub(crate) fn reset(&self, now: u64) -> Option<Change> {
        let gate = self.seize();
        self.calls.empty();
        self.openings.store(0, SeqCst);
        self.ramp_until.store(0, SeqCst);
        let change = self.publish(gate, State::Closed, now);
        (change.from != State::Closed).then_some(change)
    }

    /// Takes new numbers and keeps what the window knows. Calls that are running keep their tickets.
    pub(crate) fn update(&self, config: &CircuitBreakerConfig, now: u64) {
        let gate = self.seize();
        self.calls.change(Layout::from(config.window), now);
        self.limits.store(config);
        self.let_go(gate);
    }

    /// Takes the gate if it still reads `gate`.
    fn hold(&self, gate: Gate) -> Option<()> {
        if gate.is_busy() {
            return None;
        }
        self.gate.compare_exchange(gate.0, gate.busy().0, SeqCst, SeqCst).ok().map(drop)
    }

    /// Takes the gate whatever it reads. Only for hands, which can wait for a few instructions of another thread.
    fn seize(&self) -> Gate {
        loop {
            let gate = self.gate();
            if self.hold(gate).is_some() {
                return gate;
            }
            step_aside();
        }
    }

    fn let_go(&self, gate: Gate) {
        self.gate.store(gate.0, SeqCst);
    }

    /// Lets go of the gate into the next generation.
    fn publish(&self, gate: Gate, to: State, now: u64) -> Change {
        self.since.store(now, SeqCst);
        let next = gate.next(to);
        self.gate.store(next.0, SeqCst);
        Change { from: gate.state(), to, generation: next.generation(), opening: 0 }
    }

    // === looking ===

    pub(crate) fn status(&self, now: u64) -> Status {
        loop {
            let shape = self.calls.shape();
            let gate = self.gate();
            let state = gate.state();
            let open = state == State::Open;
            let until = self.open_until.load(SeqCst);
            let (sums, consecutive) = match open {
                true => self.opened_by.load(),
                false => (self.calls.sums(shape, now), self.calls.consecutive(shape)),
            };
            let status = Status {
                state,
                since: self.since.load(SeqCst),
                open_until: Some(until).filter(|u| open && *u != NOT_YET),
                sums,
                consecutive,
                probes_out: if state == State::HalfOpen { self.probes.out(now) } else { 0 },
                minimum: self.limits.minimum(),
            };
            if !gate.is_busy() && self.gate().generation() == gate.generation() {
                return status;
            }
            step_aside();
        }
    }
}

impl Refusal {
    pub(crate) const OPEN: Refusal = Refusal { reason: Reason::CircuitOpen, retry_after: None };
}

/// The figures that opened it. Written only by whoever holds the gate.
#[derive(Debug, Default)]
struct Figures {
    calls: AtomicU64,
    failures: AtomicU64,
    slow: AtomicU64,
    consecutive: AtomicU32,
}

impl Figures {
    fn store(&self, sums: Sums, consecutive: u32) {
        self.calls.store(sums.calls, SeqCst);
        self.failures.store(sums.failures, SeqCst);
        self.slow.store(sums.slow, SeqCst);
        self.consecutive.store(consecutive, SeqCst);
    }

    fn load(&self) -> (Sums, u32) {
        let [calls, failures, slow] = [&self.calls, &self.failures, &self.slow].map(|a| a.load(SeqCst));
        (Sums { calls, failures, slow }, self.consecutive.load(SeqCst))
    }
}
