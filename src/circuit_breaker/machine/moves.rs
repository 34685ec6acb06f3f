//! Moves from one state to another, by themselves and by hand.

use super::{Change, Machine, NOT_YET, calls::Shape, gate::Gate, limits::Layout};
use crate::{
    circuit_breaker::{CircuitBreakerConfig, State},
    sync::{
        Ordering::{Relaxed, SeqCst},
        step_aside,
    },
};

impl Machine {
    pub(super) fn open(&self, gate: Gate, shape: Shape, now: u64) -> Option<Change> {
        self.hold(gate)?;
        self.opened_by.store(self.calls.sums(shape, now), self.calls.consecutive(shape));
        self.open_until.store(NOT_YET, SeqCst);
        let opening = self.openings.load(SeqCst);
        self.openings.store(opening.saturating_add(1), SeqCst);
        Some(Change { opening, ..self.publish(gate, State::Open, now) })
    }

    pub(super) fn close(&self, gate: Gate, now: u64) -> Option<Change> {
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
        let answer = |from| match to {
            _ if from == to => Some(Ok(None)),
            State::HalfOpen if from != State::Open => Some(Err(from)),
            _ => None,
        };
        // Asked before the gate is taken too: what does nothing shall disturb nobody.
        if let Some(answer) = answer(self.gate().state()) {
            return answer;
        }
        let gate = self.seize();
        if let Some(answer) = answer(gate.state()) {
            self.let_go(gate);
            return answer;
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
        let old = self.limits.ramp.load(Relaxed).max(1);
        self.limits.store(config);
        let until = self.ramp_until.load(SeqCst);
        if until > now {
            // A ramp that runs keeps the share that it has reached.
            let left = u128::from(until - now) * u128::from(self.limits.ramp.load(Relaxed)) / u128::from(old);
            let left = u64::try_from(left).unwrap_or(u64::MAX);
            self.ramp_until.store(if left == 0 { 0 } else { now.saturating_add(left) }, SeqCst);
        }
        self.calls.judge_again();
        self.let_go(self.marked(gate.updated()));
    }

    /// Into the shadow, where nobody goes by what it says, or out of it.
    pub(crate) fn shadow(&self, on: bool) {
        let gate = self.seize();
        self.let_go(gate.shadow(on));
    }

    /// What a call has to know of the rest. Only by whoever holds the gate. There may be others; the next success
    /// looks.
    pub(super) fn marked(&self, gate: Gate) -> Gate {
        gate.asking(self.is_asked()).ticks(self.calls.has_ticks()).with_others(true)
    }

    /// What stands in the gate, while nobody is at it: never less than there is.
    #[cfg(any(test, loom))]
    pub(crate) fn check_gate(&self) {
        let (gate, shape) = (self.gate(), self.calls.shape());
        assert!(!gate.is_busy());
        assert_eq!((gate.is_asking(), gate.has_ticks()), (self.is_asked(), shape.has_ticks()));
        assert!(gate.has_others() || gate.state() != State::Closed || !self.calls.has_others(shape));
    }

    /// Is more asked of a call than how it ends?
    pub(super) fn is_asked(&self) -> bool {
        self.ramp_until.load(SeqCst) != 0 || self.limits.slow_call().is_some()
    }

    /// Takes the gate if it still reads `gate`.
    pub(super) fn hold(&self, gate: Gate) -> Option<()> {
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
    pub(super) fn publish(&self, gate: Gate, to: State, now: u64) -> Change {
        self.since.store(now, SeqCst);
        let next = self.marked(gate.next(to));
        self.gate.store(next.0, SeqCst);
        Change { from: gate.state(), to, generation: next.generation(), opening: 0 }
    }
}
