//! One admitted call: what is known of it when it ends, and what its end means.

use std::{fmt, mem, sync::atomic::Ordering::Relaxed, time::Duration};

use crate::{
    Until,
    circuit_breaker::{
        breaker::Breaker,
        facts::{Facts, Full, Later, NEVER, Times},
        machine::{Pass, Ticket},
    },
    outcome::{End, Outcome},
    permit::Keeper,
    stripe::Shared,
    time::{self, Instant, Span, nanos},
};

/// An admitted call of a circuit breaker.
pub struct Call {
    breaker: Shared<Breaker>,
    facts: Facts,
}

impl Call {
    #[inline]
    pub(crate) fn new(breaker: Shared<Breaker>, facts: Facts) -> Self {
        Call { breaker, facts }
    }
}

// These take the breaker: then whoever calls them has nothing to drop.

#[inline(never)]
fn succeeded_full(breaker: Shared<Breaker>, ticket: Ticket, times: Times, later: Later) {
    judge(&breaker, ticket, times, later, End::Outcome(Outcome::Success));
}

#[cold]
#[inline(never)]
fn judge_plain(breaker: Shared<Breaker>, pass: Pass, end: End) {
    judge(&breaker, Ticket::plain(pass.generation()), Times::NONE, Later::NOTHING, end);
}

#[cold]
#[inline(never)]
fn judge_full(breaker: Shared<Breaker>, ticket: Ticket, times: Times, later: Later, end: End) {
    judge(&breaker, ticket, times, later, end);
}

#[cold]
#[inline(never)]
fn panicked(breaker: &Breaker, ticket: Ticket, times: Times, later: Later) {
    // Its own fault, however little time its caller had.
    record(breaker, ticket, times, later, Outcome::Failure, time::now());
}

#[inline(never)]
fn judge(breaker: &Breaker, ticket: Ticket, times: Times, later: Later, end: End) {
    let at = time::now();
    let now = breaker.at(at);
    let blame_after = nanos(breaker.common.fixed.blame_after);
    let outcome = match end {
        End::Outcome(Outcome::Cancelled) | End::Left => return was_cancelled(breaker, ticket),
        End::Outcome(Outcome::Ignored) | End::Refused => {
            breaker.release(ticket);
            return breaker.reporter().ended(Outcome::Ignored);
        }
        End::DeadlinePassed { had } => {
            // Of what is known the least: it may be dropped long after its deadline, or have begun long after its
            // caller.
            let own = times.had(now);
            let had = [own, had.map(nanos)].into_iter().flatten().min();
            // Where it is not known how long it had, nobody is to blame.
            if had.is_none_or(|had| had < blame_after) {
                return was_cancelled(breaker, ticket);
            }
            Outcome::Failure
        }
        End::TimedOut => Outcome::Failure,
        // What a backend answers when a short deadline is over says nothing of the backend.
        End::Outcome(Outcome::Failure) if times.had_too_little(now, blame_after) => {
            return was_cancelled(breaker, ticket);
        }
        End::Outcome(outcome) => outcome,
    };
    record(breaker, ticket, times, later, outcome, at);
}

fn record(breaker: &Breaker, ticket: Ticket, times: Times, later: Later, outcome: Outcome, at: Instant) {
    let now = breaker.at(at);
    let latency = later.latency.known().or_else(|| times.since_start(now));
    let slow = latency.zip(breaker.slow_call()).is_some_and(|(took, limit)| took > limit);
    if outcome == Outcome::Success && !slow && ticket.is_plain() {
        return breaker.succeeded_at(ticket.generation(), at);
    }
    breaker.settle(ticket, outcome, slow, now, later.hint.duration());
    breaker.reporter().ended(outcome);
}

fn was_cancelled(breaker: &Breaker, ticket: Ticket) {
    if ticket.is_counted() {
        breaker.common.cancelled.fetch_add(1, Relaxed);
    }
    breaker.release(ticket);
    breaker.reporter().ended(Outcome::Cancelled);
}

