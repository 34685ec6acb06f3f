//! What all calls of one layer share, and what becomes of a failed attempt.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    bounded::Ledger,
    budget::{Budget, Payment, Taken},
    builder::Identity,
    deadline::Deadline,
    observe::{Kind, Reporter, StoppedBy},
    outcome::End,
    rejection::Reason,
    retry::{RetrySnapshot, Stopped, settings::Settings, verdict::Verdict},
    stripe::Striped,
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
    stopped_by_budget: AtomicU64,
    stopped_by_deadline: AtomicU64,
}

/// Another attempt after so long, for which the budget was asked.
#[derive(Debug)]
pub(crate) struct Further {
    pub(crate) delay: Span,
    pub(crate) taken: Taken,
}

/// What is known of an attempt that came to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// Its number, from 1.
    pub(crate) number: u32,
    pub(crate) end: End,
    pub(crate) verdict: Verdict,
    pub(crate) deadline: Option<Deadline>,
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

    /// What a hedge within the call has to be told, if there may be one with the same budget.
    #[inline(always)]
    pub(crate) fn payment(&self, budget: &Budget) -> Option<Payment> {
        self.shares_its_budget.then(|| budget.payment())
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

    /// After a failed attempt: what comes next, or why nothing does. `last_delay`: the one drawn before. `can_again`:
    /// can the request be sent again, knowing whether the last one was unsent? `give_up` makes sure of it.
    #[inline(always)]
    pub(crate) fn next(
        &self,
        budget: &Budget,
        ended: Ended,
        last_delay: &mut Span,
        can_again: impl FnOnce(bool) -> bool,
        give_up: impl FnOnce(bool) -> bool,
    ) -> Result<Further, Stopped> {
        let Ended { number, end, .. } = ended;
        let (hint, unsent) = match ended.verdict {
            Verdict::Again(hint) => (hint, false),
            Verdict::Elsewhere(_) => (None, false),
            Verdict::Unsent => (None, true),
            verdict => return Err(self.done(budget, number, end, verdict)),
        };
        if number >= self.settings.attempts() {
            return Err(self.stop(budget, number, end, Stopped::Attempts));
        }
        if !can_again(unsent) {
            return Err(self.stop(budget, number, end, Stopped::BodyTooLarge));
        }
        let delay = match ended.verdict {
            Verdict::Elsewhere(after) => self.delay_of_one_that_drains(after, ended, last_delay),
            _ => self.settings.delay(hint, number, last_delay),
        };
        if ended.deadline.is_some_and(|deadline| self.ends_after(deadline, delay)) {
            self.count_stopped(StoppedBy::Deadline);
            return Err(self.stop(budget, number, end, Stopped::Deadline));
        }
        let Some(taken) = budget.take(time::now) else {
            self.count_stopped(StoppedBy::Budget);
            return Err(self.pass(number, end, Stopped::Budget));
        };
        if self.in_shadow() {
            return Err(self.only_told(budget, taken, attempt(number, end, delay.duration())));
        }
        if !give_up(unsent) {
            budget.give_back(taken);
            return Err(self.pass(number, end, Stopped::BodyTooLarge));
        }
        self.reporter().report_with(|| attempt(number, end, delay.duration()));
        Ok(Further { delay, taken })
    }

    /// Another instance may take it now. Where that drains too it may be the same one, at the end of the same
    /// connection: then this call waits, if it has the time. So does one that has a single attempt left.
    #[cold]
    #[inline(never)]
    fn delay_of_one_that_drains(&self, after: Duration, ended: Ended, last_delay: &mut Span) -> Span {
        let Ended { number, deadline, .. } = ended;
        if number > 1 || number + 1 >= self.settings.attempts() {
            let told = self.settings.delay(Some(after), number, last_delay);
            if !deadline.is_some_and(|deadline| self.ends_after(deadline, told)) {
                return told;
            }
        }
        self.settings.delay(None, number, last_delay)
    }

    /// In shadow nothing is given up, and the event says what would have been.
    #[cold]
    fn only_told(&self, budget: &Budget, taken: Taken, attempt: Kind) -> Stopped {
        budget.give_back(taken);
        self.reporter().report(attempt);
        Stopped::NotRetryable
    }

    /// There is no further attempt, by the verdict on this one.
    #[cold]
    fn done(&self, budget: &Budget, number: u32, end: End, verdict: Verdict) -> Stopped {
        let stopped = match verdict {
            Verdict::Done => {
                budget.succeeded();
                Stopped::Succeeded
            }
            Verdict::Stop => {
                budget.failed();
                Stopped::ServerSaidStop
            }
            Verdict::Late => {
                self.count_stopped(StoppedBy::Deadline);
                Stopped::Deadline
            }
            Verdict::Never | Verdict::Again(_) | Verdict::Elsewhere(_) | Verdict::Unsent => Stopped::NotRetryable,
        };
        self.pass(number, end, stopped)
    }

    #[cold]
    pub(crate) fn count_stopped(&self, by: StoppedBy) {
        let count = match by {
            StoppedBy::Budget => &self.stopped_by_budget,
            StoppedBy::Deadline => &self.stopped_by_deadline,
        };
        count.fetch_add(1, Relaxed);
        self.reporter().stopped(by);
    }

    /// It failed, and there is no further attempt for another reason than the budget.
    #[cold]
    fn stop(&self, budget: &Budget, number: u32, end: End, stopped: Stopped) -> Stopped {
        budget.failed();
        self.pass(number, end, stopped)
    }

    #[cold]
    fn pass(&self, number: u32, end: End, stopped: Stopped) -> Stopped {
        self.reporter().report(attempt(number, end, None));
        stopped
    }

    /// Would an attempt that begins after this delay, and takes as long as attempts usually do, come after the
    /// deadline?
    #[cold]
    fn ends_after(&self, deadline: Deadline, delay: Span) -> bool {
        let now = time::now();
        let left = deadline.instant().saturating_duration_since(now);
        let usual = self.latencies.quantile(self.epoch.at(now), 0.5, SAMPLES).unwrap_or_default();
        left <= delay.duration().unwrap_or(LONGEST).saturating_add(usual)
    }
}

impl Striped<Retrier> {
    pub(crate) fn snapshot(&self) -> RetrySnapshot {
        let (calls, figures) = (self.tally(), self.ledger.figures());
        RetrySnapshot {
            config: self.settings.load(),
            calls,
            attempts: calls + self.further(),
            stopped_by_budget: self.stopped_by_budget.load(Relaxed),
            stopped_by_deadline: self.stopped_by_deadline.load(Relaxed),
            deadline_exceeded: figures.deadline_exceeded,
            would_have_rejected: figures.would_have_rejected,
            shadow: figures.shadow,
        }
    }
}

fn attempt(number: u32, end: End, delay: Option<Duration>) -> Kind {
    Kind::Attempt { number, outcome: end.outcome(), delay }
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
