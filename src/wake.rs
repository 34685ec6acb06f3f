//! Waking others.

use std::{collections::BTreeMap, mem, task::Waker};

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

/// Those who wait for one thing, each under a number of its own. Whoever locks them clones what goes in before the
/// lock, and drops and wakes what comes out after it.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    next: u64,
    all: BTreeMap<u64, Waker>,
}

impl Wakers {
    /// Somebody is going to wait.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// It waits by this one; the one it had comes out.
    #[must_use]
    pub(crate) fn wait(&mut self, number: u64, waker: Waker) -> Option<Waker> {
        self.all.insert(number, waker)
    }

    #[must_use]
    pub(crate) fn leave(&mut self, number: u64) -> Option<Waker> {
        self.all.remove(&number)
    }

    /// All of them, to be woken.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Waker> + use<> {
        mem::take(&mut self.all).into_values()
    }
}
