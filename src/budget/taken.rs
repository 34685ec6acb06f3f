//! What was taken from a budget, and goes back if it is not used.

use super::{Budget, Kind, share::Withdrawal};
use crate::time::{self, Instant};

/// What was taken from a budget.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken(Withdrawal);

impl Taken {
    /// What a budget without windows gives, which takes nothing back.
    const NOTHING: Taken = Taken(Withdrawal::NOTHING);
}

impl Budget {
    /// As [`withdraw`](Self::withdraw); what was taken can be given back. The clock is asked if it matters.
    #[inline(always)]
    pub(crate) fn take(&self, now: impl FnOnce() -> Instant) -> Option<Taken> {
        match &*self.0 {
            Kind::Share { epoch, share } => share.withdraw(epoch.at(now())).map(Taken),
            other => other.take(now),
        }
    }

    /// As [`take`](Self::take), for an attempt beside those that run. Tokens are for failures, and of these there was
    /// none; or there was one, and it is counted only if this gives something.
    pub(crate) fn take_beside(&self, failed: bool, now: impl FnOnce() -> Instant) -> Option<Taken> {
        match &*self.0 {
            Kind::Tokens(tokens) => {
                let enough = if failed { tokens.failed_if_enough() } else { tokens.are_enough() };
                enough.then_some(Taken::NOTHING)
            }
            _ => self.take(now),
        }
    }

    /// It was not used.
    pub(crate) fn give_back(&self, taken: Taken) {
        match (&*self.0, taken) {
            (Kind::Share { share, .. }, Taken(withdrawal)) => share.give_back(withdrawal),
            #[cfg(feature = "http")]
            (Kind::ByKey(by_key), taken) => by_key.keyless.give_back(taken),
            _ => {}
        }
    }

    /// Keeps what was taken until the attempt is made, and gives it back if it never is.
    pub(crate) fn hold(&self, taken: Taken) -> Reservation {
        self.0.put_off(taken);
        Reservation { budget: self.clone(), is_made: false }
    }
}

impl Kind {
    #[cold]
    fn take(&self, now: impl FnOnce() -> Instant) -> Option<Taken> {
        match self {
            Kind::Share { epoch, share } => share.withdraw(epoch.at(now())).map(Taken),
            Kind::Tokens(tokens) => tokens.failed().then_some(Taken::NOTHING),
            Kind::Unlimited => Some(Taken::NOTHING),
            #[cfg(feature = "http")]
            Kind::ByKey(by_key) => by_key.keyless.0.take(now),
        }
    }

    fn put_off(&self, Taken(withdrawal): Taken) {
        match self {
            Kind::Share { share, .. } => share.put_off(withdrawal),
            #[cfg(feature = "http")]
            Kind::ByKey(by_key) => by_key.keyless.0.put_off(Taken(withdrawal)),
            Kind::Tokens(_) | Kind::Unlimited => {}
        }
    }

    /// An attempt that was put off is made now, or never.
    fn settle(&self, is_made: bool) {
        match self {
            Kind::Share { epoch, share } if is_made => share.make(epoch.at(time::now())),
            Kind::Share { share, .. } => share.call_off(),
            #[cfg(feature = "http")]
            Kind::ByKey(by_key) => by_key.keyless.0.settle(is_made),
            Kind::Tokens(_) | Kind::Unlimited => {}
        }
    }
}

/// What was taken for an attempt that waits. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Budget,
    is_made: bool,
}

impl Reservation {
    /// The attempt is made.
    pub(crate) fn spend(mut self) {
        self.is_made = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.settle(self.is_made);
    }
}
