//! The service: is the door still open?

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    drain::{Gate, Inside, ResponseFuture},
    instance::Instance,
    protocol::{Http, Protocol},
    stripe::{Shared, Striped},
};

/// A service that can be drained. Made by [`DrainLayer`](crate::DrainLayer).
///
/// `S` has to be `Clone`: a call that is refused after readiness gives the readied instance back by dropping it.
#[derive(Debug, Clone)]
pub struct Drain<S, P = Http> {
    inner: Instance<S>,
    shared: Arc<Striped<Gate>>,
    protocol: P,
}

impl<S, P> Drain<S, P> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Gate>>, protocol: P) -> Self {
        Drain { inner: Instance::new(inner), shared, protocol }
    }
}

impl<S, P, Req> Service<Req> for Drain<S, P>
where
    S: Service<Req> + Clone,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Response = P::Response<Inside>;
    type Error = P::Error;
    type Future = ResponseFuture<S::Future, P, P::Context, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        if self.shared.is_draining() {
            self.inner.refuse(());
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_ready(cx).map_err(P::error)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        let gate = self.shared.share();
        if self.inner.is_refused() {
            return self.refused(P::is_http1(&context, &request), context, gate);
        }
        if !gate.enter(gate.stripe()) {
            self.inner.give_back();
            return self.refused(P::is_http1(&context, &request), context, gate);
        }
        let inside = Inside::new(gate);
        let inner = self.inner.call(request);
        ResponseFuture::running(inner, self.protocol.clone(), context, inside)
    }
}

impl<S, P: Clone> Drain<S, P> {
    // Inlined, because a future that has to be written through a pointer here is moved whole on every other path too.
    #[inline(always)]
    fn refused<F, C, Req>(&self, is_http1: bool, context: C, gate: Shared<Gate>) -> ResponseFuture<F, P, C, Req> {
        gate.refuse();
        ResponseFuture::refused(gate, is_http1, self.protocol.clone(), context)
    }
}
