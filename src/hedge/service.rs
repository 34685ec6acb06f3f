//! The service: the first attempt, and what is kept for further ones.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    deadline,
    hedge::{
        ResponseFuture,
        future::{Kept, Spare},
        hedger::Hedger,
    },
    instance::Instance,
    on_panic::Armed,
    protocol::Http,
    retry::Retryable,
    stripe::Striped,
};

/// A service whose slow calls are sent a second time. Made by [`HedgeLayer`](crate::HedgeLayer).
///
/// `S` has to be `Clone`: a call keeps an instance of its own for further attempts.
#[derive(Debug, Clone)]
pub struct Hedge<S, P = Http> {
    inner: Instance<S>,
    shared: Arc<Striped<Hedger>>,
    protocol: P,
}

impl<S, P> Hedge<S, P> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Hedger>>, protocol: P) -> Self {
        Hedge { inner: Instance::new(inner), shared, protocol }
    }
}

impl<S, P, Req> Service<Req> for Hedge<S, P>
where
    S: Service<Req> + Clone,
    P: Retryable<Req, S::Response, S::Error>,
{
    type Response = P::Response<()>;
    type Error = P::Error;
    type Future = ResponseFuture<S, P, Req>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        if self.shared.ledger.refuses_readiness() {
            self.inner.refuse(());
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_ready(cx).map_err(P::error)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let context = self.protocol.context(&request);
        // It stays so until the next readiness.
        if self.inner.is_refused() {
            self.shared.ledger.refuse_late();
            return ResponseFuture::refused(self.protocol.clone(), context, self.shared.share());
        }
        let deadline = self.protocol.deadline_of(&context, &request);
        // In shadow it goes on; there no second attempt is made in any case.
        if deadline::has_passed(deadline) && self.shared.ledger.refuse_unless_in_shadow() {
            self.inner.give_back();
            return ResponseFuture::refused(self.protocol.clone(), context, self.shared.share());
        }
        let shared = self.shared.share();
        let own_budget = shared.budget.own::<P, Req, S::Response, S::Error>(|| P::head(&request));
        let pays = shared.began(own_budget.as_ref());
        let fixed = &shared.fixed;
        let mut original = None;
        let request = if self.protocol.is_safe(&context, &request, fixed.trust) {
            self.protocol.split(request, fixed.replay_cap, &mut original)
        } else {
            request
        };
        // Another instance, which holds nothing until it is its turn.
        let spare = original.map(|original| Spare { service: Some(self.inner.another()), original: Some(original) });
        let armed = Armed(|| shared.reporter().panicked(1));
        let inner = self.inner.call(request);
        armed.disarm();
        let kept = Kept { protocol: self.protocol.clone(), context, shared, deadline, pays };
        ResponseFuture::running(inner, kept, spare)
    }
}
