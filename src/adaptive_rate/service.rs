//! The service: does the backend want another call now?

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    adaptive_rate::{
        ResponseFuture,
        call::Call,
        controller::{Admission, Controller},
        future::Wait,
    },
    deadline::{self, Deadline},
    instance::Instance,
    permit::Permit,
    protocol::{Http, Protocol},
    stripe::Striped,
};

/// A service whose calls keep to what its backend allows. Made by [`AdaptiveRateLayer`](crate::AdaptiveRateLayer).
///
/// `S` has to be `Clone`: a call that is refused after readiness gives the readied instance back by dropping it, and
/// one that waits takes an instance along.
#[derive(Debug, Clone)]
pub struct AdaptiveRate<S, P = Http> {
    inner: Instance<S>,
    shared: Arc<Striped<Controller>>,
    protocol: P,
}

impl<S, P> AdaptiveRate<S, P> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Controller>>, protocol: P) -> Self {
        AdaptiveRate { inner: Instance::new(inner), shared, protocol }
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
            self.inner.refuse(());
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_ready(cx).map_err(P::error)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        let deadline = |request: &Req| deadline::earliest(P::deadline(request), Deadline::current());
        match self.shared.admit(|| deadline(&request)) {
            Admission::Goes(_) if !self.inner.is_refused() => {
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
                self.inner.give_back();
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
        let call = (self.inner.unready(), request);
        ResponseFuture::waiting(wait, deadline, call, self.protocol.clone(), context)
    }
}
