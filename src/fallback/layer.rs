//! The layer: what answers, when, and what is counted of it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use tower_layer::Layer;

use crate::{
    Boxed, Error, Flat, Plain,
    builder::Identity,
    fallback::{Fallback, FallbackBuilder, FallbackHandle, config::When},
    observe::{Figure, Kind, Reporter, Watched, seen_by},
    outcome::Outcome,
    protocol::{BoxError, Http},
    rejection::Reason,
    stripe::Striped,
};

/// Answers in the place of the services it wraps. See the [module](crate::fallback).
///
/// Clones, and all services made from them, share their figures and what they keep.
pub struct FallbackLayer<F, P = Http> {
    substitute: F,
    protocol: P,
    shared: Arc<Striped<State>>,
}

/// What every call refers to: what is answered, and the ledger of all layers that this one was made from.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) when: When,
    pub(crate) ledger: Arc<Ledger>,
}

/// Counts and tells what was answered.
#[derive(Debug)]
pub(crate) struct Ledger {
    reporter: Reporter,
    shadow: AtomicBool,
    answered: AtomicU64,
    passed_on: AtomicU64,
    would_have_answered: AtomicU64,
}

/// The figures of a [`Ledger`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) answered: u64,
    pub(crate) passed_on: u64,
    pub(crate) would_have_answered: u64,
    pub(crate) shadow: bool,
}

impl FallbackLayer<()> {
    /// A layer with a name, observers or shadow.
    pub fn builder() -> FallbackBuilder {
        FallbackBuilder::default()
    }
}

#[cfg(feature = "http")]
impl<F: Fn(&crate::FallbackContext<'_>) -> crate::Answer> FallbackLayer<F> {
    /// A function answers. It runs outside of every lock; a panic in it reaches the caller.
    pub fn from_fn(f: F) -> Self {
        Self::new(Identity::default(), f, Http::default())
    }
}

#[cfg(feature = "http")]
impl<B> FallbackLayer<crate::Backup<B>> {
    /// Another service answers, with the same request.
    ///
    /// The request's body has to be [`Replay`](crate::Replay); of one above 64 KiB, each chunk counting 64 bytes more,
    /// nothing is sent again. The backup's own failure or error is dropped, and the first answer comes back; so it does
    /// if the backup is not ready by the call's deadline, or that has passed already.
    ///
    /// It has the response type of the service that it stands in for. Around one under a policy, which has a body type
    /// of its own, put the backup under a layer of that kind too, as here; or make the bodies of both one type again,
    /// by `MapResponseBodyLayer::new(axum::body::Body::new)` of `tower_http` directly inside of this layer.
    ///
    /// ```
    /// use buttress::{BulkheadLayer, FallbackLayer};
    /// # use std::convert::Infallible;
    /// # use bytes::Bytes;
    /// # use http::{Request, Response};
    /// # use http_body_util::Full;
    /// use tower::{Layer, service_fn};
    ///
    /// # fn main() -> Result<(), buttress::ConfigError> {
    /// # let primary = service_fn(|_: Request<Full<Bytes>>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    /// # let elsewhere = primary.clone();
    /// let backup = BulkheadLayer::builder().name("backup").limit(10).build()?.layer(elsewhere);
    /// let primary = BulkheadLayer::builder().name("primary").limit(100).build()?.layer(primary);
    /// let service = FallbackLayer::to_service(backup).layer(primary);
    /// # fn takes(_: impl tower::Service<Request<Full<Bytes>>>) {} takes(service); Ok(()) }
    /// ```
    pub fn to_service(backup: B) -> Self {
        Self::new(Identity::default(), crate::Backup::new(backup), Http::default())
    }
}

#[cfg(feature = "http")]
impl FallbackLayer<crate::LastGood> {
    /// The last good answer of the backend answers.
    pub fn last_good(l: crate::LastGood) -> Self {
        Self::new(Identity::default(), l, Http::default())
    }
}

#[cfg(feature = "http")]
impl<F> FallbackLayer<F> {
    /// An own classification of HTTP and gRPC responses.
    pub fn classify(self, classify: impl crate::HttpClassify) -> Self {
        FallbackLayer { protocol: Http::with_classify(classify), ..self }
    }
}

impl<F> FallbackLayer<F, Plain> {
    /// For services whose error is a `std::error::Error`: a function of the error answers, or with `None` passes it on.
    pub fn plain_from_fn<E, R>(f: F) -> Self
    where
        F: Fn(&Error<E>) -> Option<R> + Clone,
    {
        Self::new(Identity::default(), f, Plain::default())
    }
}

impl<F> FallbackLayer<F, Flat> {
    /// For services whose error is `From<Rejection>`, such as a stack of plain policies: it stays what it was.
    pub fn flat_from_fn<E, R>(f: F) -> Self
    where
        F: Fn(&E) -> Option<R> + Clone,
    {
        Self::new(Identity::default(), f, Flat::default())
    }
}

