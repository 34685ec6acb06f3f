//! The shell around the machine: the clock, the events, the counters. One per layer, shared by all it makes, or one per
//! key.

use std::{sync::Arc, time::Duration};

use crate::{
    circuit_breaker::{
        State,
        common::Common,
        facts::Facts,
        machine::{Change, Look, Machine, Refusal, Ticket},
    },
    deadline::Deadline,
    observe::{Kind, Reporter},
    outcome::Outcome,
    rejection::{Rejection, Told},
    rng,
    stripe::thread_number,
    time::{Clock, Instant, nanos},
};

#[cfg(feature = "http")]
use crate::circuit_breaker::by_key::{ByKey, OfKey};

#[derive(Debug)]
pub(crate) struct Breaker {
    pub(crate) machine: Machine,
    /// The machine's time. What it remembers is of this machine alone.
    pub(super) clock: Clock,
    pub(crate) common: Arc<Common>,
    #[cfg(feature = "http")]
    pub(super) role: Role,
}

/// Which of a layer's breakers it is.
#[cfg(feature = "http")]
#[derive(Debug)]
pub(super) enum Role {
    /// The only one.
    Alone,
    /// Before those of the keys.
    Front(Box<ByKey>),
    /// That of a key.
    Key(OfKey),
    /// Of requests without a key, or of keys beyond the bound.
    Shared,
}

impl Breaker {
    /// The only one of its layer.
    pub(crate) fn alone(common: Arc<Common>, shadow: bool) -> Self {
        let machine = Machine::new(&common.config(), 0);
        machine.shadow(shadow);
        Breaker {
            machine,
            clock: common.clock.another(),
            common,
            #[cfg(feature = "http")]
            role: Role::Alone,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.reporter().name()
    }

    #[inline(always)]
    pub(crate) fn reporter(&self) -> &Reporter {
        &self.common.reporter
    }

    /// The machine's time at this instant.
    #[inline]
    pub(crate) fn at(&self, instant: Instant) -> u64 {
        self.clock.at(instant)
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.clock.now()
    }

    #[inline]
    pub(crate) fn in_shadow(&self) -> bool {
        self.machine.in_shadow()
    }

    /// The breakers of the keys, in a layer with keys.
    #[cfg(feature = "http")]
    #[inline]
    pub(crate) fn by_key(&self) -> Option<&ByKey> {
        if let Role::Front(by_key) = &self.role { Some(by_key) } else { None }
    }

    // === calls ===

    /// Is a latency asked for, and above which is a call slow? In nanoseconds.
    #[inline]
    pub(crate) fn slow_call(&self) -> Option<u64> {
        self.machine.limits().slow_call()
    }

    /// Is every call refused now? Asked before the inner service is, so that a closed door does not touch the house.
    #[inline(always)]
    pub(crate) fn look(&self) -> Look {
        self.machine.look(|| self.now())
    }

    /// Looks closer where [`look`](Self::look) can't tell.
    #[cold]
    pub(crate) fn is_shut(&self) -> Option<Told> {
        #[cfg(feature = "http")]
        if let Some(by_key) = self.by_key() {
            return by_key.is_shut();
        }
        self.machine.is_shut(self.now()).map(Refusal::told)
    }

    /// Admits a call as nearly all are: it is closed, and nobody asks how long it takes.
    #[inline(always)]
    pub(crate) fn admit_plain(&self, deadline: Option<Deadline>) -> Option<Facts> {
        if deadline.is_some() {
            return None;
        }
        self.machine.admit_plain().map(Facts::plain)
    }

    /// Admits any other call, or says why not.
    #[inline(never)]
    pub(crate) fn admit(&self, deadline: Option<Deadline>) -> Result<Facts, Refusal> {
        let ticket = match self.machine.admit_closed() {
            Some(ticket) => ticket,
            None => self.admit_now()?,
        };
        let asked = deadline.is_some() || self.slow_call().is_some();
        let started = asked.then(|| self.now());
        Ok(Facts::full(ticket, started, deadline.map(|d| self.at(d.instant()))))
    }

    /// In shadow what would be refused goes on, uncounted.
    #[inline(never)]
    fn admit_now(&self) -> Result<Ticket, Refusal> {
        let (answer, change) = self.machine.admit(self.now(), rng::unit());
        self.changed(change, None);
        match answer {
            Err(refusal) if self.in_shadow() => {
                self.common.would_refuse(refusal.reason);
                Ok(Ticket::UNCOUNTED)
            }
            answer => answer,
        }
    }

    /// Refuses a call: counts it, tells of it, and makes what the caller is told.
    #[inline(always)]
    pub(crate) fn refuse(&self, told: Told) -> Rejection {
        self.reporter().refuse(told)
    }

    #[cold]
    pub(crate) fn settle(&self, ticket: Ticket, outcome: Outcome, slow: bool, now: u64, hint: Option<Duration>) {
        // The call may have begun long ago, and what it says now is remembered from now on.
        #[cfg(feature = "http")]
        if let Role::Key(of_key) = &self.role {
            of_key.touch(now);
        }
        let change = self.machine.settle(ticket, outcome, slow, now, thread_number());
        if change.is_some() {
            self.changed(change, hint);
        }
    }

    pub(crate) fn release(&self, ticket: Ticket) {
        self.changed(self.machine.release(ticket, self.now()), None);
    }

    /// The inner service's `call` panicked.
    #[cold]
    #[inline(never)]
    pub(crate) fn panicked(&self, ticket: Ticket) {
        self.settle(ticket, Outcome::Failure, false, self.now(), None);
        self.reporter().ended(Outcome::Failure);
    }

    /// A call whose inner service failed before it could begin. With keys nobody knows yet whose it would have been: it
    /// is booked where nothing comes of it.
    #[cold]
    pub(crate) fn failed_readiness(&self) {
        let ticket = match self.machine.admit_closed() {
            Some(ticket) => ticket,
            None => self.admit_now().unwrap_or(Ticket::UNCOUNTED),
        };
        self.settle(ticket, Outcome::Failure, false, self.now(), None);
        self.reporter().ended(Outcome::Failure);
    }

    // === changes ===

    /// Does what is due after a change, with nothing held: works out an open time, tells the observers.
    #[cold]
    pub(crate) fn changed(&self, change: Option<Change>, hint: Option<Duration>) {
        let Some(change) = change else { return };
        if change.to == State::Open {
            let until = self.now().saturating_add(nanos(self.common.open_time(change.opening, hint)));
            self.machine.stay_open(change.generation, until);
        }
        #[cfg(feature = "http")]
        self.book(change);
        self.tell(change);
    }

    /// Books in which states the breakers of keys are, and those that keys share.
    #[cfg(feature = "http")]
    pub(super) fn book(&self, change: Change) {
        if matches!(self.role, Role::Key(_) | Role::Shared) {
            self.common.for_all.moved(change);
        }
    }

    pub(super) fn tell(&self, change: Change) {
        let kind = Kind::StateChanged { from: change.from, to: change.to };
        #[cfg(feature = "http")]
        if let Role::Key(of_key) = &self.role {
            return self.reporter().report_of(of_key.name(), kind);
        }
        self.reporter().report(kind);
    }
}

/// One that goes is in no state.
#[cfg(feature = "http")]
impl Drop for Breaker {
    fn drop(&mut self) {
        if matches!(self.role, Role::Key(_) | Role::Shared) {
            self.common.for_all.remove(self.machine.state());
        }
    }
}
