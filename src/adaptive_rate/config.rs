//! What an adaptive rate can be told.

use std::time::Duration;

use crate::{
    adaptive_rate::AdaptiveRateLayer,
    builder::{Identity, shared_setters},
    config::{Checks, ConfigError},
};

/// Builds an [`AdaptiveRateLayer`].
#[must_use = "a builder does nothing until `build()`"]
#[derive(Debug, Default)]
pub struct AdaptiveRateBuilder {
    identity: Identity,
    wait: Option<Duration>,
}

impl AdaptiveRateBuilder {
    shared_setters!();

    /// How long a call may wait for its turn, that instant included. 1 ns to 365 days; by default it is refused at
    /// once. A wait that would end past the call's [`Deadline`](crate::Deadline) is refused at once too.
    pub fn wait(mut self, max: Duration) -> Self {
        self.wait = Some(max);
        self
    }

    /// The layer, in its HTTP and gRPC form.
    ///
    /// # Errors
    ///
    /// Lists every bad field, with its value and its range.
    pub fn build(self) -> Result<AdaptiveRateLayer, ConfigError> {
        let mut checks = Checks::default();
        self.identity.check("adaptive_rate", &mut checks);
        if let Some(wait) = self.wait {
            checks.duration("wait", wait);
        }
        checks.finish()?;
        Ok(AdaptiveRateLayer::new(self.identity, self.wait))
    }
}
