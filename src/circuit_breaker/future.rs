//! The future of a call through a circuit breaker.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use crate::{
    circuit_breaker::call::Call,
    permit::{Permit, UntilReady},
    polled::{POLLED, take},
    protocol::Protocol,
    rejection::Rejection,
};

pin_project! {
    /// The response of a call through a circuit breaker.
    ///
    /// It owns the call's permit, which moves into the response body. Dropping it drops the inner future and gives the
    /// permit back; the call counts as cancelled. It has no allocation.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, P, C, Req> {
        #[pin]
        state: State<F>,
        protocol: P,
        context: C,
        request: PhantomData<fn(Req)>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Running { #[pin] inner: F, permit: UntilReady<Permit<Call>> },
        // No larger than a permit, so that a call that goes on has no room for it.
        Refused { rejection: UntilReady<Rejection> },
    }
}

impl<F, P, C, Req> ResponseFuture<F, P, C, Req> {
    #[inline(always)]
    pub(crate) fn running(inner: F, protocol: P, context: C, permit: Permit<Call>) -> Self {
        let state = State::Running { inner, permit: UntilReady::new(permit) };
        ResponseFuture { state, protocol, context, request: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn refused(rejection: Rejection, protocol: P, context: C) -> Self {
        let state = State::Refused { rejection: UntilReady::new(rejection) };
        ResponseFuture { state, protocol, context, request: PhantomData }
    }
}

impl<F, P, Req, Res, Err> Future for ResponseFuture<F, P, P::Context, Req>
where
    F: Future<Output = Result<Res, Err>>,
    P: Protocol<Req, Res, Err>,
{
    type Output = Result<P::Response<Permit<Call>>, P::Error>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProj::Running { inner, permit } => {
                let running = permit.0.as_mut().expect(POLLED);
                let result = ready!(running.guard(|| inner.poll(cx)));
                this.protocol.finish(this.context, result, &mut permit.0)
            }
            StateProj::Refused { rejection } => Poll::Ready(this.protocol.reject(this.context, take(&mut rejection.0))),
        }
    }
}

impl<F, P, C, Req> fmt::Debug for ResponseFuture<F, P, C, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
