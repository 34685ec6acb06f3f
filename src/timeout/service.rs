//! The service: what bounds this call?

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    bounded::{BodyClock, Plan, ResponseFuture},
    deadline::{self, Deadline, caller::Caller},
    instance::Instance,
    protocol::{Http, Protocol},
    rejection::Reason,
    time::{self, Instant, Span},
    timeout::layer::State,
};

/// A service whose calls are bounded. Made by [`TimeoutLayer`](crate::TimeoutLayer).
///
/// `S` has to be `Clone`: a call that is refused after readiness gives the readied instance back by dropping it.
#[derive(Debug, Clone)]
pub struct Timeout<S, P = Http> {
    inner: Instance<S>,
    shared: Arc<State>,
    protocol: P,
}

impl<S, P> Timeout<S, P> {
    pub(crate) fn new(inner: S, shared: Arc<State>, protocol: P) -> Self {
        Timeout { inner: Instance::new(inner), shared, protocol }
    }
}

impl<S, P, Req> Service<Req> for Timeout<S, P>
where
    S: Service<Req> + Clone,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Response = P::Response<BodyClock>;
    type Error = P::Error;
    type Future = ResponseFuture<S::Future, P, P::Context, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        if deadline::has_passed(Deadline::current()) && !self.shared.ledger.in_shadow() {
            self.inner.refuse(());
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_ready(cx).map_err(P::error)
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        if self.inner.is_refused() {
            self.shared.ledger.refuse(Reason::DeadlineExceeded);
            return self.refused(context);
        }
        let now = time::now();
        let after = self.shared.after::<P, Req, S::Response, S::Error>(&mut request);
        let caller = self.shared.caller::<P, Req, S::Response, S::Error>(&context, &mut request, now, after);
        let too_late = caller.has_passed(now);
        if too_late && self.shared.ledger.run_out(Reason::DeadlineExceeded) {
            self.inner.give_back();
            return self.refused(context);
        }
        let body = if P::IS_HTTP { self.shared.settings().body() } else { None };
        // In shadow a call that came too late goes on, and was reported.
        let plan = Plan { start: now, after, caller: caller.timer().filter(|_| !too_late), body };
        let on_the_wire = P::has_a_timer_below(&context) && !self.shared.ledger.in_shadow();
        let inside = plan.inside(on_the_wire);
        let inner = self.inner.call(request);
        drop(inside);
        ResponseFuture::running(inner, self.protocol.clone(), context, plan, self.shared.ledger.share())
    }
}

impl<S, P: Clone> Timeout<S, P> {
    // Inlined, because a future that has to be written through a pointer here is moved whole on every other path too.
    #[inline(always)]
    fn refused<F, C, Req>(&self, context: C) -> ResponseFuture<F, P, C, Req> {
        let ledger = self.shared.ledger.share();
        ResponseFuture::refused(Reason::DeadlineExceeded, self.protocol.clone(), context, ledger)
    }
}

impl State {
    /// The operator's bound, chosen by the request where a function was given.
    #[cfg_attr(not(feature = "http"), allow(clippy::extra_unused_type_parameters, reason = "nothing to choose by"))]
    #[inline]
    fn after<P, Req, Res, Err>(&self, request: &mut Req) -> Span
    where
        P: Protocol<Req, Res, Err>,
    {
        #[cfg(feature = "http")]
        if let Some(f) = self.after_fn()
            && let Some(own) = P::with_parts(request, f).flatten()
        {
            return Span::from(Some(own).filter(|d| *d <= time::LONGEST));
        }
        let _ = request;
        self.settings().after()
    }

    /// The caller's deadline. On gRPC the header is part of it, and the transport's timer on that header is beaten.
    #[inline]
    fn caller<P, Req, Res, Err>(&self, context: &P::Context, request: &mut Req, now: Instant, after: Span) -> Caller
    where
        P: Protocol<Req, Res, Err>,
    {
        let known = deadline::earliest(P::deadline(request), Deadline::current());
        #[cfg(feature = "http")]
        if let Some(headers) = P::grpc_headers(context, request) {
            return Caller::early(self.grpc(headers, now, after, known), now);
        }
        let _ = (context, now, after);
        Caller::exact(known)
    }

    /// The caller's deadline as it is known and as it came by wire, with `grpc-timeout` set or lowered.
    #[cfg(feature = "http")]
    #[inline(never)]
    fn grpc(
        &self,
        headers: &mut http::HeaderMap,
        now: Instant,
        after: Span,
        known: Option<Deadline>,
    ) -> Option<Deadline> {
        use crate::deadline::wire;

        let most = if Caller::exact(known).has_passed(now) || self.ledger.in_shadow() {
            None
        } else {
            // The peer may have a little longer than we wait, so that our own timer is first; never past the caller.
            let ours = after.duration().map(|d| d.saturating_add(wire::margin(d)));
            let left = known.map(|d| d.instant().saturating_duration_since(now));
            ours.into_iter().chain(left).min()
        };
        let present = wire::lower_grpc_timeout(headers, most);
        if present == wire::Read::Malformed {
            self.ledger.malformed();
        }
        deadline::earliest(known, deadline::outer::callers(present, now))
    }
}
