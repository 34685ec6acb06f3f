//! What a future does that is polled after it was ready.

/// It panics with this.
pub(crate) const POLLED: &str = "a future is not polled after it was ready";

/// Takes what a future has until it is ready.
#[inline(always)]
pub(crate) fn take<T>(slot: &mut Option<T>) -> T {
    slot.take().expect(POLLED)
}
