//! The service: may this call go?

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    circuit_breaker::{
        ResponseFuture,
        breaker::Breaker,
        call::Call,
        machine::{Refusal, Ticket},
    },
    deadline::{self, Deadline},
    outcome::Outcome,
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
        self.refuse = None;
        if let Some(refusal) = self.shared.is_shut() {
            self.refuse = Some(refusal);
            return Poll::Ready(Ok(()));
        }
        match self.inner.poll_ready(cx) {
            Poll::Ready(Err(e)) => {
                self.shared.failed_readiness();
                Poll::Ready(Err(P::error(e)))
            }
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        if self.refuse.is_some() {
            return self.refused(context);
        }
        let ticket = match self.shared.machine.admit_closed() {
            Some(ticket) => ticket,
            None => {
                let ticket = self.shared.admit(&mut self.refuse);
                if self.refuse.is_some() {
                    // What the readied instance holds must not wait for the next call: it goes, and an unready one comes.
                    let unready = self.inner.clone();
                    drop(mem::replace(&mut self.inner, unready));
                    return self.refused(context);
                }
                ticket
            }
        };
        let deadline = deadline::earliest(P::deadline(&request), Deadline::current());
        let asked = deadline.is_some() || self.shared.slow_call().is_some();
        let started = if asked { Some(self.shared.now()) } else { None };
        let panic = PanicInCall { breaker: &self.shared, ticket };
        let inner = self.inner.call(request);
        mem::forget(panic);
        // Made after the inner call, which would otherwise have to be able to drop it.
        let permit = Permit::new(Call::new(self.shared.share(), ticket, started, deadline));
        ResponseFuture::running(inner, self.protocol.clone(), context, permit)
    }
}

impl<S, P: Clone> CircuitBreaker<S, P> {
    // Inlined, because a future that has to be written through a pointer here is moved whole on every other path too.
    #[inline(always)]
    fn refused<F, C, Req>(&mut self, context: C) -> ResponseFuture<F, P, C, Req> {
        let refusal = self.refuse.take().unwrap_or(Refusal::OPEN);
        self.shared.refuse(refusal.reason);
        let permit = Permit::settled(Call::new(self.shared.share(), Ticket::UNCOUNTED, None, None));
        ResponseFuture::refused(refusal, self.protocol.clone(), context, permit)
    }
}

/// Dropped only by a panic in the inner service's `call`.
struct PanicInCall<'a> {
    breaker: &'a Breaker,
    ticket: Ticket,
}

impl Drop for PanicInCall<'_> {
    #[cold]
    fn drop(&mut self) {
        self.breaker.settle(self.ticket, Outcome::Failure, false, self.breaker.now(), None);
    }
}
