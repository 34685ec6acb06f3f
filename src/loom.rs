//! The machine of the circuit breaker, for `tests/loom.rs` alone: it is compiled only under `--cfg loom`.
#![allow(missing_docs, missing_debug_implementations, clippy::missing_errors_doc, reason = "not for users")]

use crate::{
    circuit_breaker::{
        CircuitBreakerConfig, State,
        machine::{Machine, Ticket},
    },
    outcome::Outcome,
    window::{
        Sample,
        time::{ANEW, Tick, TimeRing},
    },
};

pub struct Breaker(Machine);

#[derive(Clone, Copy)]
pub struct Admitted(Ticket);

impl Breaker {
    pub fn new(config: &CircuitBreakerConfig) -> Self {
        Breaker(Machine::new(config, 0))
    }

    pub fn admit(&self, now: u64) -> Option<Admitted> {
        self.0.admit_closed().or_else(|| self.0.admit(now, 0.5).0.ok()).map(Admitted)
    }

    /// Gives back whether this result changed the state.
    pub fn settle(&self, call: Admitted, outcome: Outcome, now: u64, stripe: usize) -> bool {
        let change = self.0.settle(call.0, outcome, false, now, stripe);
        if let Some(change) = change.filter(|c| c.to == State::Open) {
            self.0.stay_open(change.generation, now + 10);
        }
        change.is_some()
    }

    pub fn release(&self, call: Admitted, now: u64) {
        self.0.release(call.0, now);
    }

    pub fn force_closed(&self, now: u64) {
        let _ = self.0.move_by_hand(State::ForcedClosed, now);
    }

    pub fn update(&self, config: &CircuitBreakerConfig, now: u64) {
        self.0.update(config, now);
    }

    pub fn reset(&self, now: u64) {
        self.0.reset(now);
    }

    pub fn state(&self, now: u64) -> State {
        self.0.status(now).state
    }

    pub fn calls(&self, now: u64) -> (u64, u64) {
        let sums = self.0.status(now).sums;
        (sums.calls, sums.failures)
    }

    pub fn probes_out(&self, now: u64) -> u32 {
        self.0.status(now).probes_out
    }
}

pub struct Ring(TimeRing);

impl Ring {
    #[allow(clippy::new_without_default, reason = "not for users")]
    pub fn new() -> Self {
        Ring(TimeRing::new())
    }

    /// A tick is one unit of time.
    pub fn record(&self, epoch: u32, now: u64, stripe: usize, failed: bool) {
        self.0.record(Tick::new(epoch * ANEW, 1, now), stripe, Sample { failed, slow: false }, 1);
    }

    pub fn sums(&self, epoch: u32, now: u64) -> (u64, u64) {
        let sums = self.0.sums(Tick::new(epoch * ANEW, 1, now));
        (sums.calls, sums.failures)
    }
}
