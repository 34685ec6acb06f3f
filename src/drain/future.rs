//! The future of a call that is counted.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use crate::{
    drain::{Gate, Inside},
    protocol::Protocol,
    stripe::Shared,
};

pin_project! {
    /// The response of a call that is counted until it is over.
    ///
    /// Dropping it drops the inner future, and the call is over. It has no allocation.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, P, C, Req> {
        #[pin]
        state: State<F>,
        // After the state, so that the inner call has ended when it counts as over.
        inside: Option<Inside>,
        protocol: P,
        context: C,
        request: PhantomData<fn(Req)>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Running { #[pin] inner: F },
        // Not the rejection: it is made when it is asked for, so that a call that goes on never has room for it.
        Refused { gate: Shared<Gate>, is_http1: bool },
    }
}

impl<F, P, C, Req> ResponseFuture<F, P, C, Req> {
    #[inline(always)]
    pub(crate) fn running(inner: F, protocol: P, context: C, inside: Inside) -> Self {
        Self::new(State::Running { inner }, protocol, context, Some(inside))
    }

    #[inline(always)]
    pub(crate) fn refused(gate: Shared<Gate>, is_http1: bool, protocol: P, context: C) -> Self {
        Self::new(State::Refused { gate, is_http1 }, protocol, context, None)
    }

    #[inline(always)]
    fn new(state: State<F>, protocol: P, context: C, inside: Option<Inside>) -> Self {
        ResponseFuture { state, inside, protocol, context, request: PhantomData }
    }
}

impl<F, P, Req, Res, Err> Future for ResponseFuture<F, P, P::Context, Req>
where
    F: Future<Output = Result<Res, Err>>,
    P: Protocol<Req, Res, Err>,
{
    type Output = Result<P::Response<Inside>, P::Error>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.state.project() {
            StateProj::Running { inner } => {
                let result = ready!(inner.poll(cx));
                this.protocol.finish(this.context, result, this.inside)
            }
            StateProj::Refused { gate, is_http1 } => {
                let mut answer = this.protocol.reject(this.context, gate.rejection())?;
                // The next call shall go to somebody else. Elsewhere there is no such header, and a message that has it
                // is malformed (RFC 9113, 8.2.2; RFC 9114, 4.2).
                if *is_http1 {
                    P::close_connection(&mut answer);
                }
                Poll::Ready(Ok(answer))
            }
        }
    }
}

impl<F, P, C, Req> fmt::Debug for ResponseFuture<F, P, C, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
