//! One admitted call: what is known of it when it ends, and what its end means.

use std::{fmt, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{
    Until,
    circuit_breaker::{breaker::Breaker, limits::nanos, machine::Ticket},
    deadline::Deadline,
    outcome::{End, Outcome},
    permit::Keeper,
    stripe::Shared,
};

/// An admitted call of a circuit breaker.
pub struct Call {
    breaker: Shared<Breaker>,
    ticket: Ticket,
    times: Times,
    /// What the server asked for.
    hint: Option<Duration>,
}

/// What was noted of the times of a call, in nanoseconds of the breaker's time; `NEVER` where it was not. A call that
/// nobody asks about reads no clock, and shall not be larger for it.
#[derive(Clone, Copy)]
struct Times {
    started: u64,
    deadline: u64,
    latency: u64,
    first_frame: u64,
}

const NEVER: u64 = u64::MAX;

impl Call {
    #[inline]
    pub(crate) fn new(breaker: Shared<Breaker>, ticket: Ticket, deadline: Option<Deadline>) -> Self {
        let asked = deadline.is_some() || breaker.slow_call().is_some();
        let times = if asked { Times::note(&breaker, deadline) } else { Times::UNKNOWN };
        Call { breaker, ticket, times, hint: None }
    }

    #[cold]
    fn says_nothing(&self, cancelled: bool) {
        if cancelled {
            self.breaker.cancelled.fetch_add(1, Relaxed);
        }
        self.breaker.release(self.ticket);
    }

    /// All but a plain success.
    #[cold]
    fn judge(&self, end: End) {
        let now = self.breaker.now();
        let blame_after = nanos(self.breaker.extras.blame_after);
        let outcome = match end {
            End::Outcome(Outcome::Cancelled) | End::Left => return self.says_nothing(true),
            End::Outcome(Outcome::Ignored) | End::Refused => return self.says_nothing(false),
            End::DeadlinePassed { had } => {
                let had = self.times.since_start(now).or(had.map(nanos));
                // Where it is not known how long it had, nobody is to blame.
                if had.is_none_or(|had| had + early(had) < blame_after) {
                    return self.says_nothing(true);
                }
                Outcome::Failure
            }
            // What a backend answers when a short deadline is over says nothing of the backend.
            End::Outcome(Outcome::Failure) if self.times.were_too_short(now, blame_after) => {
                return self.says_nothing(true);
            }
            End::Outcome(outcome) => outcome,
        };
        let latency = Some(self.times.latency).filter(|t| *t != NEVER).or_else(|| self.times.since_start(now));
        let slow = latency.zip(self.breaker.slow_call()).is_some_and(|(took, limit)| took > limit);
        self.breaker.settle(self.ticket, outcome, slow, now, self.hint);
    }
}

impl Times {
    const UNKNOWN: Times = Times { started: NEVER, deadline: NEVER, latency: NEVER, first_frame: NEVER };

    #[cold]
    fn note(breaker: &Breaker, deadline: Option<Deadline>) -> Self {
        let deadline = deadline.map_or(NEVER, |d| breaker.at(d.instant()));
        Times { started: breaker.now(), deadline, ..Times::UNKNOWN }
    }

    #[inline]
    fn are_unknown(&self) -> bool {
        self.started == NEVER
    }

    fn since_start(&self, now: u64) -> Option<u64> {
        (!self.are_unknown()).then(|| now.saturating_sub(self.started))
    }

    /// Is the caller's deadline over, and did it leave the backend too little time?
    fn were_too_short(&self, now: u64, blame_after: u64) -> bool {
        let had = self.deadline.saturating_sub(self.started);
        self.deadline != NEVER && now + early(had) >= self.deadline && had < blame_after
    }
}

/// How much before a deadline timers run out, ours and those of transports: as on the wire.
fn early(had: u64) -> u64 {
    (had / 100).clamp(1_000_000, 5_000_000)
}

impl Keeper for Call {
    #[inline]
    fn settle(&mut self, end: End) {
        match end {
            End::Outcome(Outcome::Success) if self.times.are_unknown() => self.breaker.succeeded(self.ticket),
            _ => self.judge(end),
        }
    }

    fn wants_hint(&self) -> bool {
        self.breaker.machine.limits().obey_retry_after.load(Relaxed)
    }

    fn hint(&mut self, after: Duration) {
        self.hint = Some(after);
    }

    fn good_head(&mut self) {
        if self.breaker.extras.until == Until::Head && !self.times.are_unknown() {
            self.times.latency = self.breaker.now().saturating_sub(self.times.started);
        }
        self.breaker.machine.good_head(self.ticket);
    }

    fn wants_frames(&self) -> bool {
        self.breaker.extras.until == Until::End && !self.times.are_unknown()
    }

    fn first_frame(&mut self) {
        self.times.first_frame = self.breaker.now().saturating_sub(self.times.started);
    }

    fn streams(&mut self) {
        self.times.latency = self.times.first_frame;
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}
