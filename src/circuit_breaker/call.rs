//! One admitted call: what is known of it when it ends, and what its end means.

use std::{fmt, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{
    Until,
    circuit_breaker::{
        breaker::Breaker,
        machine::{Ticket, limits::nanos},
    },
    deadline::Deadline,
    outcome::{End, Outcome},
    permit::Keeper,
    stripe::Shared,
    time::Span,
};

/// An admitted call of a circuit breaker.
pub struct Call {
    breaker: Shared<Breaker>,
    facts: Facts,
}

/// What is known of a call. Judged by value: a call whose address nobody takes can stay in registers from its admission
/// to its end, and that is worth a hundred instructions to each.
#[derive(Clone, Copy)]
struct Facts {
    ticket: Ticket,
    // Of the times those are noted that somebody will ask for, in nanoseconds of the breaker's time. `NEVER` else: a call
    // that nobody asks about reads no clock.
    started: u64,
    deadline: u64,
    /// How long it took, once that is known; and where frames are asked for, until then, how long to the first.
    latency: u64,
    latency_is_known: bool,
    /// What the server asked for.
    hint: Span,
}

const NEVER: u64 = u64::MAX;

impl Call {
    #[inline]
    pub(crate) fn new(
        breaker: Shared<Breaker>,
        ticket: Ticket,
        started: Option<u64>,
        deadline: Option<Deadline>,
    ) -> Self {
        let deadline = if let Some(d) = deadline { breaker.at(d.instant()) } else { NEVER };
        let started = started.unwrap_or(NEVER);
        let facts = Facts { ticket, started, deadline, latency: NEVER, latency_is_known: false, hint: Span::NONE };
        Call { breaker, facts }
    }

    pub(crate) fn breaker(&self) -> &Breaker {
        &self.breaker
    }
}

impl Facts {
    /// All but a plain success.
    #[cold]
    fn judge(self, breaker: &Breaker, end: End) {
        let now = breaker.now();
        let blame_after = nanos(breaker.extras.blame_after);
        let outcome = match end {
            End::Outcome(Outcome::Cancelled) | End::Left => return self.was_cancelled(breaker),
            End::Outcome(Outcome::Ignored) | End::Refused => return breaker.release(self.ticket),
            End::DeadlinePassed { had } => {
                // Of what is known the least: it may be dropped long after its deadline, or have begun long after its caller.
                let own = self.since_start(now.min(self.deadline));
                let had = [own, had.map(nanos)].into_iter().flatten().min();
                // Where it is not known how long it had, nobody is to blame.
                if had.is_none_or(|had| had + early(had) < blame_after) {
                    return self.was_cancelled(breaker);
                }
                Outcome::Failure
            }
            End::TimedOut => Outcome::Failure,
            // What a backend answers when a short deadline is over says nothing of the backend.
            End::Outcome(Outcome::Failure) if self.had_too_little_time(now, blame_after) => {
                return self.was_cancelled(breaker);
            }
            End::Outcome(outcome) => outcome,
        };
        let latency = if self.latency_is_known { Some(self.latency) } else { self.since_start(now) };
        let slow = latency.zip(breaker.slow_call()).is_some_and(|(took, limit)| took > limit);
        breaker.settle(self.ticket, outcome, slow, now, self.hint.duration());
    }

    fn was_cancelled(self, breaker: &Breaker) {
        if self.ticket.is_counted() {
            breaker.cancelled.fetch_add(1, Relaxed);
        }
        breaker.release(self.ticket);
    }

    fn since_start(self, now: u64) -> Option<u64> {
        (self.started != NEVER).then(|| now.saturating_sub(self.started))
    }

    /// Is the caller's deadline over, and did it leave the backend too little time?
    fn had_too_little_time(self, now: u64, blame_after: u64) -> bool {
        let had = self.deadline.saturating_sub(self.started);
        self.deadline != NEVER && now.saturating_add(early(had)) >= self.deadline && had < blame_after
    }
}

/// How much before a deadline timers run out, ours and those of transports: as on the wire.
fn early(had: u64) -> u64 {
    (had / 100).clamp(1_000_000, 5_000_000)
}

impl Keeper for Call {
    #[inline(always)]
    fn settle(&mut self, end: End) {
        match end {
            End::Outcome(Outcome::Success) if self.facts.started == NEVER => {
                self.breaker.succeeded(self.facts.ticket, self.breaker.stripe());
            }
            _ => self.facts.judge(&self.breaker, end),
        }
    }

    fn wants_hint(&self) -> bool {
        self.breaker.machine.limits().obey_retry_after.load(Relaxed)
    }

    fn hint(&mut self, after: Duration) {
        self.facts.hint = Some(after).into();
    }

    fn good_head(&mut self) -> bool {
        let Facts { ticket, started, .. } = self.facts;
        if self.breaker.extras.until == Until::Head && started != NEVER {
            self.first_frame();
            self.facts.latency_is_known = true;
            let is_slow = self.breaker.slow_call().is_some_and(|limit| self.facts.latency > limit);
            if is_slow && ticket.is_probe() {
                // A slow probe has failed, and its body, which may outlast its lease, can't make that good.
                self.breaker.settle(ticket, Outcome::Success, true, self.breaker.now(), None);
                return true;
            }
        }
        self.breaker.machine.good_head(ticket);
        false
    }

    fn wants_frames(&self) -> bool {
        self.breaker.extras.until == Until::End && self.facts.started != NEVER
    }

    fn first_frame(&mut self) {
        self.facts.latency = self.breaker.now().saturating_sub(self.facts.started);
    }

    fn streams(&mut self) {
        self.facts.latency_is_known = true;
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("ticket", &self.facts.ticket).finish_non_exhaustive()
    }
}
