//! The service: is there room for this call?

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    bulkhead::{
        ResponseFuture,
        door::{Admission, Shut},
        held::Held,
        limiter::Limiter,
    },
    deadline::{self, Deadline},
    instance::Instance,
    outline,
    priority::Priority,
    protocol::{Http, Protocol},
    stripe::{Shared, Striped},
};

#[cfg(feature = "http")]
use crate::bulkhead::by_key::{ByKey, Goes};

/// A service behind a bulkhead. Made by [`BulkheadLayer`](crate::BulkheadLayer).
///
/// `S` has to be `Clone`: a call that waits takes an instance along, and one that is refused after readiness gives the
/// readied instance back by dropping it.
#[derive(Debug, Clone)]
pub struct Bulkhead<S, P = Http> {
    inner: Instance<S, Shut>,
    shared: Arc<Striped<Limiter>>,
    protocol: P,
}

impl<S, P> Bulkhead<S, P> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Limiter>>, protocol: P) -> Self {
        Bulkhead { inner: Instance::new(inner), shared, protocol }
    }
}

impl<S, P, Req> Service<Req> for Bulkhead<S, P>
where
    S: Service<Req> + Clone,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Response = P::Response<Held>;
    type Error = P::Error;
    type Future = ResponseFuture<S, P, P::Context, Req>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        if !self.shared.is_open() && self.shut_if_it_refuses(P::IS_HTTP) {
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_ready(cx).map_err(P::error)
    }

    #[inline(always)]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        // By itself, from the door to the future: where paths met again, each would carry what the others need.
        let has_deadline = Deadline::current().is_some() || P::deadline(&request).is_some();
        if self.inner.is_asked() && !has_deadline && self.shared.room.pass() {
            let inner = call_inner(&self.shared, request, |request| self.inner.call(request));
            return self.running(inner, context);
        }
        // By itself too, and not even there for services without heads: with two ways to come to a limiter, calls
        // without keys would be slower.
        #[cfg(feature = "http")]
        if P::IS_HTTP
            && let Some(by_key) = &self.shared.by_key
        {
            let (admission, limiter) = self.admit_by_key(by_key, &mut request);
            return self.go_on::<_, _, S::Response, S::Error>(admission, limiter, request, context);
        }
        match self.admit(&mut request) {
            Admission::In if self.inner.is_asked() => {
                let inner = call_inner(&self.shared, request, |request| outline::call(self.inner.service(), request));
                self.running(inner, context)
            }
            Admission::In => {
                let held = self.granted::<Req, S::Response, S::Error>(self.shared.share(), &request);
                let unready = self.inner.unready();
                ResponseFuture::waiting(unready, request, self.protocol.clone(), context, held)
            }
            Admission::Waits(waits) => {
                let held = Held::place(self.shared.share(), waits);
                let unready = self.inner.unready();
                ResponseFuture::waiting(unready, request, self.protocol.clone(), context, held)
            }
            Admission::Refused(reason) => {
                self.shared.common.refuse(reason);
                self.inner.give_back();
                let held = Held::nothing(self.shared.share());
                ResponseFuture::refused(reason, self.protocol.clone(), context, held)
            }
        }
    }
}

impl<S, P: Clone> Bulkhead<S, P> {
    /// Made after the inner call, which would otherwise have to be able to drop it.
    #[inline(always)]
    fn running<C, Req>(&self, inner: S::Future, context: C) -> ResponseFuture<S, P, C, Req>
    where
        S: Service<Req>,
    {
        ResponseFuture::running(inner, self.protocol.clone(), context, Held::permit(self.shared.share()))
    }
}

#[cfg(feature = "http")]
impl<S: Clone, P: Clone> Bulkhead<S, P> {
    /// Does with a call of a key what was found. Out of line: what it needs is not on the way of calls without keys.
    #[cold]
    #[inline(never)]
    fn go_on<C, Req, Res, Err>(
        &mut self,
        admission: Admission,
        limiter: Shared<Limiter>,
        request: Req,
        context: C,
    ) -> ResponseFuture<S, P, C, Req>
    where
        S: Service<Req>,
        P: Protocol<Req, Res, Err>,
    {
        match admission {
            Admission::In if self.inner.is_asked() => {
                let inner = call_inner(&limiter, request, |request| outline::call(self.inner.service(), request));
                ResponseFuture::running(inner, self.protocol.clone(), context, Held::permit(limiter))
            }
            Admission::In => {
                let held = self.granted::<Req, Res, Err>(limiter, &request);
                let unready = self.inner.unready();
                ResponseFuture::waiting(unready, request, self.protocol.clone(), context, held)
            }
            Admission::Waits(waits) => {
                let held = Held::place(limiter, waits);
                let unready = self.inner.unready();
                ResponseFuture::waiting(unready, request, self.protocol.clone(), context, held)
            }
            Admission::Refused(reason) => {
                limiter.common.refuse(reason);
                self.inner.give_back();
                ResponseFuture::refused(reason, self.protocol.clone(), context, Held::nothing(limiter))
            }
        }
    }
}

