//! The layer: what all calls share, made by `build()`.

use std::sync::Arc;

use tower_layer::Layer;

use crate::{
    builder::{judging_forms, layer_forms},
    hedge::{Hedge, HedgeBuilder, HedgeHandle, hedger::Hedger},
    observe::watched,
    protocol::{Boxed, CloneWith, Flat, Http, Plain},
    stripe::Striped,
};

/// Sends a slow call a second time. See the [module](crate::hedge).
///
/// Clones, and all services made from them, share their budget and their figures.
#[derive(Debug)]
pub struct HedgeLayer<P = Http> {
    shared: Arc<Striped<Hedger>>,
    protocol: P,
}

impl HedgeLayer {
    /// Starts a builder with the defaults.
    pub fn builder() -> HedgeBuilder {
        HedgeBuilder::default()
    }

    pub(crate) fn new(hedger: Hedger) -> Self {
        HedgeLayer { shared: watched(Striped::new(hedger)), protocol: Http::default() }
    }
}

layer_forms!(HedgeLayer, HedgeHandle);
judging_forms!(HedgeLayer);

macro_rules! clone_with {
    ($form:ident, $call:literal) => {
        impl<C> HedgeLayer<$form<C>> {
            /// For requests that are not `Clone`: each attempt sends what `copy` makes of the request. Where it gives
            /// `None` for the first, that is sent alone; where for a later one, the request itself is the last.
            ///
            /// ```
            /// # use buttress::HedgeLayer;
            /// # struct Job { id: u32, once: bool }
            /// # fn main() -> Result<(), buttress::ConfigError> {
            #[doc = concat!("let layer = HedgeLayer::builder().quantile(0.95).build()?", $call)]
            ///     .clone_with(|job: &Job| (!job.once).then(|| Job { id: job.id, once: false }));
            /// # drop(layer); Ok(()) }
            /// ```
            pub fn clone_with<Q, F>(self, copy: F) -> HedgeLayer<CloneWith<$form<C>, F>>
            where
                F: Fn(&Q) -> Option<Q> + Clone,
            {
                HedgeLayer { shared: self.shared, protocol: CloneWith { form: self.protocol, copy } }
            }
        }
    };
}

clone_with!(Plain, ".plain()");
clone_with!(Flat, ".flat()");
clone_with!(Boxed, ".boxed()");

impl<P: Clone> Clone for HedgeLayer<P> {
    fn clone(&self) -> Self {
        HedgeLayer { shared: Arc::clone(&self.shared), protocol: self.protocol.clone() }
    }
}

impl<S, P: Clone> Layer<S> for HedgeLayer<P> {
    type Service = Hedge<S, P>;

    fn layer(&self, inner: S) -> Hedge<S, P> {
        Hedge::new(inner, Arc::clone(&self.shared), self.protocol.clone())
    }
}
