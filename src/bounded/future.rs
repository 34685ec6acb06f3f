//! The future of a bounded call.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;

use crate::{
    bounded::{BodyClock, Bound, Ledger, Plan},
    outline,
    permit::Cause,
    protocol::Protocol,
    rejection::Reason,
    stripe::Shared,
    time::{self, Sleep, Span, poll_at},
};

pin_project! {
    /// The response of a call under a timeout or a deadline.
    ///
    /// Dropping it drops the inner future; nothing else is held. It has no allocation: the timer is part of it, and
    /// registered only once the inner future was pending.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, P, C, Req> {
        #[pin]
        state: State<F>,
        protocol: P,
        context: C,
        ledger: Shared<Ledger>,
        request: PhantomData<fn(Req)>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Running { #[pin] inner: F, #[pin] timer: Option<Sleep>, plan: Plan },
        // Only the reason: the rejection is made when it is asked for, so that a call that goes on never has room for
        // it.
        Refused { reason: Reason },
    }
}

impl<F, P, C, Req> ResponseFuture<F, P, C, Req> {
    #[inline]
    pub(crate) fn running(inner: F, protocol: P, context: C, plan: Plan, ledger: Shared<Ledger>) -> Self {
        Self::new(State::Running { inner, timer: None, plan }, protocol, context, ledger)
    }

    #[inline(always)]
    pub(crate) fn refused(reason: Reason, protocol: P, context: C, ledger: Shared<Ledger>) -> Self {
        Self::new(State::Refused { reason }, protocol, context, ledger)
    }

    #[inline]
    fn new(state: State<F>, protocol: P, context: C, ledger: Shared<Ledger>) -> Self {
        ResponseFuture { state, protocol, context, ledger, request: PhantomData }
    }
}

impl<F, P, Req, Res, Err> Future for ResponseFuture<F, P, P::Context, Req>
where
    F: Future<Output = Result<Res, Err>>,
    P: Protocol<Req, Res, Err>,
{
    type Output = Result<P::Response<BodyClock>, P::Error>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.as_mut().project();
        let (reason, had) = match this.state.as_mut().project() {
            StateProj::Running { inner, timer, plan } => {
                if P::has_a_timer_below(this.context) || P::IS_HTTP && plan.body.is_some() {
                    return self.poll_closely(cx);
                }
                match inner.poll(cx) {
                    // Each way out by itself: answers are large, and where they met again, all would move one.
                    Poll::Ready(Ok(response)) => {
                        return this.protocol.finish(this.context, Ok(response), &mut None);
                    }
                    Poll::Ready(Err(error)) => {
                        return this.protocol.finish(this.context, Err(error), &mut None);
                    }
                    Poll::Pending => ready!(poll_overdue(plan, false, timer, this.ledger, cx)),
                }
            }
            StateProj::Refused { reason } => (*reason, Duration::ZERO),
        };
        Poll::Ready(self.give_up(reason, had))
    }
}

impl<F, P, Req, Res, Err> ResponseFuture<F, P, P::Context, Req>
where
    F: Future<Output = Result<Res, Err>>,
    P: Protocol<Req, Res, Err>,
{
    /// Where the answer is looked at, or its body is watched. By itself: what is looked at has to be in memory first,
    /// and all others would move their answers there too. (In line: what is returned by pointer would be moved again.)
    #[inline(always)]
    fn poll_closely(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<<Self as Future>::Output> {
        let mut this = self.as_mut().project();
        let StateProj::Running { inner, timer, plan } = this.state.as_mut().project() else {
            unreachable!("a call that was refused is not polled closely")
        };
        let early = P::has_a_timer_below(this.context);
        // In shadow the bound was not written there.
        let inside = plan.inside(early && !this.ledger.in_shadow());
        let polled = outline::poll(inner, cx);
        drop(inside);
        if early
            && let Poll::Ready(result) = &polled
            && result.as_ref().map_or(true, P::is_of_a_timer)
            && let Some((reason, had)) = overdue(plan, this.ledger)
        {
            return Poll::Ready(this.protocol.reject(this.context, this.ledger.rejection(reason, had)));
        }
        match polled {
            Poll::Ready(Ok(response)) if plan.body.is_none() => {
                this.protocol.finish(this.context, Ok(response), &mut None)
            }
            Poll::Ready(Ok(response)) => {
                let mut watch = plan.body.map(|body| BodyClock::new(plan, body, early, this.ledger));
                this.protocol.finish(this.context, Ok(response), &mut watch)
            }
            // It has no body to watch.
            Poll::Ready(Err(error)) => this.protocol.finish(this.context, Err(error), &mut None),
            Poll::Pending => {
                let (reason, had) = ready!(poll_overdue(plan, early, timer, this.ledger, cx));
                Poll::Ready(self.give_up(reason, had))
            }
        }
    }

    /// The inner future goes before the answer does, under the cause that policies inside it must book.
    #[inline(always)]
    fn give_up(self: Pin<&mut Self>, reason: Reason, had: Duration) -> <Self as Future>::Output {
        let mut this = self.project();
        Cause::of(reason, Some(had)).during(|| this.state.set(State::Refused { reason }));
        this.protocol.reject(this.context, this.ledger.rejection(reason, had))
    }
}

/// The inner future is pending: has the bound been reached? In shadow it is dropped once it was reported.
fn poll_overdue(
    plan: &mut Plan,
    early: bool,
    timer: Pin<&mut Option<Sleep>>,
    ledger: &Shared<Ledger>,
    cx: &mut Context<'_>,
) -> Poll<(Reason, Duration)> {
    let Some(bound) = plan.bound() else { return Poll::Pending };
    ready!(poll_at(timer, bound.at, cx));
    run_out(plan, bound, early, ledger).map_or(Poll::Pending, Poll::Ready)
}

/// The bound has been reached, and is told of once. `None`: in shadow, where it is none any more.
fn run_out(plan: &mut Plan, bound: Bound, early: bool, ledger: &Ledger) -> Option<(Reason, Duration)> {
    (plan.after, plan.caller) = (Span::NONE, None);
    ledger.run_out(bound.reason).then(|| (bound.reason, plan.had(bound, early)))
}

/// An error of a gRPC transport, or CANCELLED, that comes once the bound has been reached is a timer's on the same
/// header, there or at the peer: both ran out while nobody polled, and it says less than we know. (Before the bound it
/// is an answer like any other.)
#[cold]
fn overdue(plan: &mut Plan, ledger: &Ledger) -> Option<(Reason, Duration)> {
    let bound = plan.bound().filter(|b| b.at <= time::now())?;
    run_out(plan, bound, true, ledger)
}

impl<F, P, C, Req> fmt::Debug for ResponseFuture<F, P, C, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut future = f.debug_struct("ResponseFuture");
        match &self.state {
            State::Running { plan, .. } => future.field("plan", plan),
            State::Refused { reason } => future.field("refused", reason),
        };
        future.finish_non_exhaustive()
    }
}
