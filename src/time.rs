//! The only reader of the clock.
//!
//! It is tokio's clock, so that under `tokio::time::pause` every policy follows virtual time. `clippy.toml` keeps
//! every other file from reading a clock.

use std::time::Duration;

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
