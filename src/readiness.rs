//! What a readied instance holds.

use std::mem;

/// Gives it back. A call that is refused after readiness does not use what it was promised (a permit, a place, a
/// connection), and that must not wait for the next call: the readied instance goes, and an unready one comes.
#[inline(always)]
pub(crate) fn give_back<S: Clone>(readied: &mut S) {
    let unready = readied.clone();
    drop(mem::replace(readied, unready));
}
