//! What has to be done if the inner service panics.

use std::mem;

/// Runs the inner service's own code, and `then` only if that panics.
///
/// It costs nothing where nothing panics, if `then` only refers to what is there anyway.
#[inline(always)]
pub(crate) fn on_panic<T>(then: impl Fn(), run: impl FnOnce() -> T) -> T {
    struct Bomb<F: Fn()>(F);
    impl<F: Fn()> Drop for Bomb<F> {
        #[cold]
        fn drop(&mut self) {
            (self.0)();
        }
    }
    let bomb = Bomb(then);
    let result = run();
    mem::forget(bomb);
    result
}
