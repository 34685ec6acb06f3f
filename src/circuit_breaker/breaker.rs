//! The shell around the machine: the clock, the events, the counters. One per layer, shared by all it makes.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    Until,
    circuit_breaker::{
        CircuitBreakerConfig, State,
        machine::{Change, Machine, Refusal, Ticket, limits::nanos},
    },
    observe::{Kind, Reporter},
    outcome::Outcome,
    rejection::{Reason, Rejection},
    rng,
    stripe::thread_number,
    time::{self, Instant},
};

#[derive(Debug)]
pub(crate) struct Breaker {
    pub(crate) machine: Machine,
    /// The machine's time counts from here.
    base: Instant,
    reporter: Reporter,
    shadow: AtomicBool,
    pub(crate) extras: Extras,
    /// Asked for at openings and updates only.
    config: Mutex<CircuitBreakerConfig>,
    pub(crate) rejected: AtomicU64,
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
        Breaker {
            machine: Machine::new(&config, 0),
            base: time::now(),
            reporter,
            shadow: AtomicBool::new(shadow),
            extras,
            config: Mutex::new(config),
            rejected: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            would_have_rejected: AtomicU64::new(0),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.reporter.name()
    }

    /// The machine's time at this instant.
    #[inline]
    pub(crate) fn at(&self, instant: Instant) -> u64 {
        nanos(instant.saturating_duration_since(self.base))
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.at(time::now())
    }

    #[inline]
    pub(crate) fn in_shadow(&self) -> bool {
        self.shadow.load(Relaxed)
    }

    pub(crate) fn shadow(&self, on: bool) {
        self.shadow.store(on, Relaxed);
    }

    // === calls ===

    /// Is a latency asked for, and above which is a call slow? In nanoseconds.
    #[inline]
    pub(crate) fn slow_call(&self) -> Option<u64> {
        self.machine.limits().slow_call()
    }

    /// Is every call refused now? Asked before the inner service is, so that a closed door does not touch the house.
    #[inline]
    pub(crate) fn is_shut(&self) -> Option<Refusal> {
        if self.machine.admit_closed().is_some() { None } else { self.is_shut_now() }
    }

    #[cold]
    fn is_shut_now(&self) -> Option<Refusal> {
        self.machine.is_shut(self.now()).filter(|_| !self.in_shadow())
    }

    /// Admits a call that comes while it is not plainly closed, or writes down why not. In shadow what would be refused goes
    /// on, uncounted.
    #[cold]
    pub(crate) fn admit(&self, refuse: &mut Option<Refusal>) -> Ticket {
        let (answer, change) = self.machine.admit(self.now(), rng::unit());
        self.changed(change, None);
        match answer {
            Ok(ticket) => return ticket,
            Err(refusal) if self.in_shadow() => {
                self.would_have_rejected.fetch_add(1, Relaxed);
                self.reporter.report(Kind::WouldHaveRejected { reason: refusal.reason });
            }
            Err(refusal) => *refuse = Some(refusal),
        }
        Ticket::UNCOUNTED
    }

    /// Books a refusal and tells of it.
    #[cold]
    pub(crate) fn refuse(&self, reason: Reason) {
        self.rejected.fetch_add(1, Relaxed);
        self.reporter.report(Kind::Rejected { reason });
    }

    pub(crate) fn rejection(&self, refusal: Refusal) -> Rejection {
        let retry_after = refusal.retry_after.map(Duration::from_nanos);
        self.reporter.rejection(refusal.reason).with_retry_after(retry_after)
    }

    /// A success of which nothing else was asked. In a window of calls it needs no clock.
    #[inline(always)]
    pub(crate) fn succeeded(&self, ticket: Ticket, stripe: usize) {
        match self.machine.record_closed(ticket, Outcome::Success, || self.now(), stripe) {
            Some(false) => {}
            Some(true) => self.trip(ticket),
            None => self.settle(ticket, Outcome::Success, false, self.now(), None),
        }
    }

    #[cold]
    fn trip(&self, ticket: Ticket) {
        self.changed(self.machine.trip(ticket, self.now()), None);
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

    /// A call whose inner service failed before it could begin.
    #[cold]
    pub(crate) fn failed_readiness(&self) {
        let ticket = self.machine.admit_closed().unwrap_or_else(|| self.admit(&mut None));
        self.settle(ticket, Outcome::Failure, false, self.now(), None);
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
