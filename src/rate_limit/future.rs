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
    permit::UntilReady,
    polled::POLLED,
    protocol::{Protocol, Unwatched},
    rate_limit::{
        Engine,
        decision::{After, Refusal},
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
        // `None` if it does not run, or not yet.
        #[pin]
        inner: Option<F>,
        // All that a call which just goes does not have. In one piece and dropped out of line, so that such a call has
        // one question to ask.
        more: UntilReady<More<F, S, Req, St>>,
        protocol: P,
        context: C,
    }
}

enum More<F, S, Req, St: Engine> {
    /// The call runs.
    Then(Then<St>),
    Refused(Refused<St>),
    /// In a box of its own: with a request and a timer in it, every call that does not wait would be moved about with
    /// room for both.
    Waiting(Pin<Box<Waiting<F, S, Req, St>>>),
}

/// What is to be done once the answer is there, and by whom.
pub(crate) type Then<St> = (Shared<Limiter<St>>, After);

/// What it comes to, and who makes a rejection of it when it is asked for.
pub(crate) type Refused<St> = (Refusal, Shared<Limiter<St>>);

impl<F, S, P, C, Req, St: Engine> ResponseFuture<F, S, P, C, Req, St> {
    #[inline(always)]
    pub(crate) fn running(inner: F, protocol: P, context: C, then: Option<Then<St>>) -> Self {
        ResponseFuture { inner: Some(inner), more: UntilReady(then.map(More::Then)), protocol, context }
    }

    #[inline(always)]
    pub(crate) fn refused(refusal: Refusal, protocol: P, context: C, limiter: Shared<Limiter<St>>) -> Self {
        let more = UntilReady::new(More::Refused((refusal, limiter)));
        ResponseFuture { inner: None, more, protocol, context }
    }

    #[inline(always)]
    pub(crate) fn waiting(wait: Pin<Box<Waiting<F, S, Req, St>>>, protocol: P, context: C) -> Self {
        ResponseFuture { inner: None, more: UntilReady::new(More::Waiting(wait)), protocol, context }
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
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (protocol, context) = (&*this.protocol, &*this.context);
        if let Some(inner) = this.inner.as_pin_mut() {
            let result = ready!(inner.poll(cx));
            // By itself, for an answer with a body is large, and where it met another it would be moved.
            if P::IS_HTTP && this.more.0.is_none() {
                return protocol.finish(context, result, &mut None);
            }
            let answer = ready!(protocol.finish(context, result, &mut None));
            // Asked before it is taken: a whole one might be moved.
            return Poll::Ready(match &this.more.0 {
                None => answer,
                Some(_) => match this.more.0.take() {
                    Some(More::Then(then)) => {
                        answer.map(|answer| tell::<P, Req, S::Response, S::Error, St>(answer, then))
                    }
                    _ => answer,
                },
            });
        }
        if let Some(More::Waiting(call)) = &mut this.more.0 {
            let went = ready!(call.as_mut().poll(protocol, cx));
            this.more.0 = None;
            return went_on::<P, Req, S::Response, S::Error, St>(protocol, context, went);
        }
        let Some(More::Refused(refused)) = this.more.0.take() else { panic!("{POLLED}") };
        Poll::Ready(refuse::<P, Req, S::Response, S::Error, St>(protocol, context, refused))
    }
}

#[cold]
fn went_on<P, Req, Res, Err, St>(
    protocol: &P,
    context: &P::Context,
    went: Went<Res, Err, St>,
) -> Poll<Result<P::Response<Unwatched>, P::Error>>
where
    P: Protocol<Req, Res, Err>,
    St: Engine,
{
    match went {
        Went::Answered(result, then) => {
            let answer = protocol.finish(context, result, &mut None);
            match then {
                Some(then) => answer.map_ok(|answer| tell::<P, Req, Res, Err, St>(answer, then)),
                None => answer,
            }
        }
        Went::Refused(refused) => Poll::Ready(refuse::<P, Req, Res, Err, St>(protocol, context, refused)),
        Went::Broken(error) => Poll::Ready(Err(P::error(error))),
    }
}

#[cold]
fn refuse<P, Req, Res, Err, St>(
    protocol: &P,
    context: &P::Context,
    (refusal, limiter): Refused<St>,
) -> Result<P::Response<Unwatched>, P::Error>
where
    P: Protocol<Req, Res, Err>,
    St: Engine,
{
    let answer = protocol.reject(context, limiter.rejection(&refusal));
    answer.map(|answer| tell_of::<P, Req, Res, Err, St>(answer, &refusal, &limiter))
}

/// Does what is due once the answer is there: charges what the call has cost after all, and tells of the quota.
#[cfg_attr(not(feature = "http"), allow(unused_variables, unused_mut, reason = "only heads are judged and told"))]
#[inline(never)]
fn tell<P, Req, Res, Err, St>(
    mut answer: P::Response<Unwatched>,
    (limiter, mut after): Then<St>,
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

impl<F, S, P, C, Req, St: Engine> fmt::Debug for ResponseFuture<F, S, P, C, Req, St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.more.0 {
            Some(More::Refused(_)) => "refused",
            Some(More::Waiting(_)) => "waiting",
            None | Some(More::Then(_)) => "running",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}
