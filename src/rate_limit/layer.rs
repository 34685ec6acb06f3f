//! The layer: one limiter, shared by every clone and every service made from it.

use std::sync::Arc;

use tower_layer::Layer;

use crate::{
    Boxed, Flat, Plain,
    builder::Identity,
    protocol::Http,
    rate_limit::{
        Engine, Local, Quota, RateLimit, RateLimitBuilder, RateLimitHandle, engine::Setup, gcra::Meter,
        limiter::Limiter, rules::Rules,
    },
    rejection::Reason,
    stripe::Striped,
};

/// Lets so many calls through, and no more. See the [module](crate::rate_limit).
///
/// Clones, and all services made from them, share their quotas.
#[derive(Debug)]
pub struct RateLimitLayer<P = Http, St: Engine = Local> {
    shared: Arc<Striped<Limiter<St>>>,
    protocol: P,
}

impl RateLimitLayer {
    /// Starts a builder; `quota` has to be set.
    pub fn builder() -> RateLimitBuilder {
        RateLimitBuilder::default()
    }
}

impl<St: Engine> RateLimitLayer<Http, St> {
    pub(crate) fn new(
        identity: Identity,
        quota: Quota,
        meter: Meter,
        most_keys: usize,
        rules: Rules,
        seed: St::Seed,
    ) -> Self {
        const REASONS: [Reason; 4] =
            [Reason::RateLimited, Reason::CostAboveBurst, Reason::KeyMissing, Reason::DeadlineExceeded];
        let shadow = identity.shadow;
        let reporter = identity.reporter("rate_limit", &REASONS);
        let store = St::make(seed, Setup { meter, most_keys, name: reporter.name().into() });
        let limiter = Limiter::new(reporter, shadow, quota, rules, store);
        RateLimitLayer { shared: crate::observe::watched(Striped::new(limiter)), protocol: Http::default() }
    }
}

impl<P, St: Engine> RateLimitLayer<P, St> {
    /// The name it was given, else the policy's kind.
    pub fn name(&self) -> &str {
        self.shared.name()
    }

    /// A handle to read and steer this layer and everything it wraps.
    pub fn handle(&self) -> RateLimitHandle {
        RateLimitHandle::new(Arc::clone(&self.shared) as Arc<_>)
    }

    /// For a service whose error is a `std::error::Error`: it becomes [`Error<E>`](crate::Error). The state stays
    /// shared with the layer this was made from. There are no heads to see: every call takes one unit of the common
    /// quota.
    pub fn plain(self) -> RateLimitLayer<Plain, St> {
        self.with_protocol(Plain::default())
    }

    /// For a service whose error is `From<Rejection>`: it stays what it was. Otherwise as [`plain`](Self::plain).
    pub fn flat(self) -> RateLimitLayer<Flat, St> {
        self.with_protocol(Flat::default())
    }

    /// For every other service: the error becomes a [`BoxError`](crate::BoxError). Otherwise as [`plain`](Self::plain).
    pub fn boxed(self) -> RateLimitLayer<Boxed, St> {
        self.with_protocol(Boxed::default())
    }

    pub(super) fn with_protocol<Q>(self, protocol: Q) -> RateLimitLayer<Q, St> {
        RateLimitLayer { shared: self.shared, protocol }
    }
}

impl<P: Clone, St: Engine> Clone for RateLimitLayer<P, St> {
    fn clone(&self) -> Self {
        RateLimitLayer { shared: Arc::clone(&self.shared), protocol: self.protocol.clone() }
    }
}

impl<S, P: Clone, St: Engine> Layer<S> for RateLimitLayer<P, St> {
    type Service = RateLimit<S, P, St>;

    fn layer(&self, inner: S) -> RateLimit<S, P, St> {
        RateLimit::new(inner, Arc::clone(&self.shared), self.protocol.clone())
    }
}
