//! What the caller's deadline means for one call: when our timer runs out.

use crate::{deadline::Deadline, time::Instant};

/// The caller's deadline, and the instant at which our timer fires for it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Caller {
    pub(crate) deadline: Option<Deadline>,
    timer: Option<Instant>,
}

impl Caller {
    /// A deadline that the timer keeps to the instant.
    #[inline]
    pub(crate) fn exact(deadline: Option<Deadline>) -> Self {
        Caller { deadline, timer: deadline.map(Deadline::instant) }
    }

    /// A deadline that is on the wire, where the transport has a timer of its own: ours fires a little before it.
    #[cfg(feature = "http")]
    #[inline]
    pub(crate) fn early(deadline: Option<Deadline>, now: Instant) -> Self {
        Caller { deadline, timer: deadline.map(|d| before(d, now)) }
    }

    /// The earlier deadline and the earlier timer.
    #[cfg(feature = "http")]
    pub(crate) fn and(self, other: Caller) -> Self {
        let timer = match (self.timer, other.timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Caller { deadline: crate::deadline::earliest(self.deadline, other.deadline), timer }
    }

    #[inline]
    pub(crate) fn has_passed(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|d| d.instant() <= now)
    }

    #[inline]
    pub(crate) fn timer(&self) -> Option<Instant> {
        self.timer
    }
}

/// A little before the deadline; now, if there is less left than that.
#[cfg(feature = "http")]
#[inline(never)]
fn before(deadline: Deadline, now: Instant) -> Instant {
    let margin = crate::deadline::wire::margin(deadline.instant().saturating_duration_since(now));
    deadline.instant().checked_sub(margin).unwrap_or(now)
}
