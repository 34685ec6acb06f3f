//! The only reader of the clock.
//!
//! It is tokio's clock, so that under `tokio::time::pause` every policy follows virtual time. `clippy.toml` keeps
//! every other file from reading a clock.

use std::{fmt, time::Duration};

pub(crate) use tokio::time::{Instant, Sleep, sleep_until};

/// The longest duration a setting accepts: one year. tokio's timer wheel turns once in a little over two.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The time of day, for dates that a server sent. tokio does not pause this one.
#[cfg(feature = "http")]
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// Now. One clock read; the callers keep it to one per call.
#[inline]
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A duration or none, in one word: nanoseconds, which last for 584 years.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) u64);

impl Span {
    pub(crate) const NONE: Span = Span(u64::MAX);

    #[inline]
    pub(crate) fn duration(self) -> Option<Duration> {
        (self != Span::NONE).then(|| Duration::from_nanos(self.0))
    }
}

impl From<Option<Duration>> for Span {
    fn from(d: Option<Duration>) -> Self {
        d.and_then(|d| u64::try_from(d.as_nanos()).ok()).map_or(Span::NONE, Span)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.duration().fmt(f)
    }
}
