//! A call that may not take longer than a bound: what `timeout` and `deadline` share.
//!
//! The two differ in whose clock it is and where the bound comes from. How a bound runs out is the same: the inner
//! future (or body) is polled first, so that an answer that is there wins; a timer is made only once something is
//! pending; when it fires, what is inside is dropped under its cause and the answer says why.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    deadline::{self, Deadline},
    observe::{Figure, Kind, Reporter, Watched, seen_by},
    rejection::{Reason, Rejection},
    stripe::{Core, Striped},
    time::{Instant, Span},
};

#[cfg(feature = "http")]
use crate::deadline::outer::{self, Outer};

mod future;
mod watch;

pub use self::{future::ResponseFuture, watch::BodyClock};

/// When a call must be over, and whose clock says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) at: Instant,
    /// `Timeout` or `DeadlineExceeded`.
    pub(crate) reason: Reason,
}

impl Bound {
    /// `None` where `at` is: beyond the clock's range nothing is bounded.
    #[inline]
    pub(crate) fn new(at: Option<Instant>, reason: Reason) -> Option<Bound> {
        at.map(|at| Bound { at, reason })
    }

    /// The earlier of two. On a tie the first: list the operator's own timeout first.
    #[inline]
    pub(crate) fn earliest(a: Option<Bound>, b: Option<Bound>) -> Option<Bound> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.at < a.at { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}

/// What bounds one call, as it was read. What it comes to is worked out once something is pending.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) start: Instant,
    /// The operator's bound, from the start.
    pub(crate) after: Span,
    /// When our timer for the caller's deadline runs out.
    pub(crate) caller: Option<Instant>,
    /// `None`: with the head of the response all is said.
    pub(crate) body: Option<BodyPlan>,
}

/// What bounds the body of a response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyPlan {
    /// Does the bound of the call last to the end of the body? Else to its head.
    pub(crate) to_the_end: bool,
    /// The longest wait for a frame.
    pub(crate) idle: Span,
    /// The ambient deadline.
    pub(crate) scope: Option<Deadline>,
}

impl Plan {
    /// How long a call had that ends so. `early`: our timer for the deadline runs out a little before it.
    #[cold]
    pub(crate) fn had(&self, bound: Bound, early: bool) -> Duration {
        had(self.start, bound, early)
    }

    /// For as long as what is inside runs. Where the bound is on the wire too, others there have to be told that it is
    /// not the caller's.
    #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "there is no wire"))]
    #[inline(always)]
    pub(crate) fn inside(&self, on_the_wire: bool) -> Inside {
        #[cfg(feature = "http")]
        if on_the_wire {
            // A copy: what is passed by reference has to be in memory for all the others too.
            enter(*self);
        }
        Inside {
            #[cfg(feature = "http")]
            on_the_wire,
        }
    }

    /// When the operator's own bound is reached.
    fn timeout(&self) -> Option<Instant> {
        self.after.duration().and_then(|after| self.start.checked_add(after))
    }

    pub(crate) fn bound(&self) -> Option<Bound> {
        let timeout = self.timeout();
        Bound::earliest(Bound::new(timeout, Reason::Timeout), Bound::new(self.caller, Reason::DeadlineExceeded))
    }
}

#[cfg(feature = "http")]
#[cold]
fn enter(plan: Plan) {
    let caller = plan.caller.map(|timer| {
        let had = plan.had(Bound { at: timer, reason: Reason::DeadlineExceeded }, true);
        Deadline::at(plan.start + had)
    });
    outer::enter(plan.timeout().map(|end| Outer { end, caller }));
}

/// What is inside runs; see [`Plan::inside`]. A guard and not a function around it: what went in and out by a closure
/// would be moved, and requests are large.
#[must_use = "what is inside runs for as long as this stands"]
pub(crate) struct Inside {
    #[cfg(feature = "http")]
    on_the_wire: bool,
}

/// After a panic too.
#[cfg(feature = "http")]
impl Drop for Inside {
    #[inline(always)]
    fn drop(&mut self) {
        if self.on_the_wire {
            outer::leave();
        }
    }
}

#[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "early is what is on the wire"))]
fn had(start: Instant, bound: Bound, early: bool) -> Duration {
    let had = bound.at.saturating_duration_since(start);
    #[cfg(feature = "http")]
    if early && bound.reason == Reason::DeadlineExceeded {
        return deadline::wire::with_margin(had);
    }
    had
}

/// Says what ran out, and counts it. One per layer.
#[derive(Debug)]
pub(crate) struct Ledger {
    reporter: Reporter,
    shadow: AtomicBool,
    timed_out: AtomicU64,
    deadline_exceeded: AtomicU64,
    would_have_rejected: AtomicU64,
    malformed_headers: AtomicU64,
}

