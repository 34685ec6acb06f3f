//! What has to be done if the inner service panics.

use std::mem;

/// Runs the inner service's own code, and `then` only if that panics.
///
/// It costs nothing where nothing panics, if `then` only refers to what is there anyway.
#[inline(always)]
pub(crate) fn on_panic<T>(then: impl Fn(), run: impl FnOnce() -> T) -> T {
    let armed = Armed(then);
    let result = run();
    armed.disarm();
    result
}

/// As [`on_panic`], for code that takes something large along, which would be moved into a closure: it runs between
/// this and [`disarm`](Self::disarm).
pub(crate) struct Armed<F: Fn()>(pub(crate) F);

impl<F: Fn()> Armed<F> {
    #[inline(always)]
    pub(crate) fn disarm(self) {
        mem::forget(self);
    }
}

impl<F: Fn()> Drop for Armed<F> {
    #[cold]
    fn drop(&mut self) {
        (self.0)();
    }
}
