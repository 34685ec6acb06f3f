//! The layer: one wall, shared by every clone and every service made from it.

use std::sync::Arc;

use tower_layer::Layer;

use crate::{
    builder::{Identity, layer_forms},
    bulkhead::{Bulkhead, BulkheadBuilder, BulkheadConfig, BulkheadHandle, config::Told, hull::Hull, wall::Wall},
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
    shared: Arc<Striped<Wall>>,
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
        Ok(Self::new(Identity::default(), config, Told::default()))
    }

    pub(crate) fn new(identity: Identity, config: BulkheadConfig, told: Told) -> Self {
        let shadow = identity.shadow;
        let reporter = identity.reporter("bulkhead", &REASONS);
        let hull = Arc::new(Hull::new(reporter, shadow, config, told.priority_fn));
        #[cfg(feature = "http")]
        let wall = if told.keys.are_asked() { Wall::in_front(hull, told.keys) } else { Wall::new(hull) };
        #[cfg(not(feature = "http"))]
        let wall = Wall::new(hull);
        BulkheadLayer { shared: watched(Striped::new(wall)), protocol: Http::default() }
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
