//! The future of a call through a circuit breaker.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use crate::{circuit_breaker::call::Call, permit::Permit, protocol::Protocol, rejection::Rejection};

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
        context: Option<C>,
        request: PhantomData<fn(Req)>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        // Without a permit: in shadow, where the breaker would have refused it.
        Running { #[pin] inner: F, permit: Option<Permit<Call>> },
        Refused { rejection: Option<Rejection> },
    }
}

impl<F, P, C, Req> ResponseFuture<F, P, C, Req> {
    #[inline]
    pub(crate) fn running(inner: F, protocol: P, context: C, permit: Option<Permit<Call>>) -> Self {
        let state = State::Running { inner, permit };
        ResponseFuture { state, protocol, context: Some(context), request: PhantomData }
    }

    #[cold]
    pub(crate) fn refused(rejection: Rejection, protocol: P, context: C) -> Self {
        let state = State::Refused { rejection: Some(rejection) };
        ResponseFuture { state, protocol, context: Some(context), request: PhantomData }
    }
}

impl<F, P, Req, Res, Err> Future for ResponseFuture<F, P, P::Context, Req>
where
    F: Future<Output = Result<Res, Err>>,
    P: Protocol<Req, Res, Err>,
{
    type Output = Result<P::Response<Permit<Call>>, P::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProj::Running { inner, permit } => {
                let result = match permit {
                    Some(permit) => ready!(permit.guard(|| inner.poll(cx))),
                    None => ready!(inner.poll(cx)),
                };
                Poll::Ready(this.protocol.finish(take(this.context), result, permit.take()))
            }
            StateProj::Refused { rejection } => Poll::Ready(this.protocol.reject(take(this.context), take(rejection))),
        }
    }
}

fn take<T>(slot: &mut Option<T>) -> T {
    slot.take().expect("a future is not polled after it was ready")
}

impl<F, P, C, Req> fmt::Debug for ResponseFuture<F, P, C, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
