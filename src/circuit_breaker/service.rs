//! The service: may this call go?

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower_service::Service;

use crate::{
    circuit_breaker::{ResponseFuture, breaker::Breaker, call::Call, machine::Refusal},
    deadline::{self, Deadline},
    permit::Permit,
    protocol::{Http, Protocol},
    stripe::Striped,
};

/// A service behind a circuit breaker. Made by [`CircuitBreakerLayer`](crate::CircuitBreakerLayer).
///
/// `S` has to be `Clone`: a call that is refused after readiness gives the readied instance back by dropping it.
#[derive(Debug)]
pub struct CircuitBreaker<S, P = Http> {
    inner: S,
    shared: Arc<Striped<Breaker>>,
    protocol: P,
    /// `poll_ready` found the breaker open and left the inner service alone: the next call is refused.
    refuse: Option<Refusal>,
}

impl<S, P> CircuitBreaker<S, P> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Breaker>>, protocol: P) -> Self {
        CircuitBreaker { inner, shared, protocol, refuse: None }
    }
}

impl<S: Clone, P: Clone> Clone for CircuitBreaker<S, P> {
    fn clone(&self) -> Self {
        // A clone starts unready, so it has nothing to refuse either.
        Self::new(self.inner.clone(), Arc::clone(&self.shared), self.protocol.clone())
    }
}

impl<S, P, Req> Service<Req> for CircuitBreaker<S, P>
where
    S: Service<Req> + Clone,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Response = P::Response<Permit<Call>>;
    type Error = P::Error;
    type Future = ResponseFuture<S::Future, P, P::Context, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        self.refuse = self.shared.is_shut().filter(|_| !self.shared.in_shadow());
        if self.refuse.is_some() {
            return Poll::Ready(Ok(()));
        }
        let ready = ready!(self.inner.poll_ready(cx));
        Poll::Ready(ready.map_err(|e| {
            self.shared.failed_readiness();
            P::error(e)
        }))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        let protocol = self.protocol.clone();
        if let Some(refusal) = self.refuse.take() {
            return ResponseFuture::refused(self.shared.reject(refusal), protocol, context);
        }
        let ticket = match self.shared.admit() {
            Ok(ticket) => ticket,
            Err(refusal) => {
                // What the readied instance holds must not wait for the next call: it goes, and an unready one comes.
                let unready = self.inner.clone();
                drop(mem::replace(&mut self.inner, unready));
                return ResponseFuture::refused(self.shared.reject(refusal), protocol, context);
            }
        };
        let deadline = deadline::earliest(P::deadline(&request), Deadline::current());
        let mut permit = ticket.map(|t| Permit::new(Call::new(self.shared.share(), t, deadline)));
        let inner = match &mut permit {
            Some(permit) => permit.guard(|| self.inner.call(request)),
            None => self.inner.call(request),
        };
        ResponseFuture::running(inner, protocol, context, permit)
    }
}
