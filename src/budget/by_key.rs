//! A budget for each key: what the calls to one host have used up is none of the others' business.

use std::{fmt, sync::Arc};

use super::{Budget, Kind, share::Share};
use crate::{
    key::Key,
    keyed::{Keyed, State},
    protocol::Head,
    time::Epoch,
};

/// So many keys have a budget of their own. Who calls more hosts than that shares some.
const MOST: usize = 10_000;

pub(super) struct ByKey {
    key: Key,
    /// Of calls without a key, and of what is done by hand.
    pub(super) keyless: Budget,
    keyed: Keyed<Budget, Numbers>,
    epoch: Epoch,
}

/// What all of them have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) ratio: u64,
    pub(super) minimum: u64,
    pub(super) tick: u64,
}

impl Numbers {
    fn budget(&self) -> Budget {
        let share = Share::new(self.ratio, self.minimum, self.tick);
        Budget(Arc::new(Kind::Share { epoch: Epoch::new(), share }))
    }
}

impl ByKey {
    pub(super) fn new(key: Key, keyless: Budget, numbers: Numbers) -> Self {
        let keyed = Keyed::new(MOST, numbers, || numbers.budget());
        ByKey { key, keyless, keyed, epoch: Epoch::new() }
    }

    /// The budget of a call.
    pub(super) fn find(&self, head: Option<Head<'_>>) -> Budget {
        match head.and_then(|head| self.key.of(head, None)) {
            Some(key) => self.keyed.with(key.as_bytes(), self.epoch.now(), |_, budget| budget.clone()),
            None => self.keyless.clone(),
        }
    }

    /// What is left where the least is.
    pub(super) fn left(&self) -> Option<f64> {
        let mut least = self.keyless.left()?;
        self.keyed.for_each(|budget| least = least.min(budget.left().unwrap_or(least)));
        Some(least)
    }
}

impl State<Numbers> for Budget {
    /// A call that runs holds its budget, and may give back what it has taken.
    fn idle_at(&self, _: &Numbers) -> Option<u64> {
        let as_new = Arc::strong_count(&self.0) == 1
            && match &*self.0 {
                Kind::Share { epoch, share } => share.is_as_new(epoch.now()),
                Kind::Tokens(_) | Kind::Unlimited | Kind::ByKey(_) => true,
            };
        as_new.then_some(0)
    }

    fn promoted(_overflow: &Self, numbers: &Numbers, _now: u64) -> Self {
        // What was used there was used by many. The minimum that a new one has comes at most once for each key in a
        // window: before it is as new again it does not go.
        numbers.budget()
    }
}

impl fmt::Debug for ByKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByKey").field("key", &self.key).field("keys", &self.keyed.len()).finish_non_exhaustive()
    }
}
