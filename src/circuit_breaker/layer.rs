//! The layer: one breaker, shared by every clone and every service made from it.

use std::sync::Arc;

use tower_layer::Layer;

use crate::{
    builder::{Identity, judging_forms, layer_forms},
    circuit_breaker::{
        CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerConfig, CircuitBreakerHandle,
        breaker::Breaker,
        common::{Common, Fixed},
    },
    config::ConfigError,
    observe::watched,
    protocol::Http,
    rejection::Reason,
    stripe::Striped,
};

/// Stops calling a backend that fails, and finds out when it is well again. See the [module](crate::circuit_breaker).
///
/// Clones, and all services made from them, share one breaker.
#[derive(Debug)]
pub struct CircuitBreakerLayer<P = Http> {
    shared: Arc<Striped<Breaker>>,
    protocol: P,
}

/// All that it can refuse with; the last one only with keys.
const REASONS: [Reason; 3] = [Reason::CircuitOpen, Reason::ForcedOpen, Reason::KeyMissing];

impl CircuitBreakerLayer {
    /// Starts a builder with the defaults.
    pub fn builder() -> CircuitBreakerBuilder {
        CircuitBreakerBuilder::default()
    }

    /// A breaker by its numbers alone. They are taken as they are: what the builder derives where it is not told (a
    /// `minimum_calls` that fits a small count window, `successes_to_close` that fit few probes) is to be said.
    ///
    /// # Errors
    ///
    /// As [`CircuitBreakerBuilder::build`].
    pub fn from_config(config: CircuitBreakerConfig) -> Result<Self, ConfigError> {
        config.checked()?;
        Ok(Self::new(Identity::default(), config, Fixed::default()))
    }

    pub(crate) fn new(identity: Identity, config: CircuitBreakerConfig, fixed: Fixed) -> Self {
        let shadow = identity.shadow;
        let reasons: &[Reason] = if fixed.has_keys() { &REASONS } else { &REASONS[..2] };
        let reporter = identity.reporter("circuit_breaker", reasons);
        let common = Arc::new(Common::new(reporter, shadow, config, fixed));
        #[cfg(feature = "http")]
        let breaker = if common.fixed.has_keys() { Breaker::in_front(common) } else { Breaker::alone(common, shadow) };
        #[cfg(not(feature = "http"))]
        let breaker = Breaker::alone(common, shadow);
        CircuitBreakerLayer { shared: watched(Striped::new(breaker)), protocol: Http::default() }
    }
}

layer_forms!(CircuitBreakerLayer, CircuitBreakerHandle);
judging_forms!(CircuitBreakerLayer);

impl<P: Clone> Clone for CircuitBreakerLayer<P> {
    fn clone(&self) -> Self {
        CircuitBreakerLayer { shared: Arc::clone(&self.shared), protocol: self.protocol.clone() }
    }
}

impl<S, P: Clone> Layer<S> for CircuitBreakerLayer<P> {
    type Service = CircuitBreaker<S, P>;

    fn layer(&self, inner: S) -> CircuitBreaker<S, P> {
        CircuitBreaker::new(inner, Arc::clone(&self.shared), self.protocol.clone())
    }
}
