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
    circuit_breaker::{call::Call, machine::Refusal},
    permit::Permit,
    protocol::Protocol,
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
        // A refused call has one too, of which nothing more is asked than who refuses.
        permit: Option<Permit<Call>>,
        protocol: P,
        context: Option<C>,
        request: PhantomData<fn(Req)>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Running { #[pin] inner: F },
        // Not the rejection: it is made when it is asked for, so that a call that goes on never has room for it.
        Refused { refusal: Refusal },
    }
}

impl<F, P, C, Req> ResponseFuture<F, P, C, Req> {
    #[inline(always)]
    pub(crate) fn running(inner: F, protocol: P, context: C, permit: Permit<Call>) -> Self {
        let state = State::Running { inner };
        ResponseFuture { state, permit: Some(permit), protocol, context: Some(context), request: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn refused(refusal: Refusal, protocol: P, context: C, permit: Permit<Call>) -> Self {
        let state = State::Refused { refusal };
        ResponseFuture { state, permit: Some(permit), protocol, context: Some(context), request: PhantomData }
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
        let permit = this.permit.as_mut().expect("a future is not polled after it was ready");
        match this.state.project() {
            StateProj::Running { inner } => {
                let result = ready!(permit.guard(|| inner.poll(cx)));
                Poll::Ready(this.protocol.finish(take(this.context), result, this.permit))
            }
            StateProj::Refused { refusal } => {
                let rejection = permit.keeper().breaker().rejection(*refusal);
                Poll::Ready(this.protocol.reject(take(this.context), rejection))
            }
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
