//! The short way, for the calls of a layer that was told little.

use crate::rate_limit::rules::Rules;

/// What a call takes if nothing else has to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// One unit of the common quota.
    Common,
    /// One unit of its key's quota.
    #[cfg(feature = "http")]
    Key,
    /// There is none.
    Rules,
}

impl Lane {
    pub(crate) fn of(rules: &Rules) -> Self {
        match rules.short() {
            Some(None) => Lane::Common,
            #[cfg(feature = "http")]
            Some(Some(_)) => Lane::Key,
            #[cfg(not(feature = "http"))]
            Some(Some(never)) => match *never {},
            None => Lane::Rules,
        }
    }
}
