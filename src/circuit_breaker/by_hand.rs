//! What hands do to a breaker, or to all of a layer with keys.

use crate::circuit_breaker::{CircuitBreakerConfig, IllegalMove, State, breaker::Breaker};

impl Breaker {
    pub(crate) fn move_to(&self, to: State) -> Result<(), IllegalMove> {
        #[cfg(feature = "http")]
        if let Some(by_key) = self.by_key() {
            return by_key.move_to(to);
        }
        let moved = self.machine.move_by_hand(to, self.now());
        let change = moved.map_err(|from| IllegalMove { from, to })?;
        self.changed(change, None);
        Ok(())
    }

    pub(crate) fn reset(&self) {
        #[cfg(feature = "http")]
        if let Some(by_key) = self.by_key() {
            return by_key.reset();
        }
        let change = self.machine.reset(self.now());
        self.changed(change, None);
    }

    pub(crate) fn update(&self, config: CircuitBreakerConfig) {
        #[cfg(feature = "http")]
        if let Some(by_key) = self.by_key() {
            return by_key.update(config);
        }
        self.common.configure(config, |config| self.machine.update(config, self.now()));
    }

    pub(crate) fn shadow(&self, on: bool) {
        #[cfg(feature = "http")]
        if let Some(by_key) = self.by_key() {
            return by_key.shadow(on);
        }
        self.machine.shadow(on);
    }
}
