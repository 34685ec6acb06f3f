//! The layer: one limiter, shared by every clone and every service made from it.

use std::sync::Arc;

use tower_layer::Layer;

use crate::{
    builder::{Identity, layer_forms},
    bulkhead::{
        Bulkhead, BulkheadBuilder, BulkheadConfig, BulkheadHandle, common::Common, config::Fixed, limiter::Limiter,
    },
    config::ConfigError,
    observe::watched,
    protocol::Http,
    rejection::Reason,
    stripe::Striped,
};

/// Bounds how many calls are in flight in the services it wraps. See the [module](crate::bulkhead).
///
/// Clones, and all services made from them, share one limit.
#[derive(Debug)]
pub struct BulkheadLayer<P = Http> {
    shared: Arc<Striped<Limiter>>,
    protocol: P,
}

/// All that it can refuse with.
const REASONS: [Reason; 5] =
    [Reason::BulkheadFull, Reason::QueueTimeout, Reason::ShedByPriority, Reason::DeadlineExceeded, Reason::KeyMissing];

impl BulkheadLayer {
    /// Starts a builder; `limit` has to be set.
    pub fn builder() -> BulkheadBuilder {
        BulkheadBuilder::default()
    }

    /// A bulkhead by its numbers alone.
    ///
    /// # Errors
    ///
    /// As [`BulkheadBuilder::build`].
    pub fn from_config(config: BulkheadConfig) -> Result<Self, ConfigError> {
        config.checked()?;
        Ok(Self::new(Identity::default(), config, Fixed::default()))
    }

    pub(crate) fn new(identity: Identity, config: BulkheadConfig, fixed: Fixed) -> Self {
        let shadow = identity.shadow;
        let reporter = identity.reporter("bulkhead", &REASONS);
        let common = Arc::new(Common::new(reporter, shadow, config, fixed.priority_fn));
        #[cfg(feature = "http")]
        let limiter = if fixed.keys.are_asked() { Limiter::in_front(common, fixed.keys) } else { Limiter::new(common) };
        #[cfg(not(feature = "http"))]
        let limiter = Limiter::new(common);
        BulkheadLayer { shared: watched(Striped::new(limiter)), protocol: Http::default() }
    }
}

layer_forms!(BulkheadLayer, BulkheadHandle);

impl<P: Clone> Clone for BulkheadLayer<P> {
    fn clone(&self) -> Self {
        BulkheadLayer { shared: Arc::clone(&self.shared), protocol: self.protocol.clone() }
    }
}

impl<S, P: Clone> Layer<S> for BulkheadLayer<P> {
    type Service = Bulkhead<S, P>;

    fn layer(&self, inner: S) -> Bulkhead<S, P> {
        Bulkhead::new(inner, Arc::clone(&self.shared), self.protocol.clone())
    }
}
