//! The only source of randomness: jitter and shares, never secrets.

/// A number in `0.0..1.0`, from this thread's generator. `fastrand::seed` on the same thread makes it repeatable.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub(crate) fn unit() -> f64 {
    fastrand::f64()
}
