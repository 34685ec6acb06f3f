//! What a call finds: in `poll_ready`, and in `call`.

use std::time::Duration;

use crate::rejection::Reason;

/// What `poll_ready` finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Nobody has asked yet.
    Unasked,
    /// The inner service was asked.
    Open,
    /// The next call may have to wait; until its turn the inner service is left alone.
    Shut,
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

/// A place in the line, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) place: u32,
    /// In milliseconds of the wall's time; it wraps, for there is no more room in a future that nearly never has one.
    since: u32,
    pub(crate) expires: u64,
    pub(crate) why: Reason,
}

impl Waits {
    pub(crate) fn new(place: u32, now: u64, expires: u64, why: Reason) -> Self {
        Waits { place, since: millis(now), expires, why }
    }

    /// How long, to the millisecond.
    pub(crate) fn so_far(self, now: u64) -> Duration {
        Duration::from_millis(millis(now).wrapping_sub(self.since).into())
    }
}

fn millis(nanos: u64) -> u32 {
    (nanos / 1_000_000) as u32
}
