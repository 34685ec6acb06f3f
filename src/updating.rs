//! Updates of several numbers, each of which changes by itself.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Of two updates at once one is the last, in all numbers. Those who read them wait for nobody.
#[derive(Debug, Default)]
pub(crate) struct Updating(Mutex<()>);

impl Updating {
    /// No other update, for as long as this stands.
    pub(crate) fn one(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
