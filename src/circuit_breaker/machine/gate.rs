//! The state of a breaker in one word, so that the answer to "may this call go?" is one load, and every change of state
//! is one compare-and-swap.
//!
//! ```text
//!  63        32  31     30    24 23   16 15      7    6      5      4     3  2   0
//! | generation |shadow| failed |  good  | updates |others|ticks|asking|busy|state|
//! ```
//!
//! A *generation* is one stay in one state. A call remembers the generation in which it was admitted, and its result
//! counts in no other. `good` and `failed` are the probes of a half-open generation that have ended.
//!
//! `busy` is set for the few instructions in which one thread changes the state and what belongs to it. No admission
//! waits for it: calls are admitted or refused as before. A result that comes in those instructions does, so that none
//! is lost.
//!
//! `updates` counts changes of the window within a generation, so that whoever reads the gate before and after the
//! window knows that both reads are of one piece.
//!
//! `shadow` says that nobody goes by what the state says: it decides and reports, and refuses nothing.
//!
//! `asking` says that more is asked of a call than how it ends: slow calls are looked for, or a ramp runs. `ticks` is
//! the kind of the window. `others` says that a success has to look further: a run of failures is to be ended, or a
//! window of calls has something else than successes in it. It may be set where that is not so; it is never clear for
//! long where it is, and whoever sets it judges once more, for those who passed meanwhile (see
//! [`tell_of_others`](super::Machine::tell_of_others)). So a plain call remembers the gate as its [`Pass`], and if it
//! finds the same word at its end there is nothing to know but its own place in the window.

use crate::circuit_breaker::State;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gate(pub(crate) u64);

const BUSY: u64 = 1 << 3;
const ASKING: u64 = 1 << 4;
const TICKS: u64 = 1 << 5;
const OTHERS: u64 = 1 << 6;
const UPDATE: u64 = 1 << 7;
const UPDATES: u64 = 0x1ff << 7;
const GOOD: u32 = 16;
const FAILED: u32 = 24;
const SHADOW: u64 = 1 << 31;
/// What says whether a call is refused.
const DOOR: u64 = SHADOW | BUSY | 0b111;

/// What a plain call remembers of its admission: the gate, without `others`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass(u64);

impl Pass {
    #[inline(always)]
    pub(crate) fn generation(self) -> u32 {
        Gate(self.0).generation()
    }

    #[inline(always)]
    pub(crate) fn has_ticks(self) -> bool {
        self.0 & TICKS != 0
    }

    /// The same in every call that meets the same window, and in hardly any other.
    #[inline(always)]
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

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

    /// Closed, out of the shadow, and nobody is changing that.
    #[inline(always)]
    pub(crate) fn is_plainly_closed(self) -> bool {
        self.0 & DOOR == 0
    }

    /// Open, out of the shadow, and nobody is changing that.
    #[inline(always)]
    pub(crate) fn is_open(self) -> bool {
        self.0 & DOOR == 1
    }

    #[inline]
    pub(crate) fn is_shadow(self) -> bool {
        self.0 & SHADOW != 0
    }

    pub(crate) fn shadow(self, on: bool) -> Self {
        Gate(self.0 & !SHADOW | if on { SHADOW } else { 0 })
    }

    /// The pass of a call that is admitted now as nearly all are: it is closed, nobody is changing that, and nobody
    /// asks more.
    #[inline(always)]
    pub(crate) fn plain_pass(self) -> Option<Pass> {
        if self.0 & (ASKING | BUSY | 0b111) == 0 { Some(self.pass()) } else { None }
    }

    #[inline(always)]
    pub(crate) fn pass(self) -> Pass {
        Pass(self.0 & !OTHERS)
    }

    /// Is it what it was for this call, with nothing in its way?
    #[inline(always)]
    pub(crate) fn is(self, pass: Pass) -> bool {
        self.0 == pass.0
    }

    #[inline]
    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline]
    pub(crate) fn has_others(self) -> bool {
        self.0 & OTHERS != 0
    }

    pub(crate) fn with_others(self, others: bool) -> Self {
        Gate(self.0 & !OTHERS | if others { OTHERS } else { 0 })
    }

    #[cfg(any(test, loom))]
    pub(crate) fn has_ticks(self) -> bool {
        self.pass().has_ticks()
    }

    pub(crate) fn is_asking(self) -> bool {
        self.0 & ASKING != 0
    }

    pub(crate) fn asking(self, asking: bool) -> Self {
        Gate(self.0 & !ASKING | if asking { ASKING } else { 0 })
    }

    pub(crate) fn ticks(self, ticks: bool) -> Self {
        Gate(self.0 & !TICKS | if ticks { TICKS } else { 0 })
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
        self.is_closed() && self.generation() == generation
    }

    pub(crate) fn busy(self) -> Self {
        Gate(self.0 | BUSY)
    }

    /// The first word of the next generation.
    pub(crate) fn next(self, state: State) -> Self {
        Gate::new(self.generation().wrapping_add(1), state).shadow(self.is_shadow())
    }

    pub(crate) fn good(self) -> u32 {
        (self.0 >> GOOD) as u32 & 0xff
    }

    pub(crate) fn failed(self) -> u32 {
        (self.0 >> FAILED) as u32 & 0x7f
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
                    assert_eq!(updated == gate, i % 512 == 511);
                    assert_eq!((updated.generation(), updated.good(), updated.is_busy()), (generation, 2, true));
                }
                assert_eq!(gate.next(State::Closed), Gate::new(generation.wrapping_add(1), State::Closed));
                let (dark, door) = (gate.shadow(true), Gate::new(generation, state));
                assert_eq!((dark.is_shadow(), dark.failed(), dark.next(state).is_shadow()), (true, 1, true));
                assert_eq!(dark.shadow(false), gate);
                assert_eq!((door.is_plainly_closed(), door.is_open()), (state == State::Closed, state == State::Open));
                for other in [door.busy(), door.shadow(true)] {
                    assert!(!other.is_plainly_closed() && !other.is_open());
                }
            }
        }
    }
}
