//! The service: are the units there that this call costs?

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    deadline::{self, Deadline},
    instance::Instance,
    outline,
    protocol::{Http, Protocol, Unwatched},
    rate_limit::{Engine, Local, ResponseFuture, decision::Decision, limiter::Limiter, waiting::Waiting},
    stripe::Striped,
};

/// A service under a rate limit. Made by [`RateLimitLayer`](crate::RateLimitLayer).
///
/// `S` has to be `Clone`: a call that is refused after readiness gives the readied instance back by dropping it, and
/// one that waits takes an instance along.
#[derive(Debug)]
pub struct RateLimit<S, P = Http, St: Engine = Local> {
    inner: Instance<S>,
    shared: Arc<Striped<Limiter<St>>>,
    protocol: P,
}

impl<S, P, St: Engine> RateLimit<S, P, St> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Limiter<St>>>, protocol: P) -> Self {
        RateLimit { inner: Instance::new(inner), shared, protocol }
    }
}

impl<S: Clone, P: Clone, St: Engine> Clone for RateLimit<S, P, St> {
    fn clone(&self) -> Self {
        RateLimit { inner: self.inner.clone(), shared: Arc::clone(&self.shared), protocol: self.protocol.clone() }
    }
}

impl<S, P, St, Req> Service<Req> for RateLimit<S, P, St>
where
    S: Service<Req> + Clone,
    P: Protocol<Req, S::Response, S::Error>,
    St: Engine,
{
    type Response = P::Response<Unwatched>;
    type Error = P::Error;
    type Future = ResponseFuture<S::Future, S, P, P::Context, Req, St>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        if self.shared.is_shut() {
            self.inner.refuse(());
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_ready(cx).map_err(P::error)
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        let has_deadline = |request: &Req| Deadline::current().is_some() || P::deadline(request).is_some();
        if !self.inner.is_refused() && !has_deadline(&request) && self.shared.goes_at_once(&self.protocol, &request) {
            let inner = self.inner.call(request);
            return ResponseFuture::running(inner, self.protocol.clone(), context, None);
        }
        if self.inner.is_refused()
            && !has_deadline(&request)
            && let Some(refusal) = self.shared.refuses_at_once()
        {
            return ResponseFuture::refused(refusal, self.protocol.clone(), context, self.shared.share());
        }
        match self.shared.decide(&self.protocol, &mut request) {
            Decision::Go(after, _) if !self.inner.is_refused() => {
                self.shared.goes();
                let then = if after.is_nothing() { None } else { Some((self.shared.share(), after)) };
                let inner = outline::call(self.inner.service(), request);
                ResponseFuture::running(inner, self.protocol.clone(), context, then)
            }
            Decision::Shadowed if !self.inner.is_refused() => {
                let inner = outline::call(self.inner.service(), request);
                ResponseFuture::running(inner, self.protocol.clone(), context, None)
            }
            Decision::No(refusal) => {
                self.inner.give_back();
                ResponseFuture::refused(refusal, self.protocol.clone(), context, self.shared.share())
            }
            ask @ Decision::Ask(..) => {
                // An answer that is there at once is worth a call on the instance that is ready.
                let (instance, fresh) = self.inner.take();
                let wait = Waiting::new(ask, fresh, None, || (instance, request), self.shared.share());
                ResponseFuture::waiting(wait, self.protocol.clone(), context)
            }
            go => {
                let deadline = deadline::earliest(P::deadline(&request), Deadline::current());
                let limiter = self.shared.share();
                let wait = Waiting::new(go, false, deadline, || (self.inner.unready(), request), limiter);
                ResponseFuture::waiting(wait, self.protocol.clone(), context)
            }
        }
    }
}
