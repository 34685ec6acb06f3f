//! The service: does the backend want another call now?

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    adaptive_rate::{
        ResponseFuture,
        controller::{Admission, Call, Controller},
        future::Wait,
    },
    deadline::{self, Deadline},
    permit::Permit,
    protocol::{Http, Protocol},
    readiness::Readiness,
    stripe::Striped,
};

/// A service whose calls keep to what its backend allows. Made by [`AdaptiveRateLayer`](crate::AdaptiveRateLayer).
///
/// `S` has to be `Clone`: a call that is refused after readiness gives the readied instance back by dropping it, and
/// one that waits takes an instance along.
#[derive(Debug)]
pub struct AdaptiveRate<S, P = Http> {
    inner: S,
    shared: Arc<Striped<Controller>>,
    protocol: P,
    /// Refused: `poll_ready` knew that a call would not go at once.
    readiness: Readiness,
}

impl<S, P> AdaptiveRate<S, P> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Controller>>, protocol: P) -> Self {
        AdaptiveRate { inner, shared, protocol, readiness: Readiness::Unasked }
    }
}

impl<S: Clone, P: Clone> Clone for AdaptiveRate<S, P> {
    fn clone(&self) -> Self {
        // A clone starts unready, and with nothing known.
        Self::new(self.inner.clone(), Arc::clone(&self.shared), self.protocol.clone())
    }
}

impl<S, P, Req> Service<Req> for AdaptiveRate<S, P>
where
    S: Service<Req> + Clone,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Response = P::Response<Permit<Call>>;
    type Error = P::Error;
    type Future = ResponseFuture<S::Future, S, P, P::Context, Req>;

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
    fn call(&mut self, request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        let deadline = |request: &Req| deadline::earliest(P::deadline(request), Deadline::current());
        match self.shared.admit(|| deadline(&request)) {
            Admission::Goes(_) if !self.readiness.is_refused() => {
                let mut permit = Permit::new(Call::new(self.shared.share()));
                let inner = permit.guard(|| self.inner.call(request));
                ResponseFuture::running(inner, self.protocol.clone(), context, permit)
            }
            Admission::Goes(unit) => {
                let wait = Wait::for_readiness(unit, self.shared.share());
                self.wait(wait, deadline(&request), request, context)
            }
            Admission::Waits(place, latest) => {
                let wait = Wait::for_turn(place, latest, self.shared.share());
                self.wait(wait, deadline(&request), request, context)
            }
            Admission::Refused(retry_after) => {
                drop(self.lend());
                ResponseFuture::refused(retry_after, self.protocol.clone(), context, self.shared.share())
            }
        }
    }
}

impl<S: Clone, P: Clone> AdaptiveRate<S, P> {
    /// A call that waits, with an instance that holds nothing.
    #[cold]
    fn wait<Req, C>(
        &mut self,
        wait: Wait,
        deadline: Option<Deadline>,
        request: Req,
        context: C,
    ) -> ResponseFuture<S::Future, S, P, C, Req>
    where
        S: Service<Req>,
    {
        let deadline = deadline.filter(|_| !self.shared.in_shadow());
        let call = (self.lend(), request);
        ResponseFuture::waiting(wait, deadline, call, self.protocol.clone(), context)
    }

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
