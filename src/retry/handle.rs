//! Reading and changing a retry while it runs.

use std::sync::Arc;

use crate::{
    config::{Checks, ConfigError},
    observe::{Figure, Reporter, Watched},
    retry::{RetryConfig, retrier::Retrier},
    stripe::Striped,
};

/// Reads and changes a [`RetryLayer`](crate::RetryLayer) and everything it wraps.
#[derive(Debug, Clone)]
pub struct RetryHandle {
    shared: Arc<Striped<Retrier>>,
}

/// The figures of a retry, since `build()`.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct RetrySnapshot {
    /// Calls that came, without those that were refused.
    pub calls: u64,
    /// Attempts that were made for them, the first ones included.
    pub attempts: u64,
    /// Calls whose failure came back because the budget had nothing left.
    pub stopped_by_budget: u64,
    /// Calls whose failure came back because a further attempt would not have ended before their deadline, or could not
    /// begin.
    pub stopped_by_deadline: u64,
    /// Calls that came after their deadline and were refused, or could not be made again before it and had given up
    /// their answer.
    pub deadline_exceeded: u64,
    /// Calls that shadow let go on after their deadline.
    pub would_have_rejected: u64,
    /// Does it only report the attempts that it would make?
    pub shadow: bool,
    /// The numbers in force. (Where there is a [`backoff_fn`](crate::RetryBuilder::backoff_fn), it stands in for
    /// `backoff`.)
    pub config: RetryConfig,
}

impl RetryHandle {
    pub(crate) fn new(shared: Arc<Striped<Retrier>>) -> Self {
        RetryHandle { shared }
    }

    /// The figures. Each is exact; they are not read at one instant.
    pub fn snapshot(&self) -> RetrySnapshot {
        self.shared.snapshot()
    }

    /// Changes the numbers, for calls that run too: they look at their next failure. A wait that has begun goes on, a
    /// `backoff_fn` stays, and a call that began when there was one attempt has none of the others.
    ///
    /// # Errors
    ///
    /// As `build()`; then nothing is changed.
    pub fn update(&self, config: RetryConfig) -> Result<(), ConfigError> {
        let mut checks = Checks::default();
        config.check(self.shared.settings.has_backoff_fn(), &mut checks);
        checks.finish()?;
        self.shared.settings.store(config);
        Ok(())
    }

    /// Shadow: the first answer is passed on, and the event of its attempt tells what delay there would have been.
    pub fn shadow(&self, on: bool) {
        self.shared.shadow(on);
    }
}

impl Watched for Striped<Retrier> {
    fn reporter(&self) -> &Reporter {
        Retrier::reporter(self)
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let seen = self.snapshot();
        visit("calls", Figure::Count(seen.calls));
        visit("attempts", Figure::Count(seen.attempts));
        visit("stopped_by_budget", Figure::Count(seen.stopped_by_budget));
        visit("stopped_by_deadline", Figure::Count(seen.stopped_by_deadline));
        visit("budget_left", self.budget.left().into());
        visit("deadline_exceeded", Figure::Count(seen.deadline_exceeded));
        visit("would_have_rejected", Figure::Count(seen.would_have_rejected));
        visit("shadow", Figure::Flag(seen.shadow));
    }
}
