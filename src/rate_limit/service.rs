//! The service: are the units there that this call costs?

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    deadline::{self, Deadline},
    outline,
    protocol::{Http, Protocol, Unwatched},
    rate_limit::{Engine, Local, ResponseFuture, decision::Decision, limiter::Limiter, waiting::Waiting},
    readiness::Readiness,
    stripe::Striped,
};

/// A service under a rate limit. Made by [`RateLimitLayer`](crate::RateLimitLayer).
///
/// `S` has to be `Clone`: a call that is refused after readiness gives the readied instance back by dropping it, and
/// one that waits takes an instance along.
#[derive(Debug)]
pub struct RateLimit<S, P = Http, St: Engine = Local> {
    inner: S,
    shared: Arc<Striped<Limiter<St>>>,
    protocol: P,
    /// Refused: `poll_ready` knew that a call would not go at once, or came too late.
    readiness: Readiness,
}

impl<S, P, St: Engine> RateLimit<S, P, St> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Limiter<St>>>, protocol: P) -> Self {
        RateLimit { inner, shared, protocol, readiness: Readiness::Unasked }
    }
}

impl<S: Clone, P: Clone, St: Engine> Clone for RateLimit<S, P, St> {
    fn clone(&self) -> Self {
        // A clone starts unready, and with nothing known.
        Self::new(self.inner.clone(), Arc::clone(&self.shared), self.protocol.clone())
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
            self.readiness.refuse(&mut self.inner, ());
            return Poll::Ready(Ok(()));
        }
        self.readiness = Readiness::Asked;
        self.inner.poll_ready(cx).map_err(P::error)
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        let has_deadline = |request: &Req| Deadline::current().is_some() || P::deadline(request).is_some();
        if !self.readiness.is_refused() && !has_deadline(&request) && self.shared.goes_at_once(&self.protocol, &request)
        {
            let inner = self.inner.call(request);
            return ResponseFuture::running(inner, self.protocol.clone(), context, None);
        }
        if self.readiness.is_refused()
            && !has_deadline(&request)
            && let Some(refusal) = self.shared.refuses_at_once()
        {
            return ResponseFuture::refused(refusal, self.protocol.clone(), context, self.shared.share());
        }
        match self.shared.decide(&self.protocol, &mut request) {
            Decision::Go(after, _) if !self.readiness.is_refused() => {
                self.shared.goes();
                let then = if after.is_nothing() { None } else { Some((self.shared.share(), after)) };
                let inner = outline::call(&mut self.inner, request);
                ResponseFuture::running(inner, self.protocol.clone(), context, then)
            }
            Decision::Shadowed if !self.readiness.is_refused() => {
                let inner = outline::call(&mut self.inner, request);
                ResponseFuture::running(inner, self.protocol.clone(), context, None)
            }
            Decision::No(refusal) => {
                drop(self.lend());
                ResponseFuture::refused(refusal, self.protocol.clone(), context, self.shared.share())
            }
            ask @ Decision::Ask(..) => {
                // An answer that is there at once is worth a call on the instance that is ready.
                let fresh = mem::replace(&mut self.readiness, Readiness::Unasked) == Readiness::Asked;
                let limiter = self.shared.share();
                let call = || {
                    let unready = self.inner.clone();
                    (mem::replace(&mut self.inner, unready), request)
                };
                let wait = Waiting::new(ask, fresh, None, call, limiter);
                ResponseFuture::waiting(wait, self.protocol.clone(), context)
            }
            go => {
                let deadline = deadline::earliest(P::deadline(&request), Deadline::current());
                let limiter = self.shared.share();
                let wait = Waiting::new(go, false, deadline, || (self.lend(), request), limiter);
                ResponseFuture::waiting(wait, self.protocol.clone(), context)
            }
        }
    }
}

impl<S: Clone, P, St: Engine> RateLimit<S, P, St> {
    /// An instance that holds nothing. What the readied one holds must not wait for the next call: it goes too.
    #[cold]
    fn lend(&mut self) -> S {
        let unready = self.inner.clone();
        if mem::replace(&mut self.readiness, Readiness::Unasked) == Readiness::Asked {
            self.inner = unready.clone();
        }
        unready
    }
}
