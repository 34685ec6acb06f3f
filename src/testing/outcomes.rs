//! The smallest policy there is: it lets everything pass and writes down how each call ended.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    builder::{judging_forms, layer_forms},
    outcome::{End, Outcome},
    permit::{Keeper, Permit},
    protocol::{Http, Protocol},
};

/// Writes down the [`Outcome`] of each call, once, when it is known.
#[derive(Debug, Clone)]
pub struct OutcomesLayer<P = Http> {
    shared: Arc<Shared>,
    protocol: P,
}

#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<Vec<Outcome>>);

impl OutcomesLayer {
    /// A layer that has seen nothing yet, in its HTTP and gRPC form.
    #[allow(clippy::new_without_default, reason = "an empty value is not what one expects of a layer's default")]
    pub fn new() -> Self {
        OutcomesLayer { shared: Arc::default(), protocol: Http::default() }
    }
}

layer_forms!(OutcomesLayer, OutcomesHandle);
judging_forms!(OutcomesLayer);

impl Shared {
    fn name(&self) -> &str {
        "outcomes"
    }

    fn write(&self, end: End) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(end.outcome());
    }
}

impl<S, P: Clone> Layer<S> for OutcomesLayer<P> {
    type Service = Outcomes<S, P>;

    fn layer(&self, inner: S) -> Outcomes<S, P> {
        Outcomes { inner, shared: Arc::clone(&self.shared), protocol: self.protocol.clone() }
    }
}

/// Reads what an [`OutcomesLayer`] has seen.
#[derive(Debug, Clone)]
pub struct OutcomesHandle {
    shared: Arc<Shared>,
}

impl OutcomesHandle {
    fn new(shared: Arc<Shared>) -> Self {
        OutcomesHandle { shared }
    }

    /// What was seen since the last time, in the order in which it became known.
    pub fn take(&self) -> Vec<Outcome> {
        mem::take(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A service under an [`OutcomesLayer`].
#[derive(Debug, Clone)]
pub struct Outcomes<S, P = Http> {
    inner: S,
    shared: Arc<Shared>,
    protocol: P,
}

impl<S, P, Req> Service<Req> for Outcomes<S, P>
where
    S: Service<Req> + Clone,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Response = P::Response<Permit<Entry>>;
    type Error = P::Error;
    type Future = OutcomesFuture<S::Future, P, P::Context, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        let ready = ready!(self.inner.poll_ready(cx));
        Poll::Ready(ready.map_err(|e| {
            self.shared.write(End::Outcome(Outcome::Failure));
            P::error(e)
        }))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        let mut permit = Permit::new(Entry(Arc::clone(&self.shared)));
        let inner = permit.guard(|| self.inner.call(request));
        OutcomesFuture { inner, protocol: self.protocol.clone(), context, permit: Some(permit), request: PhantomData }
    }
}

/// The entry that one call will make.
pub struct Entry(Arc<Shared>);

impl Keeper for Entry {
    fn settle(&mut self, end: End) {
        self.0.write(end);
    }
}

pin_project! {
    /// The response of a call under an [`OutcomesLayer`].
    #[must_use = "futures do nothing unless polled"]
    pub struct OutcomesFuture<F, P, C, Req> {
        #[pin]
        inner: F,
        protocol: P,
        context: C,
        permit: Option<Permit<Entry>>,
        request: PhantomData<fn(Req)>,
    }
}

impl<F, P, Req, Res, Err> Future for OutcomesFuture<F, P, P::Context, Req>
where
    F: Future<Output = Result<Res, Err>>,
    P: Protocol<Req, Res, Err>,
{
    type Output = Result<P::Response<Permit<Entry>>, P::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = match this.permit {
            Some(permit) => ready!(permit.guard(|| this.inner.poll(cx))),
            None => ready!(this.inner.poll(cx)),
        };
        this.protocol.finish(this.context, result, this.permit)
    }
}

impl<F, P, C, Req> fmt::Debug for OutcomesFuture<F, P, C, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutcomesFuture").finish_non_exhaustive()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry")
    }
}
