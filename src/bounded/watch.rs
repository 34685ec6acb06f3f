//! The clock in a response body.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::{
    bounded::{BodyPlan, Bound, Ledger, Plan, had},
    deadline::Deadline,
    protocol::{Watch, sealed::Sealed},
    rejection::{Reason, Rejection},
    stripe::Shared,
    time::{self, Instant, Sleep, poll_at},
};

/// Bounds a response body: as a whole, and the wait for each frame.
pub struct BodyClock {
    start: Instant,
    /// Does our timer for the deadline run out before it?
    early: bool,
    total: Option<Bound>,
    idle: Option<Duration>,
    /// Since the inner body had nothing for its reader, this is how long it may go on. Not set while nobody reads.
    idle_until: Option<Instant>,
    scope: Option<Deadline>,
    ledger: Shared<Ledger>,
}

impl BodyClock {
    pub(crate) fn new(plan: &Plan, body: BodyPlan, early: bool, ledger: &Shared<Ledger>) -> Self {
        let BodyPlan { to_the_end, idle, scope } = body;
        let total = plan.bound().filter(|_| to_the_end);
        BodyClock {
            start: plan.start,
            early,
            total,
            idle: idle.duration(),
            idle_until: None,
            scope,
            ledger: ledger.clone(),
        }
    }

    /// What runs out first, the idle time having begun at `now` if it was not running.
    fn next(&mut self) -> Option<Bound> {
        let idle = self.idle.and_then(|idle| {
            let until = match self.idle_until {
                Some(until) => Some(until),
                None => time::now().checked_add(idle),
            };
            self.idle_until = until;
            until.map(|at| Bound { at, reason: Reason::Timeout })
        });
        Bound::earliest(idle, self.total)
    }

    /// Reports what ran out. In shadow the bound is forgotten, so that it is reported once.
    fn run_out(&mut self, bound: Bound) -> Option<Rejection> {
        // Both bounds of the operator may run out together, and then that is one thing to report.
        if self.idle_until == Some(bound.at) && bound.reason == Reason::Timeout {
            self.idle_until = None;
            self.idle = None;
        }
        self.total = self.total.filter(|total| *total != bound);
        let had = had(self.start, bound, self.early);
        self.ledger.run_out(bound.reason).then(|| self.ledger.rejection(bound.reason, had))
    }
}

impl Sealed for BodyClock {}

/// What the response says does not matter, only how long it takes.
impl Watch for BodyClock {
    type Timer = Option<Sleep>;

    const JUDGES: bool = false;
    const COUNTS_MALFORMED: bool = true;

    fn malformed(&mut self) {
        self.ledger.malformed();
    }

    fn deadline(&self) -> Option<Deadline> {
        self.scope
    }

    fn frame(&mut self) -> Option<Rejection> {
        self.idle_until = None;
        // A body that always has one more frame never waits; the whole is bounded all the same.
        let total = self.total.filter(|b| b.at < time::now())?;
        self.run_out(total)
    }

    fn poll_overdue(&mut self, mut timer: Pin<&mut Option<Sleep>>, cx: &mut Context<'_>) -> Poll<Rejection> {
        while let Some(bound) = self.next() {
            ready!(poll_at(timer.as_mut(), bound.at, cx));
            if let Some(rejection) = self.run_out(bound) {
                return Poll::Ready(rejection);
            }
        }
        Poll::Pending
    }
}

impl fmt::Debug for BodyClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyClock").field("total", &self.total).field("idle", &self.idle).finish_non_exhaustive()
    }
}
