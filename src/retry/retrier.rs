//! What all calls of one layer share, and what becomes of a failed attempt.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    bounded::Ledger,
    budget::{Budget, Taken},
    builder::Identity,
    deadline::Deadline,
    observe::{Kind, Reporter},
    outcome::Outcome,
    rejection::Reason,
    retry::{Backoff, RetrySnapshot, Stopped, config::Settings, verdict::Verdict},
    rng,
    time::{self, Epoch, Instant, LONGEST, Span},
    window::latency::Latencies,
};

/// Attempts are measured over so long.
const LATENCY_WINDOW: Duration = Duration::from_secs(30);
/// With fewer samples nobody knows how long an attempt usually takes.
const SAMPLES: u64 = 10;

/// The state of a retry layer.
pub(crate) struct Retrier {
    pub(crate) settings: Settings,
    pub(crate) budget: Budget,
    /// May there be a hedge with the same budget?
    shares_its_budget: bool,
    /// Does the budget count successes, or may somebody listen? Asked once, for all calls.
    tells_of_successes: bool,
    /// Says what came too late, and all else.
    pub(crate) ledger: Ledger,
    epoch: Epoch,
    latencies: Latencies,
    further: AtomicU64,
    stopped_by_budget: AtomicU64,
    stopped_by_deadline: AtomicU64,
}

/// What becomes of a call after an attempt.
#[derive(Debug)]
pub(crate) enum Next {
    /// Its result is the call's.
    Pass(Stopped),
    /// Another one after so long, for which the budget was asked.
    Again { delay: Duration, taken: Taken },
}

/// What is known of an attempt that came to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// Its number, from 1.
    pub(crate) number: u32,
    pub(crate) outcome: Outcome,
    pub(crate) verdict: Verdict,
    pub(crate) deadline: Option<Deadline>,
    /// The delay before it.
    pub(crate) last_delay: Span,
}