impl<F> FallbackLayer<F, Boxed> {
    /// For every other service: the error becomes a [`BoxError`].
    pub fn boxed_from_fn<R>(f: F) -> Self
    where
        F: Fn(&BoxError) -> Option<R> + Clone,
    {
        Self::new(Identity::default(), f, Boxed::default())
    }
}

impl<F, P> FallbackLayer<F, P> {
    pub(crate) fn new(identity: Identity, substitute: F, protocol: P) -> Self {
        let shadow = AtomicBool::new(identity.shadow);
        // It refuses nothing, so there is no text to be encoded.
        let reporter = identity.reporter("fallback", &[] as &[Reason]);
        let ledger = Arc::new(Ledger {
            reporter,
            shadow,
            answered: AtomicU64::new(0),
            passed_on: AtomicU64::new(0),
            would_have_answered: AtomicU64::new(0),
        });
        seen_by(&ledger.reporter, Arc::downgrade(&ledger));
        let shared = Arc::new(Striped::new(State { when: When::default(), ledger }));
        FallbackLayer { substitute, protocol, shared }
    }

    /// What is answered: refusals of policies further in, and these outcomes. Default: `on(true, &[Outcome::Failure])`.
    ///
    /// An error of the transport and a timeout of ours are failures; a passed deadline is `Cancelled`; a refusal is not
    /// `Ignored`, which only an own classification says. `Success` is never answered. What is not answered is passed on
    /// as it is.
    pub fn on(self, refusals: bool, outcomes: &[Outcome]) -> Self {
        let when = self.shared.when.on(refusals, outcomes);
        self.when(when)
    }

    /// Adds `x-degraded: 1` to the answers, for callers that are not in this process. Default: false.
    pub fn header(self, on: bool) -> Self {
        let when = self.shared.when.with_header(on);
        self.when(when)
    }

    pub(crate) fn when(self, when: When) -> Self {
        // Clones of the layer that this one comes from keep what they were told; the ledger stays that of all.
        let shared = State { when, ..State::clone(&self.shared) };
        FallbackLayer { shared: Arc::new(Striped::new(shared)), ..self }
    }

    /// The name it was given, else `fallback`.
    pub fn name(&self) -> &str {
        self.shared.ledger.name()
    }

    /// A handle to read this layer and everything it wraps.
    pub fn handle(&self) -> FallbackHandle {
        FallbackHandle::new(Arc::clone(&self.shared.ledger))
    }
}

impl<F: Clone, P: Clone> Clone for FallbackLayer<F, P> {
    fn clone(&self) -> Self {
        FallbackLayer {
            substitute: self.substitute.clone(),
            protocol: self.protocol.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S, F: Clone, P: Clone> Layer<S> for FallbackLayer<F, P> {
    type Service = Fallback<S, F, P>;

    fn layer(&self, inner: S) -> Fallback<S, F, P> {
        Fallback::new(inner, self.substitute.clone(), self.protocol.clone(), Arc::clone(&self.shared))
    }
}

impl<F, P> fmt::Debug for FallbackLayer<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A function has nothing to show.
        f.debug_struct("FallbackLayer").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Watched for Ledger {
    fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let figures = Ledger::figures(self);
        visit("answered", Figure::Count(figures.answered));
        visit("passed_on", Figure::Count(figures.passed_on));
        visit("would_have_answered", Figure::Count(figures.would_have_answered));
        visit("shadow", Figure::Flag(figures.shadow));
    }
}

impl Ledger {
    fn name(&self) -> &str {
        self.reporter.name()
    }

    pub(crate) fn shadow(&self, on: bool) {
        self.shadow.store(on, Relaxed);
    }

    /// Is this one to be answered? In shadow it is counted instead.
    #[cold]
    pub(crate) fn may_answer(&self, outcome: Outcome) -> bool {
        let shadow = self.shadow.load(Relaxed);
        if shadow {
            self.would_have_answered.fetch_add(1, Relaxed);
            self.reporter.report(Kind::WouldHaveFallenBack { outcome });
        }
        !shadow
    }

    #[cold]
    pub(crate) fn answered(&self, outcome: Outcome) {
        self.answered.fetch_add(1, Relaxed);
        self.reporter.report(Kind::FellBack { outcome });
    }

    #[cold]
    pub(crate) fn passed_on(&self) {
        self.passed_on.fetch_add(1, Relaxed);
    }

    pub(crate) fn figures(&self) -> Figures {
        Figures {
            answered: self.answered.load(Relaxed),
            passed_on: self.passed_on.load(Relaxed),
            would_have_answered: self.would_have_answered.load(Relaxed),
            shadow: self.shadow.load(Relaxed),
        }
    }
}
