//! The service that takes deadlines in and passes them on.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{
    bounded::{BodyClock, BodyPlan, Plan, ResponseFuture},
    deadline::{
        self, Deadline, DeadlineLayer, Entered, Scoped,
        caller::Caller,
        layer::Side,
        outer,
        wire::{self, Read},
    },
    instance::Instance,
    protocol::{BoxError, Http, HttpContext, Protocol, ResponseBody},
    rejection::Reason,
    time::{self, Instant, Span},
};

/// A service under a [`DeadlineLayer`].
///
/// `S` has to be `Clone`: a call that is refused after readiness gives the readied instance back by dropping it.
#[derive(Debug, Clone)]
pub struct Deadlines<S> {
    inner: Instance<S>,
    layer: DeadlineLayer,
}

impl<S> Deadlines<S> {
    pub(crate) fn new(inner: S, layer: DeadlineLayer) -> Self {
        Deadlines { inner: Instance::new(inner), layer }
    }
}

impl<S, B, RB> Service<Request<B>> for Deadlines<S>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone,
    S::Error: 'static,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<RB, BodyClock>>;
    type Error = S::Error;
    type Future = Scoped<ResponseFuture<S::Future, Http, HttpContext, Request<B>>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let closed = self.layer.refuses_everything() || deadline::has_passed(Deadline::current());
        if closed && !self.layer.ledger.in_shadow() {
            self.inner.refuse(());
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let ledger = self.layer.ledger.share();
        let protocol = self.layer.protocol.clone();
        let context = Protocol::<_, S::Response, S::Error>::context(&protocol, &request);
        if self.inner.is_refused() {
            ledger.refuse(Reason::DeadlineExceeded);
            return Scoped::new(None, ResponseFuture::refused(Reason::DeadlineExceeded, protocol, context, ledger));
        }
        let now = time::now();
        let in_shadow = ledger.in_shadow();
        let (caller, scope) = self.layer.caller(context.is_grpc(), &mut request, now, in_shadow);
        let too_late = caller.has_passed(now);
        if too_late && ledger.run_out(Reason::DeadlineExceeded) {
            self.inner.give_back();
            return Scoped::new(None, ResponseFuture::refused(Reason::DeadlineExceeded, protocol, context, ledger));
        }
        let body = caller.deadline.map(|_| BodyPlan { to_the_end: true, idle: Span::NONE, scope });
        // In shadow a call that came too late goes on, and was reported.
        let plan = Plan { start: now, after: Span::NONE, caller: caller.timer().filter(|_| !too_late), body };
        // The inner service may look at the deadline in `call` itself, before there is a future.
        let _entered = Entered::new(scope);
        let inner = self.inner.call(request);
        Scoped::new(scope, ResponseFuture::running(inner, protocol, context, plan, ledger))
    }
}

impl DeadlineLayer {
    fn refuses_everything(&self) -> bool {
        self.mode.side == Side::Server { max: Duration::ZERO }
    }

    /// The deadline of this call, and that which others are to see: it is on the request from here on.
    fn caller<B>(
        &self,
        grpc: bool,
        request: &mut Request<B>,
        now: Instant,
        in_shadow: bool,
    ) -> (Caller, Option<Deadline>) {
        let on_request: Option<Deadline> = request.extensions().get().copied();
        let known = deadline::earliest(on_request, Deadline::current());
        let (caller, seen) = match self.mode.side {
            Side::Server { max } => {
                let told = self.incoming(request, now, known);
                let caller = told.and(most(max, now));
                // In shadow nobody further in is to be bound by what this layer only tries.
                (caller, if in_shadow { told } else { caller })
            }
            Side::Client => {
                let caller = self.outgoing(grpc, request, now, known);
                (caller, caller)
            }
        };
        // What has passed is refused, or goes on in shadow.
        let seen = seen.deadline.filter(|_| !seen.has_passed(now));
        // Inserting allocates: not for a deadline that came on the request.
        if let Some(deadline) = seen.filter(|d| on_request != Some(*d)) {
            request.extensions_mut().insert(deadline);
        }
        (caller, seen)
    }

    fn incoming<B>(&self, request: &Request<B>, now: Instant, known: Option<Deadline>) -> Caller {
        let present = self.counted(wire::read_grpc_timeout(request.headers()));
        let by_header = Caller::early(outer::callers(present, now), now).and(self.millis(request, now));
        // Without the header nobody below has a timer to be beaten.
        Caller::exact(known).and(by_header)
    }

    /// By the header of [`DeadlineLayer::header`].
    fn millis<B>(&self, request: &Request<B>, now: Instant) -> Caller {
        let read = match &self.mode.header {
            Some(name) => self.counted(wire::read_millis(request.headers(), name)),
            None => Read::Absent,
        };
        Caller::exact(wire::deadline(read, now))
    }

    fn outgoing<B>(&self, grpc: bool, request: &mut Request<B>, now: Instant, known: Option<Deadline>) -> Caller {
        let left = |d: Deadline| d.instant().saturating_duration_since(now);
        let known = deadline::earliest(known, self.millis(request, now).deadline);
        let headers = request.headers_mut();
        let known = if grpc { Caller::early(known, now) } else { Caller::exact(known) };
        let most = known.deadline.filter(|_| grpc && !known.has_passed(now)).map(left);
        let present = self.counted(wire::lower_grpc_timeout(headers, most));
        let caller = Caller::early(outer::callers(present, now), now).and(known);
        if caller.has_passed(now) {
            return caller;
        }
        if let (Some(name), Some(deadline)) = (&self.mode.header, caller.deadline) {
            headers.insert(name, wire::millis(left(deadline)));
        }
        caller
    }

    fn counted(&self, read: Read) -> Read {
        if read == Read::Malformed {
            self.ledger.malformed();
        }
        read
    }
}

/// The operator's own upper bound; beyond the clock's range there is none.
fn most(max: Duration, now: Instant) -> Caller {
    Caller::exact(now.checked_add(max).map(Deadline::at))
}
