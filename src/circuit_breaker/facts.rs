//! What is known of one admitted call.

use crate::{
    circuit_breaker::{
        breaker::Breaker,
        machine::{Pass, Ticket},
    },
    time::Span,
};

/// What is known of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Facts {
    /// It was admitted while closed, and nobody asks how long it takes: so are nearly all, and they write no more.
    Plain {
        pass: Pass,
    },
    Full(Full),
}

/// In parts of two words. Each is passed in registers; what is larger is passed by its address, and then every call
/// would have to be in memory from its admission to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Full {
    pub(super) ticket: Ticket,
    pub(super) times: Times,
    pub(super) later: Later,
}

/// Of the times those are noted that somebody will ask for, in nanoseconds of the breaker's time. `NEVER` else: a call
/// that nobody asks about reads no clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) started: u64,
    pub(super) deadline: u64,
}

/// What is learnt of a call while it runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Later {
    pub(super) latency: Latency,
    /// What the server asked for.
    pub(super) hint: Span,
}

/// How long a call took, once that is known (the upper bit); and where frames are asked for, until then, how long to
/// the first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency(u64);

pub(super) const NEVER: u64 = u64::MAX;

impl Facts {
    #[inline]
    pub(crate) fn plain(pass: Pass) -> Self {
        Facts::Plain { pass }
    }

    /// Of a call that is of no breaker.
    #[cfg(feature = "http")]
    pub(crate) const UNCOUNTED: Facts =
        Facts::Full(Full { ticket: Ticket::UNCOUNTED, times: Times::NONE, later: Later::NOTHING });

    pub(crate) fn full(ticket: Ticket, started: Option<u64>, deadline: Option<u64>) -> Self {
        let [started, deadline] = [started, deadline].map(|t| t.unwrap_or(NEVER));
        Facts::Full(Full { ticket, times: Times { started, deadline }, later: Later::NOTHING })
    }

    #[inline]
    pub(crate) fn ticket(self) -> Ticket {
        match self {
            Facts::Plain { pass } => Ticket::plain(pass.generation()),
            Facts::Full(full) => full.ticket,
        }
    }

    pub(super) fn all(self) -> Full {
        match self {
            Facts::Plain { pass } => {
                Full { ticket: Ticket::plain(pass.generation()), times: Times::NONE, later: Later::NOTHING }
            }
            Facts::Full(full) => full,
        }
    }
}

impl Times {
    pub(super) const NONE: Times = Times { started: NEVER, deadline: NEVER };

    pub(super) fn since_start(self, now: u64) -> Option<u64> {
        if self.started == NEVER { None } else { Some(now.saturating_sub(self.started)) }
    }

    /// How long the call had whose deadline ended it now: to that, though timers run out a little before.
    pub(super) fn had(self, now: u64) -> Option<u64> {
        self.of_a_deadline_that_is_over(now).or_else(|| self.since_start(now))
    }

    /// Is the caller's deadline over, and did it leave the backend too little time?
    pub(super) fn had_too_little(self, now: u64, blame_after: u64) -> bool {
        self.of_a_deadline_that_is_over(now).is_some_and(|had| had < blame_after)
    }

    fn of_a_deadline_that_is_over(self, now: u64) -> Option<u64> {
        let had = self.deadline.saturating_sub(self.started);
        let is_over =
            self.deadline != NEVER && self.started != NEVER && now.saturating_add(early(had)) >= self.deadline;
        is_over.then_some(had)
    }
}

impl Later {
    pub(super) const NOTHING: Later = Later { latency: Latency(NEVER & !Latency::KNOWN), hint: Span::NONE };
}

impl Latency {
    const KNOWN: u64 = 1 << 63;

    fn to_the_first_frame(took: u64) -> Self {
        Latency(took & !Latency::KNOWN)
    }

    pub(super) fn known(self) -> Option<u64> {
        if self.0 & Latency::KNOWN == 0 { None } else { Some(self.0 & !Latency::KNOWN) }
    }

    pub(super) fn become_known(&mut self) {
        self.0 |= Latency::KNOWN;
    }
}

impl Full {
    pub(super) fn first_frame(&mut self, breaker: &Breaker) {
        self.later.latency = Latency::to_the_first_frame(breaker.now().saturating_sub(self.times.started));
    }
}

/// How much before a deadline timers run out, ours and those of transports: as on the wire.
fn early(had: u64) -> u64 {
    (had / 100).clamp(1_000_000, 5_000_000)
}
