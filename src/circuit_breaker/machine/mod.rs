//! The states of a circuit breaker and the moves between them: pure, and without a lock.
//!
//! Time comes in as nanoseconds since some fixed instant, randomness as a number. What changes comes out as a
//! [`Change`], for the shell to report. See [`gate`] for how a state is one word, and
//! [`window`](crate::window) for how results of an earlier generation are kept out of a later one.

use std::num::NonZeroU64;

pub(crate) use self::{admission::Look, gate::Pass};
use self::{
    calls::Calls,
    gate::Gate,
    limits::{Layout, Limits},
    probes::{Probes, Slot},
};
use crate::{
    circuit_breaker::{CircuitBreakerConfig, State},
    rejection::{Reason, Told},
    sync::{AtomicU32, AtomicU64, Ordering::SeqCst, step_aside},
    time::Span,
    window::{Sums, time::STRIPES},
};

mod admission;
mod calls;
mod gate;
#[cfg(feature = "http")]
mod idle;
pub(super) mod limits;
#[cfg(all(test, not(loom)))]
mod model;
mod moves;
pub(super) mod probes;
pub(super) mod results;

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

    pub(crate) fn is_plain(self) -> bool {
        self == Ticket::plain(self.generation)
    }

    pub(crate) fn is_probe(self) -> bool {
        self.lease.is_some()
    }

    #[inline]
    pub(crate) fn is_counted(self) -> bool {
        self.slot_number != u32::MAX
    }

    /// Of a call that was admitted as any other is.
    #[inline]
    pub(crate) fn plain(generation: u32) -> Self {
        Ticket { generation, slot_number: 0, lease: None }
    }

    #[inline]
    pub(crate) fn generation(self) -> u32 {
        self.generation
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
    pub(crate) retry_after: Span,
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
        Machine::made(config, now, STRIPES, Probes::new())
    }

    /// As small as may be, for there are many: threads meet in one stripe, and slots are made for the first probe.
    #[cfg(any(test, feature = "http"))]
    pub(crate) fn small(config: &CircuitBreakerConfig, now: u64) -> Self {
        Machine::made(config, now, 1, Probes::later())
    }

    fn made(config: &CircuitBreakerConfig, now: u64, stripes: usize, probes: Probes) -> Self {
        let mut machine = Machine {
            gate: AtomicU64::new(0),
            ramp_until: AtomicU64::new(0),
            limits: Limits::new(config),
            calls: Calls::new(Layout::from(config.window), stripes),
            probes,
            since: AtomicU64::new(now),
            open_until: AtomicU64::new(0),
            openings: AtomicU32::new(0),
            opened_by: Figures::default(),
        };
        // There is nothing in it yet.
        let gate = machine.marked(Gate::new(0, State::Closed)).with_others(false);
        machine.gate = AtomicU64::new(gate.0);
        machine
    }

    #[inline(always)]
    fn gate(&self) -> Gate {
        Gate(self.gate.load(SeqCst))
    }

    pub(crate) fn in_shadow(&self) -> bool {
        self.gate().is_shadow()
    }

    #[cfg_attr(not(any(feature = "metrics", feature = "http")), allow(dead_code, reason = "it has a gauge of its own"))]
    pub(crate) fn state(&self) -> State {
        self.gate().state()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn status(&self, now: u64) -> Status {
        loop {
            let gate = self.gate();
            let shape = self.calls.shape();
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
            if !gate.is_busy() && self.gate() == gate {
                return status;
            }
            step_aside();
        }
    }
}

impl Refusal {
    pub(crate) const OPEN: Refusal = Refusal { reason: Reason::CircuitOpen, retry_after: Span::NONE };

    pub(crate) fn told(self) -> Told {
        Told::new(self.reason, self.retry_after)
    }
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
