//! The future of a call that may be answered by somebody else.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    fallback::{
        layer::State,
        substitute::{Bad, Given, GivenBy, Substitute},
    },
    outcome::End,
    protocol::{Hold, Judged},
    stripe::Shared,
};

pin_project! {
    /// The response of a call with a fallback.
    ///
    /// Dropping it drops the backend's call, or the backup's; nothing else is held.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, F, P, Req>
    where
        S: Service<Req>,
        P: Hold<Req, S::Response, S::Error>,
        F: Substitute<Req, S::Response, S::Error, P>,
    {
        #[pin]
        stage: Stage<S::Future, F::Later>,
        substitute: F,
        protocol: P,
        context: P::Context,
        kept: F::Kept,
        shared: Shared<State>,
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<C, L> {
        Calling { #[pin] call: C },
        Answering { #[pin] later: L },
    }
}

impl<S, F, P, Req> ResponseFuture<S, F, P, Req>
where
    S: Service<Req>,
    P: Hold<Req, S::Response, S::Error>,
    F: Substitute<Req, S::Response, S::Error, P>,
{
    #[inline(always)]
    pub(crate) fn new(
        call: S::Future,
        substitute: F,
        protocol: P,
        context: P::Context,
        kept: F::Kept,
        shared: Shared<State>,
    ) -> Self {
        let stage = Stage::Calling { call };
        ResponseFuture { stage, substitute, protocol, context, kept, shared }
    }
}

impl<S, F, P, Req> Future for ResponseFuture<S, F, P, Req>
where
    S: Service<Req>,
    P: Hold<Req, S::Response, S::Error>,
    F: Substitute<Req, S::Response, S::Error, P>,
{
    type Output = Result<P::Response<F::Watch>, P::Error>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        let StageProj::Calling { call } = this.stage.project() else { return self.poll_later(cx) };
        let result = ready!(call.poll(cx));
        let answer = match this.protocol.hold(this.context, result) {
            Judged::Good(held) => {
                let watch = this.substitute.good(this.kept, &held);
                return this.protocol.pass_at_once(this.context, held, watch);
            }
            Judged::Bad(end, result) => self.as_mut().not_good(end, result),
            Judged::Unclear(held) => self.as_mut().unclear(held, cx),
        };
        match answer {
            Ok(answer) => Poll::Ready(answer),
            Err(later) => {
                self.as_mut().project().stage.set(Stage::Answering { later });
                self.poll_later(cx)
            }
        }
    }
}

/// What the caller gets.
type Answer<S, F, P, Req> = <ResponseFuture<S, F, P, Req> as Future>::Output;

impl<S, F, P, Req> ResponseFuture<S, F, P, Req>
where
    S: Service<Req>,
    P: Hold<Req, S::Response, S::Error>,
    F: Substitute<Req, S::Response, S::Error, P>,
{
    /// Passes on what the backend gave, whatever it is.
    fn pass_on(self: Pin<&mut Self>, result: Result<P::Held, P::Error>) -> Answer<S, F, P, Req> {
        let this = self.project();
        result.map(|held| this.protocol.pass(this.context, held, None))
    }

    /// The head looks well, and that is not all. `Err`: as [`not_good`](Self::not_good).
    fn unclear(
        mut self: Pin<&mut Self>,
        mut held: P::Held,
        cx: &mut Context<'_>,
    ) -> Result<Answer<S, F, P, Req>, F::Later> {
        let this = self.as_mut().project();
        match this.protocol.poll_peek(this.context, &mut held, cx) {
            Poll::Ready(Some(end)) => self.not_good(end, Ok(held)),
            // What is not there yet is not waited for.
            Poll::Ready(None) | Poll::Pending => Ok(self.pass_on(Ok(held))),
        }
    }

    /// Asks for an answer. `Err`: it takes time. (Not as a poll: where none takes time the caller knows that by the
    /// type, and is spared a state and a loop.)
    #[cold]
    #[inline(never)]
    fn not_good(
        mut self: Pin<&mut Self>,
        end: End,
        result: Result<P::Held, P::Error>,
    ) -> Result<Answer<S, F, P, Req>, F::Later> {
        let this = self.as_mut().project();
        let answered_already = result.as_ref().is_ok_and(P::is_degraded);
        if !this.shared.when.has(end) || answered_already || !this.shared.ledger.may_answer(end.outcome()) {
            return Ok(self.pass_on(result));
        }
        let bad = Bad { end, result, header: this.shared.when.header() };
        let given = this.substitute.answer(this.protocol, this.kept, this.context, bad);
        self.given(given)
    }

    #[cold]
    #[inline(never)]
    fn poll_later(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<S, F, P, Req>> {
        let given = match self.as_mut().project().stage.project() {
            StageProj::Answering { later } => ready!(F::poll_later(later, cx)),
            StageProj::Calling { .. } => return Poll::Pending,
        };
        // What took time once does not do so again.
        self.given(given).map_or(Poll::Pending, Poll::Ready)
    }

    fn given(
        self: Pin<&mut Self>,
        given: GivenBy<F, Req, S::Response, S::Error, P>,
    ) -> Result<Answer<S, F, P, Req>, F::Later> {
        match given {
            Given::Now(answer, outcome) => {
                self.shared.ledger.answered(outcome);
                Ok(Ok(answer))
            }
            Given::Later(later) => Err(later),
            Given::Nothing(result) => {
                self.shared.ledger.passed_on();
                Ok(self.pass_on(result))
            }
        }
    }
}

impl<S, F, P, Req> fmt::Debug for ResponseFuture<S, F, P, Req>
where
    S: Service<Req>,
    P: Hold<Req, S::Response, S::Error>,
    F: Substitute<Req, S::Response, S::Error, P>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
