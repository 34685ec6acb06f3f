//! The service: may this call go?

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    circuit_breaker::{ResponseFuture, breaker::Breaker, call::Call, facts::Facts, machine::Ticket},
    deadline::{self, Deadline},
    permit::Permit,
    protocol::{Http, Protocol},
    rejection::Told,
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
    refuse: Option<Told>,
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

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        if let Some(refusal) = self.shared.is_shut() {
            self.refuse = Some(refusal);
            return Poll::Ready(Ok(()));
        }
        self.refuse = None;
        match self.inner.poll_ready(cx) {
            Poll::Ready(Err(e)) => {
                self.shared.failed_readiness();
                Poll::Ready(Err(P::error(e)))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    #[inline(always)]
    fn call(&mut self, request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        // It stays so until the next readiness: the inner service has not been asked.
        if let Some(refusal) = self.refuse {
            return ResponseFuture::refused(self.shared.refuse(refusal), self.protocol.clone(), context);
        }
        let deadline = deadline::earliest(P::deadline(&request), Deadline::current());
        // Two ways that differ in their facts alone: where they met, each call would move the larger ones.
        if let Some(facts) = self.shared.admit_plain(deadline) {
            return self.run(request, context, facts);
        }
        match self.shared.admit(deadline) {
            Ok(facts) => self.run(request, context, facts),
            Err(refusal) => {
                // What the readied instance holds must not wait for the next call: it goes, and an unready one comes.
                let unready = self.inner.clone();
                drop(mem::replace(&mut self.inner, unready));
                ResponseFuture::refused(self.shared.refuse(refusal.told()), self.protocol.clone(), context)
            }
        }
    }
}

impl<S, P: Clone> CircuitBreaker<S, P> {
    #[inline(always)]
    fn run<Req, C>(&mut self, request: Req, context: C, facts: Facts) -> ResponseFuture<S::Future, P, C, Req>
    where
        S: Service<Req>,
    {
        let panic = PanicInCall { breaker: &self.shared, ticket: facts.ticket() };
        let inner = self.inner.call(request);
        mem::forget(panic);
        // Made after the inner call, which would otherwise have to be able to drop it.
        let permit = Permit::new(Call::new(self.shared.share(), facts));
        ResponseFuture::running(inner, self.protocol.clone(), context, permit)
    }
}

/// Dropped only by a panic in the inner service's `call`.
struct PanicInCall<'a> {
    breaker: &'a Breaker,
    ticket: Ticket,
}

impl Drop for PanicInCall<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.breaker.panicked(self.ticket);
    }
}
