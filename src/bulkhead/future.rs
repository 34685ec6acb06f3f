//! The future of a call through a bulkhead.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    bulkhead::held::Held,
    deadline::{self, Deadline},
    outline,
    polled::{POLLED, take},
    protocol::Protocol,
    rejection::Reason,
    time::Sleep,
};

pin_project! {
    /// The response of a call through a bulkhead.
    ///
    /// It owns the call's permit, which moves into the response body, or its place in the queue, and then the request
    /// and an instance of the inner service too, which it does not touch before its turn. Dropping it gives back what
    /// it has. It has no allocation: the timer of one that waits is part of it.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, P, C, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, S::Future, Req>,
        // Not in the state: what is dropped at the end of every call shall be as simple as can be.
        #[pin]
        timer: Option<Sleep>,
        // After the state, so that the inner call has ended when the permit is given back.
        held: Option<Held>,
        protocol: P,
        context: C,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, F, Req> {
        Running { #[pin] inner: F },
        // For its turn, and then for the inner service.
        Waiting { service: S, request: Option<Req> },
        // Only the reason: the rejection is made when it is asked for, so that a call that goes on never has room for
        // it.
        Refused { reason: Reason },
    }
}

impl<S: Service<Req>, P, C, Req> ResponseFuture<S, P, C, Req> {
    #[inline(always)]
    pub(crate) fn running(inner: S::Future, protocol: P, context: C, held: Held) -> Self {
        Self::new(State::Running { inner }, protocol, context, held)
    }

    /// Of a call that holds a place in the line, or is in and waits for the inner service.
    #[inline(always)]
    pub(crate) fn waiting(service: S, request: Req, protocol: P, context: C, held: Held) -> Self {
        Self::new(State::Waiting { service, request: Some(request) }, protocol, context, held)
    }

    #[inline(always)]
    pub(crate) fn refused(reason: Reason, protocol: P, context: C, held: Held) -> Self {
        Self::new(State::Refused { reason }, protocol, context, held)
    }

    #[inline(always)]
    fn new(state: State<S, S::Future, Req>, protocol: P, context: C, held: Held) -> Self {
        ResponseFuture { state, timer: None, held: Some(held), protocol, context }
    }
}

impl<S, P, Req> Future for ResponseFuture<S, P, P::Context, Req>
where
    S: Service<Req>,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Output = Result<P::Response<Held>, P::Error>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        if let StateProj::Running { inner } = this.state.project() {
            let result = ready!(inner.poll(cx));
            return finish(this.protocol, this.context, result, this.held);
        }
        self.poll_waiting(cx)
    }
}

impl<S, P, Req> ResponseFuture<S, P, P::Context, Req>
where
    S: Service<Req>,
    P: Protocol<Req, S::Response, S::Error>,
{
    /// By itself, so that a call that goes in at once has nothing of it.
    #[cold]
    fn poll_waiting(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<<Self as Future>::Output> {
        let mut this = self.as_mut().project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Running { inner } => {
                    let result = ready!(outline::poll(inner, cx));
                    return finish(this.protocol, this.context, result, this.held);
                }
                StateProj::Waiting { service, request } => {
                    let held = this.held.as_mut().expect(POLLED);
                    let turn = ready!(held.poll_turn(this.timer.as_mut(), cx));
                    let deadline = || deadline::earliest(request.as_ref().and_then(P::deadline), Deadline::current());
                    if let Err(reason) = turn.and_then(|()| held.is_in_time(deadline)) {
                        this.state.set(State::Refused { reason });
                        continue;
                    }
                    match outline::poll_ready(service, cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => {
                            *this.held = None;
                            return Poll::Ready(Err(P::error(error)));
                        }
                        Poll::Pending => {
                            let reason = ready!(held.poll_patience(this.timer.as_mut(), cx));
                            this.state.set(State::Refused { reason });
                            continue;
                        }
                    }
                    this.timer.set(None);
                    held.begin_call();
                    let mut request = take(request);
                    deadline::shorten(this.protocol, &mut request);
                    let inner = outline::call(service, request);
                    this.state.set(State::Running { inner });
                }
                StateProj::Refused { reason } => {
                    let rejection = this.held.as_ref().expect(POLLED).limiter().common.rejection(*reason);
                    return Poll::Ready(this.protocol.reject(this.context, rejection));
                }
            }
        }
    }
}

#[inline(always)]
fn finish<P, Req, Res, Err>(
    protocol: &P,
    context: &P::Context,
    result: Result<Res, Err>,
    held: &mut Option<Held>,
) -> Poll<Result<P::Response<Held>, P::Error>>
where
    P: Protocol<Req, Res, Err>,
{
    if !P::IS_HTTP {
        // Nothing in the response is to be watched.
        Held::leave(held);
        return protocol.finish(context, result, &mut None);
    }
    protocol.finish(context, result, held)
}

impl<S: Service<Req>, P, C, Req> fmt::Debug for ResponseFuture<S, P, C, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
