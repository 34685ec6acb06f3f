//! The layer: settings that can change while it runs, and the ledger, shared by everything made from it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use tower_layer::Layer;

use crate::{
    bounded::{BodyPlan, Ledger},
    builder::{Identity, layer_forms},
    protocol::Http,
    rejection::Reason,
    stripe::Striped,
    time::Span,
    timeout::{Timeout, TimeoutBuilder, TimeoutConfig, TimeoutHandle, Until},
    updating::Updating,
};

#[cfg(feature = "http")]
pub(crate) type AfterFn = Box<dyn Fn(&http::request::Parts) -> Option<std::time::Duration> + Send + Sync>;
#[cfg(not(feature = "http"))]
pub(crate) type AfterFn = std::convert::Infallible;

/// Bounds every call of the services it wraps. See the [module](crate::timeout).
///
/// Clones, and all services made from them, share their settings and figures.
#[derive(Debug)]
pub struct TimeoutLayer<P = Http> {
    shared: Arc<State>,
    protocol: P,
}

pub(crate) struct State {
    settings: Settings,
    after_fn: Option<AfterFn>,
    pub(crate) ledger: Striped<Ledger>,
}

impl TimeoutLayer {
    /// Starts a builder; one of `after`, `after_fn` and `idle` has to be set.
    pub fn builder() -> TimeoutBuilder {
        TimeoutBuilder::default()
    }

    pub(crate) fn new(identity: Identity, config: TimeoutConfig, after_fn: Option<AfterFn>) -> Self {
        let shadow = identity.shadow;
        let reporter = identity.reporter("timeout", &[Reason::Timeout, Reason::DeadlineExceeded]);
        let settings = Settings::new(config);
        let ledger = Ledger::of_layer(reporter, shadow);
        TimeoutLayer { shared: Arc::new(State { settings, after_fn, ledger }), protocol: Http::default() }
    }
}

layer_forms!(TimeoutLayer, TimeoutHandle);

impl<P: Clone> Clone for TimeoutLayer<P> {
    fn clone(&self) -> Self {
        TimeoutLayer { shared: Arc::clone(&self.shared), protocol: self.protocol.clone() }
    }
}

impl<S, P: Clone> Layer<S> for TimeoutLayer<P> {
    type Service = Timeout<S, P>;

    fn layer(&self, inner: S) -> Timeout<S, P> {
        Timeout::new(inner, Arc::clone(&self.shared), self.protocol.clone())
    }
}

impl State {
    pub(crate) fn name(&self) -> &str {
        self.ledger.name()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn after_fn(&self) -> Option<&AfterFn> {
        self.after_fn.as_ref()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("config", &self.settings.load())
            .field("after_fn", &self.after_fn.is_some())
            .field("ledger", &self.ledger)
            .finish()
    }
}

/// A [`TimeoutConfig`] that can be read without a lock. Each value changes by itself, so a call that starts during an
/// update may see one new and one old; each of the two is valid.
#[derive(Debug)]
pub(crate) struct Settings {
    // Each a `Span`.
    after: AtomicU64,
    idle: AtomicU64,
    to_the_end: AtomicBool,
    updating: Updating,
}

impl Settings {
    fn new(config: TimeoutConfig) -> Self {
        let settings = Settings {
            after: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            to_the_end: AtomicBool::new(false),
            updating: Updating::default(),
        };
        settings.store(config);
        settings
    }

    pub(crate) fn store(&self, config: TimeoutConfig) {
        let _one = self.updating.one();
        self.after.store(Span::from(config.after).0, Relaxed);
        self.idle.store(Span::from(config.idle).0, Relaxed);
        self.to_the_end.store(config.until == Until::End, Relaxed);
    }

    pub(crate) fn load(&self) -> TimeoutConfig {
        let until = if self.to_the_end.load(Relaxed) { Until::End } else { Until::Head };
        let idle = Span(self.idle.load(Relaxed)).duration();
        TimeoutConfig { after: Span(self.after.load(Relaxed)).duration(), idle, until }
    }

    /// The operator's bound.
    #[inline]
    pub(crate) fn after(&self) -> Span {
        Span(self.after.load(Relaxed))
    }

    /// What bounds the body, if anything does.
    #[inline]
    pub(crate) fn body(&self) -> Option<BodyPlan> {
        let (to_the_end, idle) = (self.to_the_end.load(Relaxed), Span(self.idle.load(Relaxed)));
        (to_the_end || idle != Span::NONE).then_some(BodyPlan { to_the_end, idle, scope: None })
    }
}
