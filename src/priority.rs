//! How much a request matters.

/// How much a request matters. What has to be turned away under overload is turned away from the lowest up.
///
/// It comes from a policy's own function or rides in the extensions of the request; without either a request is
/// `Default`. Never from a header by itself: whoever sends one would be the most important.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Nobody waits for it: backfills, prefetching. Served last, but not never.
    Background,
    /// Better late or not at all than in the way: retries, batches.
    Sheddable,
    /// All that says nothing.
    #[default]
    Default,
    /// Must work as long as anything does: logins, payments.
    Critical,
}
