//! The service: the first attempt, and what is kept for further ones.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    deadline,
    instance::Instance,
    on_panic::{Armed, on_panic},
    outline,
    protocol::Http,
    retry::{
        ResponseFuture,
        future::{Attempt, Spare},
        retrier::Retrier,
        verdict::Retryable,
    },
    stripe::Striped,
};

/// A service whose failed calls are made again. Made by [`RetryLayer`](crate::RetryLayer).
///
/// `S` has to be `Clone`: a call keeps an instance of its own for further attempts.
#[derive(Debug, Clone)]
pub struct Retry<S, P = Http> {
    inner: Instance<S>,
    shared: Arc<Striped<Retrier>>,
    protocol: P,
}

impl<S, P> Retry<S, P> {
    pub(crate) fn new(inner: S, shared: Arc<Striped<Retrier>>, protocol: P) -> Self {
        Retry { inner: Instance::new(inner), shared, protocol }
    }
}

impl<S, P, Req> Service<Req> for Retry<S, P>
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
        // In shadow it goes on; there nothing is sent again in any case.
        if deadline::has_passed(deadline) && self.shared.ledger.refuse_unless_in_shadow() {
            self.inner.give_back();
            return ResponseFuture::refused(self.protocol.clone(), context, self.shared.share());
        }
        let shared = self.shared.share();
        shared.count();
        let own_budget = shared.budget.own::<P, Req, S::Response, S::Error>(|| P::head(&request));
        let budget = own_budget.as_ref().unwrap_or(&shared.budget);
        budget.began(shared.stripe());
        let settings = &shared.settings;
        let safe = self.protocol.is_safe(&context, &request, settings.fixed.trust);
        let mut original = None;
        let request = if settings.attempts() == 1 {
            request
        } else {
            self.protocol.split(request, settings.fixed.replay_cap, &mut original)
        };
        // Another instance, which holds nothing until it is its turn.
        let spare = original.map(|original| Spare { service: self.inner.another(), original });
        let attempt = match shared.payment(budget) {
            None => {
                let armed = Armed(|| shared.reporter().panicked(1));
                let inner = self.inner.call(request);
                armed.disarm();
                Attempt::Running { inner }
            }
            Some(payment) => {
                let call = || payment.during(|| outline::call(self.inner.service(), request));
                Attempt::Paid { inner: on_panic(|| shared.reporter().panicked(1), call), payment }
            }
        };
        ResponseFuture::running(attempt, self.protocol.clone(), context, shared, spare, safe, deadline)
    }
}
