//! The layer: what all calls share, made by `build()`.

use std::sync::Arc;

use tower_layer::Layer;

use crate::{
    builder::{judging_forms, layer_forms},
    protocol::{Boxed, CloneWith, Flat, Http, Plain},
    retry::{Retry, RetryBuilder, RetryHandle, retrier::Retrier},
    stripe::Striped,
};

/// Makes failed calls again. See the [module](crate::retry).
///
/// Clones, and all services made from them, share their budget and their figures.
#[derive(Debug)]
pub struct RetryLayer<P = Http> {
    shared: Arc<Striped<Retrier>>,
    protocol: P,
}

impl RetryLayer {
    /// Starts a builder with the defaults.
    pub fn builder() -> RetryBuilder {
        RetryBuilder::default()
    }

    pub(crate) fn new(retrier: Retrier) -> Self {
        RetryLayer { shared: crate::observe::watched(Striped::new(retrier)), protocol: Http::default() }
    }
}

layer_forms!(RetryLayer, RetryHandle);
judging_forms!(RetryLayer);

macro_rules! clone_with {
    ($form:ident, $call:literal) => {
        impl<C> RetryLayer<$form<C>> {
            /// For requests that are not `Clone`: each attempt sends what `copy` makes of the request, and the last one
            /// the request itself. Where it gives `None` there is no further attempt.
            ///
            /// ```
            /// # use buttress::RetryLayer;
            /// # struct Job { id: u32, once: bool }
            /// # fn main() -> Result<(), buttress::ConfigError> {
            #[doc = concat!("let layer = RetryLayer::builder().build()?", $call)]
            ///     .clone_with(|job: &Job| (!job.once).then(|| Job { id: job.id, once: false }));
            /// # drop(layer); Ok(()) }
            /// ```
            pub fn clone_with<Q, F>(self, copy: F) -> RetryLayer<CloneWith<$form<C>, F>>
            where
                F: Fn(&Q) -> Option<Q> + Clone,
            {
                RetryLayer { shared: self.shared, protocol: CloneWith { form: self.protocol, copy } }
            }
        }
    };
}

clone_with!(Plain, ".plain()");
clone_with!(Flat, ".flat()");
clone_with!(Boxed, ".boxed()");

impl<P: Clone> Clone for RetryLayer<P> {
    fn clone(&self) -> Self {
        RetryLayer { shared: Arc::clone(&self.shared), protocol: self.protocol.clone() }
    }
}

impl<S, P: Clone> Layer<S> for RetryLayer<P> {
    type Service = Retry<S, P>;

    fn layer(&self, inner: S) -> Retry<S, P> {
        Retry::new(inner, Arc::clone(&self.shared), self.protocol.clone())
    }
}
