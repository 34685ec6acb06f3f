//! The service: may this call go?

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    circuit_breaker::{
        ResponseFuture,
        breaker::Breaker,
        call::Call,
        facts::Facts,
        machine::{Look, Ticket},
    },
    deadline::{self, Deadline},
    instance::Instance,
    on_panic::on_panic,
    outline,
    permit::Permit,
    protocol::{Http, Protocol},
    rejection::Told,
    stripe::Striped,
};

#[cfg(feature = "http")]
use crate::{
    circuit_breaker::{by_key::Goes, machine::Refusal},
    stripe::Shared,
};

/// A service behind a circuit breaker. Made by [`CircuitBreakerLayer`](crate::CircuitBreakerLayer).
///
/// `S` has to be `Clone`: a call that is refused after readiness gives the readied instance back by dropping it.
#[derive(Debug, Clone)]
pub struct CircuitBreaker<S, P = Http> {
    inner: Instance<S, Told>,
    shared: Arc<Striped<Breaker>>,
    protocol: P,
}

impl<S, P> CircuitBreaker<S, P> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Breaker>>, protocol: P) -> Self {
        CircuitBreaker { inner: Instance::new(inner), shared, protocol }
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
        match self.shared.look() {
            Look::Passes => {}
            Look::Refuses(refusal) => {
                self.inner.refuse(refusal.told());
                return Poll::Ready(Ok(()));
            }
            Look::Unclear => {
                if self.shut_if_it_refuses(P::IS_HTTP) {
                    return Poll::Ready(Ok(()));
                }
            }
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

    #[inline(always)]
    #[cfg_attr(not(feature = "http"), allow(unused_mut, reason = "a user's function wants the head as it is"))]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        // It stays so until the next readiness.
        if let Some(&refusal) = self.inner.refused() {
            return ResponseFuture::refused(self.shared.refuse(refusal), self.protocol.clone(), context);
        }
        let deadline = deadline::earliest(P::deadline(&request), Deadline::current());
        // Two ways that differ in their facts alone: where they met, each call would move the larger ones.
        if let Some(facts) = self.shared.admit_plain(deadline) {
            return self.run(request, context, facts, S::call);
        }
        // By itself, and not on the way of other layers.
        #[cfg(feature = "http")]
        if self.shared.by_key().is_some() {
            if P::IS_HTTP {
                let found = self.admit_by_key::<Req, S::Response, S::Error>(&mut request, deadline);
                return self.go_on(found, request, context);
            }
            self.stay_with_keyless();
        }
        match self.shared.admit(deadline) {
            Ok(facts) => self.run(request, context, facts, outline::call),
            Err(refusal) => self.refuse_late(refusal.told(), context),
        }
    }
}

impl<S: Clone, P: Clone> CircuitBreaker<S, P> {
    /// Refuses a call after readiness. In line, as [`go_on`](Self::go_on).
    #[inline(always)]
    fn refuse_late<Req, C>(&mut self, told: Told, context: C) -> ResponseFuture<S::Future, P, C, Req>
    where
        S: Service<Req>,
    {
        self.inner.give_back();
        ResponseFuture::refused(self.shared.refuse(told), self.protocol.clone(), context)
    }
}

impl<S, P: Clone> CircuitBreaker<S, P> {
    #[inline(always)]
    fn run<Req, C>(
        &mut self,
        request: Req,
        context: C,
        facts: Facts,
        call: impl FnOnce(&mut S, Req) -> S::Future,
    ) -> ResponseFuture<S::Future, P, C, Req>
    where
        S: Service<Req>,
    {
        let inner = call_inner(&self.shared, facts.ticket(), || call(self.inner.service(), request));
        // Made after the inner call, which would otherwise have to be able to drop it.
        let permit = Permit::new(Call::new(self.shared.share(), facts));
        ResponseFuture::running(inner, self.protocol.clone(), context, permit)
    }
}

#[cfg(feature = "http")]
impl<S: Clone, P: Clone> CircuitBreaker<S, P> {
    /// Admits a call by the breaker of its key. `Err`: it is refused.
    #[cold]
    #[inline(never)]
    fn admit_by_key<Req, Res, Err>(
        &self,
        request: &mut Req,
        deadline: Option<Deadline>,
    ) -> Result<(Shared<Breaker>, Facts), Told>
    where
        P: Protocol<Req, Res, Err>,
    {
        let Some(by_key) = self.shared.by_key() else { return Ok((self.shared.share(), Facts::UNCOUNTED)) };
        match by_key.find::<P, Req, Res, Err>(request) {
            Goes::To(breaker) => match breaker.admit_plain(deadline) {
                Some(facts) => Ok((breaker, facts)),
                None => breaker.admit(deadline).map(|facts| (breaker, facts)).map_err(Refusal::told),
            },
            Goes::Past => Ok((self.shared.share(), Facts::UNCOUNTED)),
            Goes::Nowhere(told) => Err(told),
        }
    }

    /// Does with a call what was found. In line: a future that came from elsewhere would have to be in memory for all
    /// calls.
    #[inline(always)]
    fn go_on<Req, C>(
        &mut self,
        found: Result<(Shared<Breaker>, Facts), Told>,
        request: Req,
        context: C,
    ) -> ResponseFuture<S::Future, P, C, Req>
    where
        S: Service<Req>,
    {
        match found {
            Ok((breaker, facts)) => {
                let inner = call_inner(&breaker, facts.ticket(), || outline::call(self.inner.service(), request));
                ResponseFuture::running(inner, self.protocol.clone(), context, Permit::new(Call::new(breaker, facts)))
            }
            Err(told) => self.refuse_late(told, context),
        }
    }
}

impl<S: Clone, P> CircuitBreaker<S, P> {
    /// Looks closer than [`Breaker::look`]. With keys: in the place of all of them.
    #[cold]
    #[inline(never)]
    fn shut_if_it_refuses(&mut self, is_http: bool) -> bool {
        if !is_http {
            self.stay_with_keyless();
        }
        let refusal = self.shared.is_shut();
        if let Some(told) = refusal {
            self.inner.refuse(told);
        }
        refusal.is_some()
    }

    /// A service without heads has no keys: it goes through the breaker of those, and stays there.
    #[cold]
    #[inline(never)]
    fn stay_with_keyless(&mut self) {
        #[cfg(feature = "http")]
        if let Some(by_key) = self.shared.by_key() {
            self.shared = Arc::clone(&by_key.keyless);
        }
    }
}

#[inline(always)]
fn call_inner<F>(breaker: &Breaker, ticket: Ticket, call: impl FnOnce() -> F) -> F {
    on_panic(|| breaker.panicked(ticket), call)
}