/// The figures of a [`Ledger`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) timed_out: u64,
    pub(crate) deadline_exceeded: u64,
    pub(crate) would_have_rejected: u64,
    pub(crate) malformed_headers: u64,
    pub(crate) shadow: bool,
}

impl Ledger {
    pub(crate) fn new(reporter: Reporter, shadow: bool) -> Self {
        Ledger {
            reporter,
            shadow: AtomicBool::new(shadow),
            timed_out: AtomicU64::new(0),
            deadline_exceeded: AtomicU64::new(0),
            would_have_rejected: AtomicU64::new(0),
            malformed_headers: AtomicU64::new(0),
        }
    }

    /// Of a timeout or a deadline, of which it is all that can be seen.
    pub(crate) fn of_layer(reporter: Reporter, shadow: bool) -> Striped<Self> {
        let ledger = Striped::new(Ledger::new(reporter, shadow));
        seen_by(&ledger.reporter, ledger.core());
        ledger
    }

    pub(crate) fn name(&self) -> &str {
        self.reporter.name()
    }

    #[inline]
    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    #[inline]
    pub(crate) fn in_shadow(&self) -> bool {
        self.shadow.load(Relaxed)
    }

    pub(crate) fn shadow(&self, on: bool) {
        self.shadow.store(on, Relaxed);
    }

    #[cold]
    pub(crate) fn malformed(&self) {
        self.malformed_headers.fetch_add(1, Relaxed);
    }

    /// Time is up. `false`: the layer is in shadow, and the call goes on.
    #[cold]
    pub(crate) fn run_out(&self, reason: Reason) -> bool {
        if self.in_shadow() {
            self.would_have_rejected.fetch_add(1, Relaxed);
            self.reporter.report(Kind::WouldHaveRejected { reason });
            return false;
        }
        self.refuse(reason);
        true
    }

    /// Has the ambient deadline passed, so that the inner service is not to be asked whether it is ready?
    #[inline(always)]
    pub(crate) fn refuses_readiness(&self) -> bool {
        #[cold]
        fn looks_closer(ledger: &Ledger) -> bool {
            deadline::has_passed(Deadline::current()) && !ledger.in_shadow()
        }
        Deadline::current().is_some() && looks_closer(self)
    }

    /// The deadline has passed before an attempt could be made. `false`: in shadow the call goes on.
    #[cold]
    pub(crate) fn refuse_unless_in_shadow(&self) -> bool {
        self.run_out(Reason::DeadlineExceeded)
    }

    /// As [`refuse_unless_in_shadow`](Self::refuse_unless_in_shadow), where the call can't go on even in shadow.
    #[cold]
    pub(crate) fn refuse_late(&self) {
        self.refuse(Reason::DeadlineExceeded);
    }

    /// What a caller is told who is late.
    pub(crate) fn late(&self) -> Rejection {
        self.rejection(Reason::DeadlineExceeded, Duration::ZERO)
    }

    /// As [`run_out`](Self::run_out), where the call can't go on even in shadow.
    #[cold]
    pub(crate) fn refuse(&self, reason: Reason) {
        if reason == Reason::Timeout {
            self.timed_out.fetch_add(1, Relaxed);
            self.reporter.report(Kind::TimedOut);
        } else {
            self.deadline_exceeded.fetch_add(1, Relaxed);
            self.reporter.report(Kind::Rejected { reason });
        }
    }

    /// What a caller is told whose call had so long.
    #[cold]
    pub(crate) fn rejection(&self, reason: Reason, had: Duration) -> Rejection {
        self.reporter.rejection(reason).with_time_it_had(had)
    }

    pub(crate) fn figures(&self) -> Figures {
        Figures {
            timed_out: self.timed_out.load(Relaxed),
            deadline_exceeded: self.deadline_exceeded.load(Relaxed),
            would_have_rejected: self.would_have_rejected.load(Relaxed),
            malformed_headers: self.malformed_headers.load(Relaxed),
            shadow: self.in_shadow(),
        }
    }
}

/// Calls keep it as long as the layer does.
impl Watched for Core<Ledger> {
    fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let figures = Ledger::figures(self);
        if self.reporter.policy() == "timeout" {
            visit("timed_out", Figure::Count(figures.timed_out));
        }
        visit("deadline_exceeded", Figure::Count(figures.deadline_exceeded));
        visit("would_have_rejected", Figure::Count(figures.would_have_rejected));
        visit("malformed_headers", Figure::Count(figures.malformed_headers));
        visit("shadow", Figure::Flag(figures.shadow));
    }
}