impl<S: Clone, P> Bulkhead<S, P> {
    /// Looks closer than [`Limiter::is_open`]. Behind a shut door nothing is held.
    #[cold]
    fn shut_if_it_refuses(&mut self, is_http: bool) -> bool {
        if !is_http {
            self.stay_with_keyless();
        }
        let shut = self.shared.look();
        if let Some(shut) = shut {
            self.inner.refuse(shut);
        }
        shut.is_some()
    }

    #[cold]
    fn admit<Req, Res, Err>(&mut self, request: &mut Req) -> Admission
    where
        P: Protocol<Req, Res, Err>,
    {
        if let Some(&Shut::Refuses(reason)) = self.inner.refused() {
            return Admission::Refused(reason);
        }
        self.stay_with_keyless();
        let deadline = deadline::earliest(P::deadline(request), Deadline::current());
        self.shared.admit(deadline, || self.priority::<Req, Res, Err>(request))
    }

    /// Of a call that is in, for room has come since readiness was asked for: the inner service was not asked.
    #[cold]
    fn granted<Req, Res, Err>(&self, limiter: Shared<Limiter>, request: &Req) -> Held
    where
        P: Protocol<Req, Res, Err>,
    {
        let deadline = deadline::earliest(P::deadline(request), Deadline::current());
        match limiter.grants(deadline) {
            Some(waits) => Held::granted(limiter, waits),
            None => Held::permit(limiter),
        }
    }

    /// As [`admit`](Self::admit), of the limiter of the request's key.
    #[cfg(feature = "http")]
    fn admit_by_key<Req, Res, Err>(&self, by_key: &ByKey, request: &mut Req) -> (Admission, Shared<Limiter>)
    where
        P: Protocol<Req, Res, Err>,
    {
        if let Some(&Shut::Refuses(reason)) = self.inner.refused() {
            return (Admission::Refused(reason), self.shared.share());
        }
        match by_key.find::<P, Req, Res, Err>(request, self.shared.now()) {
            Goes::To(limiter) => {
                let deadline = deadline::earliest(P::deadline(request), Deadline::current());
                let admission = limiter.admit(deadline, || self.priority::<Req, Res, Err>(request));
                (admission, limiter)
            }
            Goes::Nowhere { refuse } => (self.shared.admit_nobody(refuse), self.shared.share()),
        }
    }

    /// A service without heads has no keys: it goes to the limiter without one, and stays there.
    fn stay_with_keyless(&mut self) {
        #[cfg(feature = "http")]
        if let Some(by_key) = &self.shared.by_key {
            self.shared = Arc::clone(&by_key.keyless);
        }
    }

    #[cfg_attr(not(feature = "http"), allow(clippy::extra_unused_type_parameters, reason = "nothing to choose by"))]
    fn priority<Req, Res, Err>(&self, request: &mut Req) -> Priority
    where
        P: Protocol<Req, Res, Err>,
    {
        #[cfg(feature = "http")]
        if let Some(f) = self.shared.common.priority_fn()
            && let Some(own) = P::with_parts(request, f)
        {
            return own;
        }
        P::priority(request).unwrap_or_default()
    }
}

/// A call that this limiter has let in. Not by `on_panic`, whose closure would have the request moved once more.
#[inline(always)]
fn call_inner<Req, F>(limiter: &Limiter, request: Req, call: impl FnOnce(Req) -> F) -> F {
    let panic = PanicInCall(limiter);
    let inner = call(request);
    mem::forget(panic);
    inner
}

/// Dropped only by a panic in the inner service's `call`.
struct PanicInCall<'a>(&'a Limiter);

impl Drop for PanicInCall<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.leave();
    }
}
