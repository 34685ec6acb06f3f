//! The state of a breaker in one word, so that the answer to "may this call go?" is one load, and every change of state
//! is one compare-and-swap.
//!
//! ```text
//!  63        32 31   24 23   16 15       4   3 2   0
//! | generation | failed |  good  | updates  |busy|state|
//! ```
//!
//! A *generation* is one stay in one state. A call remembers the generation in which it was admitted, and its result
//! counts in no other. `good` and `failed` are the probes of a half-open generation that have ended.
//!
//! `busy` is set for the few instructions in which one thread changes the state and what belongs to it. No admission waits
//! for it: calls are admitted or refused as before. A result that comes in those instructions does, so that none is lost.
//!
//! `updates` counts changes of the window within a generation, so that whoever reads the gate before and after the window
//! knows that both reads are of one piece.

use crate::circuit_breaker::State;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gate(pub(crate) u64);

const BUSY: u64 = 1 << 3;
const UPDATE: u64 = 1 << 4;
const UPDATES: u64 = 0xfff << 4;
const GOOD: u32 = 16;
const FAILED: u32 = 24;

impl Gate {
    #[inline]
    pub(crate) fn new(generation: u32, state: State) -> Self {
        let state = match state {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
            State::ForcedOpen => 3,
            State::ForcedClosed => 4,
        };
        Gate(u64::from(generation) << 32 | state)
    }

    #[inline]
    pub(crate) fn state(self) -> State {
        match self.0 & 0b111 {
            0 => State::Closed,
            1 => State::Open,
            2 => State::HalfOpen,
            3 => State::ForcedOpen,
            _ => State::ForcedClosed,
        }
    }

    /// Closed, and nobody is changing that: all four bits are zero.
    #[inline]
    pub(crate) fn is_closed(self) -> bool {
        self.0 & (BUSY | 0b111) == 0
    }

    #[inline]
    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline]
    pub(crate) fn is_busy(self) -> bool {
        self.0 & BUSY != 0
    }

    /// The same generation, with a window that has changed.
    pub(crate) fn updated(self) -> Self {
        Gate(self.0 & !UPDATES | (self.0 + UPDATE) & UPDATES)
    }

    /// Is this `generation`, closed and not busy, however often its window has changed?
    #[inline]
    pub(crate) fn is_closed_in(self, generation: u32) -> bool {
        self.0 & !UPDATES == Gate::new(generation, State::Closed).0
    }

    pub(crate) fn busy(self) -> Self {
        Gate(self.0 | BUSY)
    }

    /// The first word of the next generation.
    pub(crate) fn next(self, state: State) -> Self {
        Gate::new(self.generation().wrapping_add(1), state)
    }

    pub(crate) fn good(self) -> u32 {
        (self.0 >> GOOD) as u32 & 0xff
    }

    pub(crate) fn failed(self) -> u32 {
        (self.0 >> FAILED) as u32 & 0xff
    }

    /// With one more probe that has ended.
    pub(crate) fn with_probe(self, failed: bool) -> Self {
        Gate(self.0 + (1 << if failed { FAILED } else { GOOD }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_comes_back() {
        for state in [State::Closed, State::Open, State::HalfOpen, State::ForcedOpen, State::ForcedClosed] {
            for generation in [0, 1, u32::MAX] {
                let gate = Gate::new(generation, state);
                assert_eq!((gate.state(), gate.generation(), gate.is_busy()), (state, generation, false));
                let gate = gate.with_probe(true).with_probe(false).with_probe(false).busy();
                assert_eq!((gate.state(), gate.generation()), (state, generation));
                assert_eq!((gate.good(), gate.failed(), gate.is_busy()), (2, 1, true));
                let mut updated = gate;
                for i in 0..5_000 {
                    assert!(!updated.is_closed_in(generation), "it is busy");
                    updated = updated.updated();
                    assert_eq!(updated == gate, i % 4_096 == 4_095);
                    assert_eq!((updated.generation(), updated.good(), updated.is_busy()), (generation, 2, true));
                }
                assert_eq!(gate.next(State::Closed), Gate::new(generation.wrapping_add(1), State::Closed));
            }
        }
    }
}
