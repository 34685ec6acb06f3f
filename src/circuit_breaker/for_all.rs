//! What holds for all keys of a layer, those to come too; and in which states their breakers are.
//!
//! The states are counted as they change, because whoever shows the worst of them does so at each change: if many
//! upstreams fail at once, looking at all breakers each time would be many times many.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst};

use crate::circuit_breaker::{State, machine::Change};

#[derive(Debug)]
pub(crate) struct ForAll {
    /// The state in which new ones begin.
    begins: AtomicUsize,
    shadow: AtomicBool,
    /// How many are in each state. Two changes of one breaker may be counted in the other order, so one may be below
    /// zero for a moment.
    states: [AtomicI64; WORST_FIRST.len()],
}

const WORST_FIRST: [State; 5] = [State::ForcedOpen, State::Open, State::HalfOpen, State::ForcedClosed, State::Closed];

impl ForAll {
    pub(super) fn new(shadow: bool) -> Self {
        ForAll {
            begins: AtomicUsize::new(badness(State::Closed)),
            shadow: AtomicBool::new(shadow),
            states: Default::default(),
        }
    }

    pub(super) fn begins(&self) -> State {
        WORST_FIRST[self.begins.load(SeqCst)]
    }

    pub(super) fn begin(&self, state: State) {
        self.begins.store(badness(state), SeqCst);
    }

    pub(super) fn in_shadow(&self) -> bool {
        self.shadow.load(SeqCst)
    }

    pub(super) fn set_shadow(&self, on: bool) {
        self.shadow.store(on, SeqCst);
    }

    pub(super) fn add(&self, state: State) {
        self.states[badness(state)].fetch_add(1, SeqCst);
    }

    pub(super) fn remove(&self, state: State) {
        self.states[badness(state)].fetch_sub(1, SeqCst);
    }

    pub(super) fn moved(&self, change: Change) {
        self.add(change.to);
        self.remove(change.from);
    }

    /// Is each of them forced open, and each that comes? One that was moved by hand since may not be.
    pub(super) fn are_forced_open(&self) -> bool {
        let others = &self.states[badness(State::ForcedOpen) + 1..];
        // The first says no nearly always, and no more than the second would.
        self.begins() == State::ForcedOpen && others.iter().all(|count| count.load(SeqCst) <= 0)
    }

    /// The worst state that one of them is in.
    pub(super) fn worst(&self) -> State {
        let is_there = |count: &AtomicI64| count.load(SeqCst) > 0;
        self.states.iter().position(is_there).map_or(State::Closed, |n| WORST_FIRST[n])
    }
}

/// A place among the [worst](WORST_FIRST).
pub(super) fn badness(state: State) -> usize {
    match state {
        State::ForcedOpen => 0,
        State::Open => 1,
        State::HalfOpen => 2,
        State::ForcedClosed => 3,
        State::Closed => 4,
    }
}
