//! What a readied instance holds.

use std::mem;

/// What the last `poll_ready` of a layer that may refuse did with the inner service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness<Why = ()> {
    /// It asked, so that the inner service may hold something for the next call. Still so after that call, which costs
    /// a clone more when the door closes, and those that go nothing.
    Asked,
    /// It left the inner service alone: the next call is refused, for this.
    Refused(Why),
    /// There was none: nothing is held.
    Unasked,
}

impl<Why> Readiness<Why> {
    /// The door is closed, and nothing of the inner service is held behind it.
    #[inline(always)]
    pub(crate) fn refuse<S: Clone>(&mut self, inner: &mut S, why: Why) {
        if let Readiness::Asked = mem::replace(self, Readiness::Refused(why)) {
            give_back_now(inner);
        }
    }

    #[inline(always)]
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Readiness::Refused(_))
    }
}

/// Out of line, for a door that closes has been open for many calls.
#[cold]
#[inline(never)]
fn give_back_now<S: Clone>(readied: &mut S) {
    give_back(readied);
}

/// Gives it back. A call that is refused after readiness does not use what it was promised (a permit, a place, a
/// connection), and that must not wait for the next call: the readied instance goes, and an unready one comes.
#[inline(always)]
pub(crate) fn give_back<S: Clone>(readied: &mut S) {
    let unready = readied.clone();
    drop(mem::replace(readied, unready));
}
