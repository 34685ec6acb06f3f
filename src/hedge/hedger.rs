//! What all calls of one layer share, and what the end of an attempt means to the others.

use std::{
    fmt,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    bounded::Ledger,
    budget::{Budget, Taken},
    builder::Identity,
    config::{Checks, ConfigError},
    hedge::{HedgeConfig, HedgeSnapshot, config::Fixed, delay::Delay},
    observe::{Kind, Reporter, StoppedBy},
    outcome::{End, Outcome},
    rejection::Reason,
    retry::Verdict,
    stripe::{Shared, Striped},
    time::Instant,
    updating::Updating,
};

/// The state of a hedge layer.
pub(crate) struct Hedger {
    pub(crate) fixed: Fixed,
    minimum_samples: AtomicU32,
    max: AtomicU32,
    pub(crate) budget: Budget,
    /// May there be a retry with the same budget?
    shares_its_budget: bool,
    /// Does the budget count successes, or may somebody listen? Asked once, for all calls.
    tells_of_successes: bool,
    pub(crate) delay: Delay,
    /// Says what came too late, and all else.
    pub(crate) ledger: Ledger,
    won: AtomicU64,
    stopped_by_budget: AtomicU64,
    would_have_hedged: AtomicU64,
    updating: Updating,
}

/// What the end of an attempt means to the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Another one may do better: it is sent at once.
    Failed,
    /// No further one is sent; those that run may still do better.
    Enough,
    /// It is the call's.
    Over,
}

impl Meaning {
    pub(crate) fn of(end: End, verdict: Verdict) -> Self {
        match (verdict, end) {
            // The backend, or a policy before it, asks for less. An open breaker is no reason to give up what runs.
            (_, End::Outcome(Outcome::Throttled) | End::Refused) => Meaning::Enough,
            (Verdict::Stop | Verdict::Again(Some(_)), _) => Meaning::Enough,
            (Verdict::Again(None) | Verdict::Elsewhere(_) | Verdict::Unsent, _) => Meaning::Failed,
            (Verdict::Done | Verdict::Never | Verdict::Late, _) => Meaning::Over,
        }
    }
}

impl Hedger {
    pub(crate) fn new(identity: Identity, config: HedgeConfig, fixed: Fixed, budget: Budget) -> Self {
        let shadow = identity.shadow;
        let reporter = identity.reporter("hedge", &[Reason::DeadlineExceeded]);
        Hedger {
            fixed,
            minimum_samples: AtomicU32::new(config.minimum_samples),
            max: AtomicU32::new(config.max),
            shares_its_budget: budget.is_shared(),
            tells_of_successes: budget.counts_successes() || reporter.may_have_listeners(),
            budget,
            delay: Delay::new(&config),
            ledger: Ledger::new(reporter, shadow),
            won: AtomicU64::new(0),
            stopped_by_budget: AtomicU64::new(0),
            would_have_hedged: AtomicU64::new(0),
            updating: Updating::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.ledger.name()
    }

    #[inline]
    pub(crate) fn reporter(&self) -> &Reporter {
        self.ledger.reporter()
    }

    /// How many attempts a call may have beside the first.
    pub(crate) fn max(&self) -> u32 {
        self.max.load(Relaxed)
    }

    /// Each number changes by itself; whatever two of them a call sees, each is valid.
    pub(crate) fn update(&self, config: HedgeConfig) -> Result<(), ConfigError> {
        let mut checks = Checks::default();
        self.delay.check(&config, &mut checks);
        config.check(&mut checks);
        checks.finish()?;
        let _one = self.updating.one();
        self.minimum_samples.store(config.minimum_samples, Relaxed);
        self.max.store(config.max, Relaxed);
        self.delay.store(&config);
        Ok(())
    }

    fn config(&self) -> HedgeConfig {
        HedgeConfig {
            after: self.delay.after(),
            quantile: self.delay.quantile(),
            minimum_samples: self.minimum_samples.load(Relaxed),
            max: self.max(),
        }
    }

    /// How many further attempts the budget has left.
    pub(crate) fn budget_left(&self) -> Option<f64> {
        self.budget.left()
    }

    #[inline]
    pub(crate) fn in_shadow(&self) -> bool {
        self.ledger.in_shadow()
    }

    pub(crate) fn shadow(&self, on: bool) {
        self.ledger.shadow(on);
    }

    /// It is the turn of a further attempt: one failed, or takes long.
    pub(crate) fn take(&self, budget: &Budget, failed: bool, now: Instant) -> Option<Taken> {
        let in_shadow = self.in_shadow();
        let Some(taken) = budget.take_beside(failed && !in_shadow, || now) else {
            self.stopped_by_budget.fetch_add(1, Relaxed);
            self.reporter().stopped(StoppedBy::Budget);
            return None;
        };
        if in_shadow {
            budget.give_back(taken);
            self.would_have_hedged.fetch_add(1, Relaxed);
            return None;
        }
        Some(taken)
    }

    /// An attempt failed, or not.
    pub(crate) fn count_in_tokens(&self, verdict: Verdict) {
        match verdict {
            Verdict::Done => self.budget.succeeded(),
            Verdict::Stop | Verdict::Again(_) | Verdict::Elsewhere(_) | Verdict::Unsent => self.budget.failed(),
            Verdict::Never | Verdict::Late => {}
        }
    }

    pub(crate) fn won(&self) {
        self.won.fetch_add(1, Relaxed);
    }

    pub(crate) fn report(&self, number: u32, outcome: Outcome, delay: Option<Duration>) {
        self.reporter().report(Kind::Attempt { number, outcome, delay });
    }
}

impl Striped<Hedger> {
    pub(crate) fn snapshot(&self) -> HedgeSnapshot {
        let figures = self.ledger.figures();
        HedgeSnapshot {
            calls: self.tally(),
            hedges: self.further(),
            won: self.won.load(Relaxed),
            stopped_by_budget: self.stopped_by_budget.load(Relaxed),
            deadline_exceeded: figures.deadline_exceeded,
            would_have_hedged: self.would_have_hedged.load(Relaxed),
            would_have_rejected: figures.would_have_rejected,
            shadow: figures.shadow,
            config: self.config(),
        }
    }
}

impl Shared<Hedger> {
    /// A call begins. Does it pay into the budget? Not where a retry around it has paid for it already.
    #[inline(always)]
    pub(crate) fn began(&self, own_budget: Option<&Budget>) -> bool {
        self.count();
        let budget = own_budget.unwrap_or(&self.budget);
        let pays = !(self.shares_its_budget && budget.is_paid());
        if pays {
            budget.began(self.stripe());
        }
        pays
    }

    /// An attempt ended well.
    #[inline(always)]
    pub(crate) fn succeeded(&self, number: u32, pays: bool) {
        if self.tells_of_successes {
            self.tell_of_a_success(number, pays);
        } else {
            self.reporter().succeeded_unheard(number);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_of_a_success(&self, number: u32, pays: bool) {
        if pays {
            self.budget.succeeded();
        }
        self.reporter().succeeded(number);
    }
}

impl fmt::Debug for Hedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedger")
            .field("ledger", &self.ledger)
            .field("config", &self.config())
            .field("fixed", &self.fixed)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}