impl Retrier {
    pub(crate) fn new(identity: Identity, settings: Settings, budget: Budget) -> Self {
        let shadow = identity.shadow;
        let reporter = identity.reporter("retry", &[Reason::DeadlineExceeded]);
        Retrier {
            settings,
            shares_its_budget: budget.is_shared(),
            tells_of_successes: budget.counts_successes() || reporter.may_have_listeners(),
            budget,
            ledger: Ledger::new(reporter, shadow),
            epoch: Epoch::new(),
            latencies: Latencies::new(LATENCY_WINDOW),
            further: AtomicU64::new(0),
            stopped_by_budget: AtomicU64::new(0),
            stopped_by_deadline: AtomicU64::new(0),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.ledger.name()
    }

    #[inline]
    pub(crate) fn reporter(&self) -> &Reporter {
        self.ledger.reporter()
    }

    #[inline]
    pub(crate) fn in_shadow(&self) -> bool {
        self.ledger.in_shadow()
    }

    pub(crate) fn shadow(&self, on: bool) {
        self.ledger.shadow(on);
    }

    /// A further attempt begins.
    pub(crate) fn began_again(&self) {
        self.further.fetch_add(1, Relaxed);
    }

    /// Makes a call for which this has paid into the budget: a hedge in there that shares it pays nothing.
    #[inline(always)]
    pub(crate) fn paid<T>(&self, budget: &Budget, call: impl FnOnce() -> T) -> T {
        if self.shares_its_budget { budget.paid(call) } else { call() }
    }

    /// An attempt ended well.
    #[inline(always)]
    pub(crate) fn succeeded(&self, number: u32) {
        if self.tells_of_successes {
            self.tell_of_a_success(number);
        } else {
            self.reporter().succeeded_unheard(number);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_of_a_success(&self, number: u32) {
        self.budget.succeeded();
        self.reporter().succeeded(number);
    }

    /// A good attempt that somebody had to wait for is measured. Those that are ready at once would only say so.
    #[cold]
    pub(crate) fn measure(&self, started: Instant) {
        let now = time::now();
        self.latencies.record(self.epoch.at(now), now.saturating_duration_since(started));
    }

    /// After a failed attempt. `can_again`: can the request be sent again? `give_up` makes sure of it.
    #[inline(always)]
    pub(crate) fn next(
        &self,
        budget: &Budget,
        ended: Ended,
        can_again: impl Fn() -> bool,
        give_up: impl Fn() -> bool,
    ) -> Next {
        let next = match self.decide(budget, ended, can_again) {
            // In shadow nothing is given up, and the event says what would have been.
            Next::Again { taken, .. } if !self.in_shadow() && !give_up() => {
                budget.give_back(taken);
                Next::Pass(Stopped::BodyTooLarge)
            }
            next => next,
        };
        let delay = match &next {
            Next::Again { delay, .. } => Some(*delay),
            Next::Pass(_) => None,
        };
        self.reporter().report(Kind::Attempt { number: ended.number, outcome: ended.outcome, delay });
        match next {
            Next::Again { taken, .. } if self.in_shadow() => {
                budget.give_back(taken);
                Next::Pass(Stopped::NotRetryable)
            }
            next => next,
        }
    }

    #[inline(always)]
    fn decide(&self, budget: &Budget, ended: Ended, can_again: impl Fn() -> bool) -> Next {
        let hint = match ended.verdict {
            Verdict::Again(hint) => hint,
            other => return Next::Pass(self.stopped(budget, other)),
        };
        if ended.number >= self.settings.attempts {
            return stop(budget, Stopped::Attempts);
        }
        if !can_again() {
            return stop(budget, Stopped::BodyTooLarge);
        }
        let now = time::now();
        let delay = match hint {
            Some(hint) => hint.min(self.settings.max_hint),
            None => self.backoff(ended.number, ended.last_delay),
        };
        if ended.deadline.is_some_and(|deadline| self.ends_after(deadline, delay, now)) {
            self.stopped_by_deadline.fetch_add(1, Relaxed);
            return stop(budget, Stopped::Deadline);
        }
        match budget.take(now) {
            Some(taken) => Next::Again { delay, taken },
            None => {
                self.stopped_by_budget.fetch_add(1, Relaxed);
                Next::Pass(Stopped::Budget)
            }
        }
    }

    #[cold]
    fn stopped(&self, budget: &Budget, verdict: Verdict) -> Stopped {
        match verdict {
            Verdict::Done => {
                budget.succeeded();
                Stopped::Succeeded
            }
            Verdict::Stop => {
                budget.failed();
                Stopped::ServerSaidStop
            }
            Verdict::Late => {
                self.stopped_by_deadline.fetch_add(1, Relaxed);
                Stopped::Deadline
            }
            Verdict::Never | Verdict::Again(_) => Stopped::NotRetryable,
        }
    }

    #[inline(always)]
    fn backoff(&self, n: u32, last: Span) -> Duration {
        match (&self.settings.backoff_fn, self.settings.backoff) {
            (None, Backoff::Constant(delay)) => delay,
            _ => self.grown_backoff(n, last),
        }
    }

    #[cold]
    #[inline(never)]
    fn grown_backoff(&self, n: u32, last: Span) -> Duration {
        match &self.settings.backoff_fn {
            Some(own) => own(n).min(LONGEST),
            None => self.settings.backoff.delay(n, last.duration().unwrap_or_default(), rng::unit),
        }
    }

    /// Would an attempt that begins after this delay, and takes as long as attempts usually do, come after the deadline?
    #[cold]
    fn ends_after(&self, deadline: Deadline, delay: Duration, now: Instant) -> bool {
        let left = deadline.instant().saturating_duration_since(now);
        let usual = self.latencies.quantile(self.epoch.at(now), 0.5, SAMPLES).unwrap_or_default();
        left <= delay.saturating_add(usual)
    }

    /// The calls are those that the stripes have counted: each thread on a line that it writes anyway.
    pub(crate) fn snapshot(&self, calls: u64) -> RetrySnapshot {
        let figures = self.ledger.figures();
        RetrySnapshot {
            calls,
            attempts: calls + self.further.load(Relaxed),
            stopped_by_budget: self.stopped_by_budget.load(Relaxed),
            stopped_by_deadline: self.stopped_by_deadline.load(Relaxed),
            deadline_exceeded: figures.deadline_exceeded,
            would_have_rejected: figures.would_have_rejected,
        }
    }
}

/// It failed, and there is no further attempt for another reason than the budget.
#[cold]
fn stop(budget: &Budget, stopped: Stopped) -> Next {
    budget.failed();
    Next::Pass(stopped)
}

impl fmt::Debug for Retrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retrier")
            .field("ledger", &self.ledger)
            .field("settings", &self.settings)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}
