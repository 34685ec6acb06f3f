//! The shell around the machine: the clock, the events, the counters. One per layer, shared by all it makes.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    Until,
    circuit_breaker::{
        CircuitBreakerConfig, State,
        facts::Facts,
        machine::{Change, Machine, Refusal, Ticket},
    },
    deadline::Deadline,
    observe::{Kind, Reporter},
    outcome::Outcome,
    rejection::{Rejection, Told},
    rng,
    stripe::thread_number,
    time::{self, Clock, Instant, nanos},
};

#[derive(Debug)]
pub(crate) struct Breaker {
    pub(crate) machine: Machine,
    /// The machine's time.
    pub(super) clock: Clock,
    reporter: Reporter,
    pub(crate) extras: Extras,
    /// Asked for at openings and updates only.
    config: Mutex<CircuitBreakerConfig>,
    pub(crate) cancelled: AtomicU64,
    pub(crate) would_have_rejected: AtomicU64,
}

/// What a builder knows and a configuration does not.
#[derive(Debug)]
pub(crate) struct Extras {
    pub(crate) open_fn: Option<OpenFn>,
    pub(crate) until: Until,
    pub(crate) blame_after: Duration,
}

impl Default for Extras {
    fn default() -> Self {
        Extras { open_fn: None, until: Until::Head, blame_after: Duration::from_secs(1) }
    }
}

pub(crate) struct OpenFn(pub(crate) Box<dyn Fn(u32) -> Duration + Send + Sync>);

impl Breaker {
    pub(crate) fn new(reporter: Reporter, shadow: bool, config: CircuitBreakerConfig, extras: Extras) -> Self {
        let machine = Machine::new(&config, 0);
        machine.shadow(shadow);
        Breaker {
            machine,
            clock: Clock::new(),
            reporter,
            extras,
            config: Mutex::new(config),
            cancelled: AtomicU64::new(0),
            would_have_rejected: AtomicU64::new(0),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.reporter.name()
    }

    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
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

    pub(crate) fn shadow(&self, on: bool) {
        self.machine.shadow(on);
    }

    // === calls ===

    /// Is a latency asked for, and above which is a call slow? In nanoseconds.
    #[inline]
    pub(crate) fn slow_call(&self) -> Option<u64> {
        self.machine.limits().slow_call()
    }

    /// Is every call refused now? Asked before the inner service is, so that a closed door does not touch the house.
    #[inline(always)]
    pub(crate) fn is_shut(&self) -> Option<Told> {
        self.machine.is_shut(|| self.now()).map(Refusal::told)
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
                self.would_have_rejected.fetch_add(1, Relaxed);
                self.reporter.report(Kind::WouldHaveRejected { reason: refusal.reason });
                Ok(Ticket::UNCOUNTED)
            }
            answer => answer,
        }
    }

    /// Refuses a call: counts it, tells of it, and makes what the caller is told.
    #[inline(always)]
    pub(crate) fn refuse(&self, told: Told) -> Rejection {
        self.reporter.refuse(told)
    }

    /// Calls refused.
    pub(crate) fn rejected(&self) -> u64 {
        self.reporter.refused()
    }

    #[cold]
    pub(crate) fn settle(&self, ticket: Ticket, outcome: Outcome, slow: bool, now: u64, hint: Option<Duration>) {
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
        self.reporter.ended(Outcome::Failure);
    }

    /// A call whose inner service failed before it could begin.
    #[cold]
    pub(crate) fn failed_readiness(&self) {
        let ticket = match self.machine.admit_closed() {
            Some(ticket) => ticket,
            None => self.admit_now().unwrap_or(Ticket::UNCOUNTED),
        };
        self.settle(ticket, Outcome::Failure, false, self.now(), None);
        self.reporter.ended(Outcome::Failure);
    }

    // === changes ===

    /// Does what is due after a change, with nothing held: works out an open time, tells the observers.
    #[cold]
    pub(crate) fn changed(&self, change: Option<Change>, hint: Option<Duration>) {
        let Some(change) = change else { return };
        if change.to == State::Open {
            let until = self.now().saturating_add(nanos(self.open_time(change.opening, hint)));
            self.machine.stay_open(change.generation, until);
        }
        self.reporter.report(Kind::StateChanged { from: change.from, to: change.to });
    }

    fn open_time(&self, opening: u32, hint: Option<Duration>) -> Duration {
        let open = self.config.lock().unwrap_or_else(PoisonError::into_inner).open;
        // It may run in a drop, and a panic there would end the process.
        let asked = self.extras.open_fn.as_ref().and_then(|f| catch_unwind(AssertUnwindSafe(|| (f.0)(opening))).ok());
        let own = asked.unwrap_or_else(|| open.draw(opening, rng::unit())).min(time::LONGEST);
        let server = hint.map_or(Duration::ZERO, |h| h.min(open.longest()));
        own.max(server)
    }

    pub(crate) fn update(&self, config: CircuitBreakerConfig) {
        let mut current = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        self.machine.update(&config, self.now());
        *current = config;
    }
}

impl fmt::Debug for OpenFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenFn")
    }
}
