//! The layer: one controller, shared by every clone and every service made from it.

use std::{sync::Arc, time::Duration};

use tower_layer::Layer;

use crate::{
    adaptive_rate::{AdaptiveRate, AdaptiveRateBuilder, AdaptiveRateHandle, controller::Controller},
    builder::{Identity, judging_forms, layer_forms},
    protocol::Http,
    rejection::Reason,
    stripe::Striped,
};

/// Sends as fast as the backend lets it. See the [module](crate::adaptive_rate).
///
/// Clones, and all services made from them, share one rate.
#[derive(Debug)]
pub struct AdaptiveRateLayer<P = Http> {
    shared: Arc<Striped<Controller>>,
    protocol: P,
}

impl AdaptiveRateLayer {
    /// Starts a builder; nothing has to be set.
    pub fn builder() -> AdaptiveRateBuilder {
        AdaptiveRateBuilder::default()
    }

    pub(crate) fn new(identity: Identity, wait: Option<Duration>) -> Self {
        let shadow = identity.shadow;
        let controller = Controller::new(
            identity.reporter("adaptive_rate", &[Reason::Throttled, Reason::DeadlineExceeded]),
            shadow,
            wait,
        );
        AdaptiveRateLayer { shared: crate::observe::watched(Striped::new(controller)), protocol: Http::default() }
    }
}

layer_forms!(AdaptiveRateLayer, AdaptiveRateHandle);
judging_forms!(AdaptiveRateLayer);

impl<P: Clone> Clone for AdaptiveRateLayer<P> {
    fn clone(&self) -> Self {
        AdaptiveRateLayer { shared: Arc::clone(&self.shared), protocol: self.protocol.clone() }
    }
}

impl<S, P: Clone> Layer<S> for AdaptiveRateLayer<P> {
    type Service = AdaptiveRate<S, P>;

    fn layer(&self, inner: S) -> AdaptiveRate<S, P> {
        AdaptiveRate::new(inner, Arc::clone(&self.shared), self.protocol.clone())
    }
}
