//! The other end of a retry: a server that knows how often a call was tried before.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    protocol::{PREVIOUS_ATTEMPTS, is_grpc, names::GRPC_PUSHBACK, number},
    rejection::Rejection,
};

/// In the extensions of a request that came through a [`PreviousAttemptsLayer`]: how many attempts of this call there
/// were before it. 0 is a first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PreviousAttempts(pub u32);

/// Reads how many attempts of a call there were before, and can answer a retry that is refused with "do not retry".
///
/// A storm that is not ended where it begins goes down the whole chain of services: each hop makes three calls of each
/// it gets. With this in front of what sheds load, retries can be shed first (`priority_fn` sees the extension), and
/// with [`stop_after`](Self::stop_after) the hop above is told not to try again, so that the storm ends one hop down.
///
/// Only for callers that are trusted: what it reads, anybody can write. What can't be read counts as 0.
///
/// ```
/// use axum::{Extension, Router, routing::get};
/// use buttress::{PreviousAttempts, PreviousAttemptsLayer};
///
/// let app: Router = Router::new()
///     .route("/", get(|before: Extension<PreviousAttempts>| async move { format!("{:?}", before.0) }))
///     .layer(PreviousAttemptsLayer::new().stop_after(2));
/// # drop(app);
/// ```
///
/// It allocates what inserting an extension does. Cancel safety: it holds nothing.
#[derive(Debug, Clone, Default)]
pub struct PreviousAttemptsLayer {
    header: Option<HeaderName>,
    stop_after: Option<u32>,
}

impl PreviousAttemptsLayer {
    /// For gRPC, which has a header of its own for it: `grpc-previous-rpc-attempts`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads this header too, a number, on every request: what
    /// [`RetryBuilder::attempt_header`](crate::RetryBuilder::attempt_header) writes.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = Some(name);
        self
    }

    /// A request that comes with at least so many previous attempts, and is refused by a policy further in, is answered
    /// with `grpc-retry-pushback-ms: -1`: do not try again. (Plain HTTP has no word for it.) 0: every refusal. Default:
    /// none.
    pub fn stop_after(mut self, attempts: u32) -> Self {
        self.stop_after = Some(attempts);
        self
    }

    fn read(&self, grpc: bool, headers: &HeaderMap) -> u32 {
        let of = |name: &HeaderName| number::read(headers.get(name)?);
        let own = grpc.then(|| of(&PREVIOUS_ATTEMPTS)).flatten();
        own.or_else(|| self.header.as_ref().and_then(of)).unwrap_or(0)
    }
}

impl<S> Layer<S> for PreviousAttemptsLayer {
    type Service = WithPreviousAttempts<S>;

    fn layer(&self, inner: S) -> WithPreviousAttempts<S> {
        WithPreviousAttempts { inner, layer: self.clone() }
    }
}

/// A service under a [`PreviousAttemptsLayer`].
#[derive(Debug, Clone)]
pub struct WithPreviousAttempts<S> {
    inner: S,
    layer: PreviousAttemptsLayer,
}

impl<S, B, RB> Service<Request<B>> for WithPreviousAttempts<S>
where
    S: Service<Request<B>, Response = Response<RB>>,
{
    type Response = Response<RB>;
    type Error = S::Error;
    type Future = PreviousAttemptsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let grpc = is_grpc(request.headers());
        let before = self.layer.read(grpc, request.headers());
        request.extensions_mut().insert(PreviousAttempts(before));
        let stops = grpc && self.layer.stop_after.is_some_and(|n| before >= n);
        PreviousAttemptsFuture { inner: self.inner.call(request), stops }
    }
}

pin_project! {
    /// The response of a call under a [`PreviousAttemptsLayer`].
    #[must_use = "futures do nothing unless polled"]
    pub struct PreviousAttemptsFuture<F> {
        #[pin]
        inner: F,
        stops: bool,
    }
}

impl<F, RB, E> Future for PreviousAttemptsFuture<F>
where
    F: Future<Output = Result<Response<RB>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut result = ready!(this.inner.poll(cx));
        if let Ok(response) = &mut result
            && *this.stops
            && Rejection::in_response(response).is_some_and(Rejection::is_refusal)
        {
            response.headers_mut().insert(GRPC_PUSHBACK, HeaderValue::from_static("-1"));
        }
        Poll::Ready(result)
    }
}

impl<F> fmt::Debug for PreviousAttemptsFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreviousAttemptsFuture").field("stops", &self.stops).finish_non_exhaustive()
    }
}
