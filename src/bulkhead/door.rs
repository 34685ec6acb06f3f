//! What a call finds: in `poll_ready`, and in `call`.

use std::time::Duration;

use crate::rejection::Reason;

/// Why `poll_ready` leaves the inner service alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shut {
    /// The next call may have to wait for its turn.
    Waits,
    /// The next call is refused.
    Refuses(Reason),
}

/// What `call` is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    In,
    Waits(Waits),
    Refused(Reason),
}

/// A place in the line, or none any more, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) place: u32,
    /// Since when, in milliseconds of the limiter's time, and in the highest bit whether it is a deadline that ends it.
    /// The time wraps after 24 days, for there is no more room in a future that nearly never has one.
    since: u32,
    pub(crate) expires: u64,
}

const DEADLINE: u32 = 1 << 31;

impl Waits {
    pub(crate) fn new(place: u32, now: u64, expires: u64, why: Reason) -> Self {
        let deadline = if why == Reason::DeadlineExceeded { DEADLINE } else { 0 };
        Waits { place, since: millis(now) | deadline, expires }
    }

    /// Why it is refused if it waits in vain.
    pub(crate) fn why(self) -> Reason {
        if self.since & DEADLINE != 0 { Reason::DeadlineExceeded } else { Reason::QueueTimeout }
    }

    /// How long, to the millisecond.
    pub(crate) fn so_far(self, now: u64) -> Duration {
        Duration::from_millis((millis(now).wrapping_sub(self.since) & !DEADLINE).into())
    }
}

fn millis(nanos: u64) -> u32 {
    (nanos / 1_000_000) as u32 & !DEADLINE
}
