//! The future of a call under a rate limit.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    protocol::{Protocol, Unwatched},
    rate_limit::{
        Engine,
        decision::{After, Decision, Refusal},
        limiter::Limiter,
        waiting::{Waiting, Went},
    },
    stripe::Shared,
};

pin_project! {
    /// The response of a call under a rate limit.
    ///
    /// A call that waits holds nothing of the inner service; dropping it gives its place in the line back at once, and
    /// those behind it move up.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, S, P, C, Req, St: Engine> {
        #[pin]
        state: State<F, S, Req, St>,
        protocol: P,
        context: C,
        // Only where something is to be done once the answer is there: a call that just goes holds nothing.
        then: Option<Then<St>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, S, Req, St: Engine> {
        Running { #[pin] inner: F },
        // Only what it comes to: the rejection is made when it is asked for, so that a call that goes never has room for it.
        Refused { refusal: Refusal, limiter: Shared<Limiter<St>> },
        // In a box of its own: with a request and a timer in it, every call that does not wait would be moved about with room
        // for both.
        Waiting { call: Pin<Box<Waiting<S, Req, St>>> },
    }
}

/// What is to be done once the answer is there, and by whom.
pub(crate) type Then<St> = (Shared<Limiter<St>>, After);

impl<F, S, P, C, Req, St: Engine> ResponseFuture<F, S, P, C, Req, St> {
    #[inline(always)]
    pub(crate) fn running(inner: F, protocol: P, context: C, then: Option<Then<St>>) -> Self {
        ResponseFuture { state: State::Running { inner }, protocol, context, then }
    }

    #[inline(always)]
    pub(crate) fn refused(refusal: Refusal, protocol: P, context: C, limiter: Shared<Limiter<St>>) -> Self {
        let state = State::Refused { refusal, limiter };
        ResponseFuture { state, protocol, context, then: None }
    }

    /// `go` says for what it waits; the instance is ready only if that is a store's answer and `fresh`.
    #[inline(always)]
    pub(crate) fn waiting(
        go: Decision<St::Acquire>,
        fresh: bool,
        call: (S, Req),
        protocol: P,
        context: C,
        limiter: Shared<Limiter<St>>,
    ) -> Self {
        let state = State::Waiting { call: Waiting::new(go, fresh, call, limiter) };
        ResponseFuture { state, protocol, context, then: None }
    }
}

impl<S, P, Req, St> Future for ResponseFuture<S::Future, S, P, P::Context, Req, St>
where
    S: Service<Req> + Clone,
    P: Protocol<Req, S::Response, S::Error>,
    St: Engine,
{
    type Output = Result<P::Response<Unwatched>, P::Error>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            let (next, then) = match this.state.as_mut().project() {
                StateProj::Running { inner } => {
                    let result = ready!(inner.poll(cx));
                    let answer = this.protocol.finish(this.context, result, &mut None);
                    return Poll::Ready(match this.then {
                        None => answer,
                        Some(then) => answer.map(|answer| tell::<P, Req, S::Response, S::Error, St>(answer, then)),
                    });
                }
                StateProj::Refused { refusal, limiter } => {
                    let answer = this.protocol.reject(this.context, limiter.rejection(refusal));
                    return Poll::Ready(
                        answer.map(|answer| tell_of::<P, Req, S::Response, S::Error, St>(answer, refusal, limiter)),
                    );
                }
                StateProj::Waiting { call } => match ready!(call.as_mut().poll::<P, S::Response>(cx)) {
                    Went::Running(inner, then) => (State::Running { inner }, then),
                    Went::Refused(refusal, limiter) => (State::Refused { refusal, limiter }, None),
                    Went::Broken(error) => return Poll::Ready(Err(P::error(error))),
                },
            };
            *this.then = then;
            this.state.set(next);
        }
    }
}

/// Does what is due once the answer is there: charges what the call has cost after all, and tells of the quota.
#[cfg_attr(not(feature = "http"), allow(unused_variables, unused_mut, reason = "only heads are judged and told"))]
#[inline(never)]
fn tell<P, Req, Res, Err, St>(
    mut answer: P::Response<Unwatched>,
    (limiter, after): &mut Then<St>,
) -> P::Response<Unwatched>
where
    P: Protocol<Req, Res, Err>,
    St: Engine,
{
    #[cfg(feature = "http")]
    {
        if let Some((bucket, units)) = after.charged.take()
            && let Some(charge_fn) = &limiter.rules.http.charge_fn
            && let Some(cost) = P::with_answer_parts(&mut answer, charge_fn)
        {
            let left = limiter.charge(&bucket, units, cost);
            after.shown = after.shown.map(|shown| shown.anew(&left));
        }
        write::<P, Req, Res, Err>(&mut answer, after.shown, limiter.rules.http.headers);
    }
    answer
}

/// Tells of the quota in a refusal.
#[cfg_attr(not(feature = "http"), allow(unused_variables, unused_mut, reason = "only heads are told"))]
#[cold]
fn tell_of<P, Req, Res, Err, St>(
    mut answer: P::Response<Unwatched>,
    refusal: &Refusal,
    limiter: &Limiter<St>,
) -> P::Response<Unwatched>
where
    P: Protocol<Req, Res, Err>,
    St: Engine,
{
    #[cfg(feature = "http")]
    write::<P, Req, Res, Err>(&mut answer, refusal.shown, limiter.rules.http.headers);
    answer
}

#[cfg(feature = "http")]
fn write<P, Req, Res, Err>(
    answer: &mut P::Response<Unwatched>,
    shown: Option<crate::rate_limit::headers::Shown>,
    which: crate::rate_limit::LimitHeaders,
) where
    P: Protocol<Req, Res, Err>,
{
    if let Some(shown) = shown
        && let Some(headers) = P::answer_headers(answer)
    {
        shown.write(headers, which);
    }
}

pub(crate) fn take<T>(slot: &mut Option<T>) -> T {
    slot.take().expect("a future is not polled after it was ready")
}

impl<F, S, P, C, Req, St: Engine> fmt::Debug for ResponseFuture<F, S, P, C, Req, St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Running { .. } => "running",
            State::Refused { .. } => "refused",
            State::Waiting { .. } => "waiting",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}
