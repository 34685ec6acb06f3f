//! The layer: the gate of its registry.

use std::sync::Arc;

use tower_layer::Layer;

use crate::{
    builder::layer_forms,
    drain::{Drain, DrainHandle, Gate},
    observe::{Figure, Reporter, Watched, watched},
    origin::Origin,
    protocol::Http,
    registry::Seat,
    rejection::Reason,
    stripe::Striped,
};

/// Counts what is in flight, and refuses what comes while its registry drains. See the [module](crate::drain).
///
/// All layers of one [`Registry`](crate::Registry), their clones, and all services made from them, count together.
#[derive(Debug, Clone)]
pub struct DrainLayer<P = Http> {
    shared: Arc<Striped<Gate>>,
    protocol: P,
}

impl DrainLayer {
    pub(crate) fn new(shared: Arc<Striped<Gate>>) -> Self {
        DrainLayer { shared, protocol: Http::default() }
    }
}

layer_forms!(DrainLayer, DrainHandle);

impl<S, P: Clone> Layer<S> for DrainLayer<P> {
    type Service = Drain<S, P>;

    fn layer(&self, inner: S) -> Drain<S, P> {
        Drain::new(inner, Arc::clone(&self.shared), self.protocol.clone())
    }
}

impl Gate {
    /// The gate of a registry, in which it has no name of its own: there is one, and it is asked for by itself.
    pub(crate) fn of(seat: Seat) -> Arc<Striped<Gate>> {
        const REASONS: &[Reason] = &[Reason::Draining];
        let origin = Origin::new("drain", "drain".into(), false, REASONS);
        let reporter = Reporter::new(origin, REASONS, Vec::new(), Some(Arc::new(seat)));
        watched(Striped::new(Gate::new(reporter)))
    }
}

impl Watched for Striped<Gate> {
    fn reporter(&self) -> &Reporter {
        Gate::reporter(self)
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        visit("draining", Figure::Flag(self.is_draining()));
        visit("in_flight", Figure::Count(self.in_flight()));
        visit("rejected", Figure::Count(self.rejected()));
    }

    fn admits(&self) -> bool {
        !self.is_draining()
    }
}