impl Keeper for Call {
    #[inline(always)]
    fn settle(&mut self, end: End) {
        match (end, self.facts) {
            (End::Outcome(Outcome::Success), Facts::Plain { pass }) => {
                Breaker::succeeded_and_goes_on(&self.breaker, pass);
            }
            (end, facts) => {
                let Full { ticket, times, later } = facts.all();
                judge(&self.breaker, ticket, times, later, end);
            }
        }
    }

    fn panicked(&mut self) {
        let Full { ticket, times, later } = self.facts.all();
        panicked(&self.breaker, ticket, times, later);
    }

    // All by value and in registers.
    #[inline(always)]
    fn finish(self, end: End) {
        let Call { breaker, facts } = self;
        match (end, facts) {
            (End::Outcome(Outcome::Success), Facts::Plain { pass }) => Breaker::succeeded(breaker, pass),
            (End::Outcome(Outcome::Success), Facts::Full(f)) => succeeded_full(breaker, f.ticket, f.times, f.later),
            (end, Facts::Plain { pass }) => judge_plain(breaker, pass, end),
            (end, Facts::Full(f)) => judge_full(breaker, f.ticket, f.times, f.later, end),
        }
    }

    #[inline(always)]
    fn guard<T>(&mut self, run: impl FnOnce() -> T) -> T {
        /// Dropped only by a panic. It has what it needs by value.
        struct Bomb<'a>(&'a Breaker, Ticket, Times);
        impl Drop for Bomb<'_> {
            #[inline(always)]
            fn drop(&mut self) {
                panicked(self.0, self.1, self.2, Later::NOTHING);
            }
        }
        let (ticket, times) = match self.facts {
            Facts::Plain { pass } => (Ticket::plain(pass.generation()), Times::NONE),
            Facts::Full(full) => (full.ticket, full.times),
        };
        let bomb = Bomb(&self.breaker, ticket, times);
        let out = run();
        mem::forget(bomb);
        out
    }

    fn wants_hint(&self) -> bool {
        self.breaker.machine.limits().obey_retry_after.load(Relaxed)
    }

    fn hint(&mut self, after: Duration) {
        let mut full = self.facts.all();
        full.later.hint = Span::at_most(after);
        self.facts = Facts::Full(full);
    }

    fn spares_peers(&self) -> bool {
        self.breaker.common.fixed.spares_peers
    }

    fn unread(&mut self) {
        if self.breaker.common.fixed.until == Until::End
            && let Facts::Full(full) = &mut self.facts
        {
            // How long it took to its end nobody knows: how long its caller kept it says nothing.
            full.times.started = NEVER;
        }
        self.settle(End::Outcome(Outcome::Success));
    }

    fn good_head(&mut self) -> bool {
        let Facts::Full(full) = &mut self.facts else { return false };
        let ticket = full.ticket;
        if self.breaker.common.fixed.until == Until::Head && full.times.started != NEVER {
            full.first_frame(&self.breaker);
            full.later.latency.become_known();
            let took = full.later.latency.known();
            let is_slow = took.zip(self.breaker.slow_call()).is_some_and(|(took, limit)| took > limit);
            if is_slow && ticket.is_probe() {
                // A slow probe has failed, and its body, which may outlast its lease, can't make that good.
                self.breaker.settle(ticket, Outcome::Success, true, self.breaker.now(), None);
                self.breaker.reporter().ended(Outcome::Success);
                return true;
            }
        }
        self.breaker.machine.good_head(ticket, || self.breaker.now());
        false
    }

    fn wants_frames(&self) -> bool {
        self.breaker.common.fixed.until == Until::End
            && matches!(self.facts, Facts::Full(Full { times, .. }) if times.started != NEVER)
    }

    fn first_frame(&mut self) {
        if let Facts::Full(full) = &mut self.facts {
            full.first_frame(&self.breaker);
        }
    }

    fn streams(&mut self) {
        if let Facts::Full(full) = &mut self.facts {
            full.later.latency.become_known();
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("ticket", &self.facts.ticket()).finish_non_exhaustive()
    }
}
