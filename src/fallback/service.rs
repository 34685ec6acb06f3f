//! The service: calls the backend, and keeps what an answer in its place would need.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    fallback::{ResponseFuture, Substitute, layer::State},
    protocol::{Hold, Http},
    stripe::Striped,
};

/// A service with a fallback. Made by [`FallbackLayer`](crate::FallbackLayer).
///
/// An error of the inner service's readiness is passed on: there is no request yet that could be answered.
pub struct Fallback<S, F, P = Http> {
    inner: S,
    substitute: F,
    protocol: P,
    shared: Arc<Striped<State>>,
}

impl<S, F, P> Fallback<S, F, P> {
    pub(crate) fn new(inner: S, substitute: F, protocol: P, shared: Arc<Striped<State>>) -> Self {
        Fallback { inner, substitute, protocol, shared }
    }
}

impl<S: Clone, F: Clone, P: Clone> Clone for Fallback<S, F, P> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.substitute.clone(), self.protocol.clone(), Arc::clone(&self.shared))
    }
}

impl<S, F, P, Req> Service<Req> for Fallback<S, F, P>
where
    S: Service<Req> + Clone,
    P: Hold<Req, S::Response, S::Error>,
    F: Substitute<Req, S::Response, S::Error, P>,
{
    type Response = P::Response<F::Watch>;
    type Error = P::Error;
    type Future = ResponseFuture<S, F, P, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        self.inner.poll_ready(cx).map_err(P::error)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        let (kept, call) = self.substitute.keep(&context, request, |request| self.inner.call(request));
        let (substitute, protocol) = (self.substitute.clone(), self.protocol.clone());
        ResponseFuture::new(call, substitute, protocol, context, kept, self.shared.share())
    }
}

impl<S: fmt::Debug, F, P> fmt::Debug for Fallback<S, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback").field("inner", &self.inner).field("shared", &self.shared).finish_non_exhaustive()
    }
}
