//! Waking others.

use std::task::Waker;

use crate::observe::contain;

/// Wakes all of them, under no lock of ours: a waker is somebody else's code.
///
/// One that panics keeps none of the others asleep, and takes nothing from the call that happens to wake it: it is
/// contained, and counted with the observers that do.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        contain(|| waker.wake());
    }
}
