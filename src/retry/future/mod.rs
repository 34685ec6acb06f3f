//! The future of a call that may be made again.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    budget::{Payment, Reservation},
    deadline::Deadline,
    on_panic::on_panic,
    protocol::{Hold, Judged, Protocol},
    retry::{retrier::Retrier, verdict::Retryable},
    stripe::Shared,
    time::{self, Instant, Sleep, Span},
};

mod steps;
mod wait;

use self::wait::Wait;

pin_project! {
    /// The response of a call that may be made again.
    ///
    /// Dropping it drops the attempt that runs, gives back what was taken from the budget for one that does not, and
    /// nothing more is sent. While it waits it holds nothing of the inner service: of the last answer at most an error,
    /// or a head after which nothing was to come.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, P, Req>
    where
        S: Service<Req>,
        P: Retryable<Req, S::Response, S::Error>,
    {
        #[pin]
        attempt: Attempt<S::Future>,
        // If none does: what comes instead.
        #[pin]
        step: Option<StepOf<S, P, Req>>,
        protocol: P,
        context: P::Context,
        shared: Shared<Retrier>,
        spare: Option<Spare<S, P::Original>>,
        safe: bool,
        // Attempts so far.
        number: u32,
        last_delay: Span,
        // When somebody first had to wait for the attempt that runs.
        waited_since: Option<Instant>,
        deadline: Option<Deadline>,
    }
}

type StepOf<S, P, Req> = Step<Held<S, P, Req>, Failure<S, P, Req>, Rest<S, P, Req>>;
type Rest<S, P, Req> = <P as Retryable<Req, <S as Service<Req>>::Response, <S as Service<Req>>::Error>>::Rest;

/// What a further attempt is made of.
pub(crate) struct Spare<S, O> {
    pub(crate) service: S,
    pub(crate) original: O,
}

pin_project! {
    /// The attempt that runs.
    #[project = AttemptProj]
    pub(crate) enum Attempt<F> {
        Running { #[pin] inner: F },
        // One that may have a hedge in it, which asks what was paid. It is polled in another way.
        Paid { #[pin] inner: F, payment: Payment },
        Gone,
    }
}

pin_project! {
    #[project = StepProj]
    enum Step<H, E, R> {
        // The head has come and does not say how it went.
        Peeking { held: Option<H>, #[pin] patience: Option<Sleep> },
        Waiting {
            #[pin] timer: Option<Sleep>,
            wait: Wait,
            #[pin] rest: Option<R>,
            reservation: Option<Reservation>,
            last: Option<Result<H, E>>,
        },
        // For readiness. The timer is that of the deadline; what there was to be kept of the last answer is in its
        // place then.
        Readying { #[pin] timer: Option<Sleep>, reservation: Option<Reservation>, last: Option<Result<H, E>> },
        // With so many attempts made.
        Refused { made: u32 },
    }
}

impl<S, P, Req> ResponseFuture<S, P, Req>
where
    S: Service<Req>,
    P: Retryable<Req, S::Response, S::Error>,
{
    #[inline(always)]
    pub(crate) fn running(
        attempt: Attempt<S::Future>,
        protocol: P,
        context: P::Context,
        shared: Shared<Retrier>,
        spare: Option<Spare<S, P::Original>>,
        safe: bool,
        deadline: Option<Deadline>,
    ) -> Self {
        ResponseFuture {
            attempt,
            step: None,
            protocol,
            context,
            shared,
            spare,
            safe,
            number: 1,
            last_delay: Span::ZERO,
            waited_since: None,
            deadline,
        }
    }

    // Inlined, because a future that has to be written through a pointer here is moved whole on every other path too.
    #[inline(always)]
    pub(crate) fn refused(protocol: P, context: P::Context, shared: Shared<Retrier>) -> Self {
        ResponseFuture {
            attempt: Attempt::Gone,
            step: Some(Step::Refused { made: 0 }),
            protocol,
            context,
            shared,
            spare: None,
            // As in every other call, so that there is nothing to be told apart.
            safe: true,
            number: 1,
            last_delay: Span::ZERO,
            waited_since: None,
            deadline: None,
        }
    }
}

type Output<S, P, Req> = Result<
    <P as Protocol<Req, <S as Service<Req>>::Response, <S as Service<Req>>::Error>>::Response<()>,
    <P as Protocol<Req, <S as Service<Req>>::Response, <S as Service<Req>>::Error>>::Error,
>;

/// What comes back of an attempt.
type Answer<S, P, Req> = Result<Held<S, P, Req>, Failure<S, P, Req>>;
type Held<S, P, Req> = <P as Hold<Req, <S as Service<Req>>::Response, <S as Service<Req>>::Error>>::Held;
type Failure<S, P, Req> = <P as Protocol<Req, <S as Service<Req>>::Response, <S as Service<Req>>::Error>>::Error;

impl<S, P, Req> Future for ResponseFuture<S, P, Req>
where
    S: Service<Req>,
    P: Retryable<Req, S::Response, S::Error>,
{
    type Output = Output<S, P, Req>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = self.as_mut().project();
            let AttemptProj::Running { inner } = this.attempt.project() else {
                match ready!(self.as_mut().between(cx)) {
                    Some(output) => return Poll::Ready(output),
                    None => continue,
                }
            };
            let polled = on_panic(|| this.shared.reporter().panicked(*this.number), || inner.poll(cx));
            let Poll::Ready(result) = polled else {
                note_wait(this.waited_since);
                return Poll::Pending;
            };
            match this.protocol.hold(this.context, result) {
                Judged::Good(held) => return self.succeeded(held),
                Judged::Bad(end, held) => {
                    if let Some(output) = self.as_mut().ended(end, held, Some(cx)) {
                        return Poll::Ready(output);
                    }
                }
                Judged::Unclear(held) => self.as_mut().stop(Step::Peeking { held: Some(held), patience: None }),
            }
        }
    }
}

#[cold]
fn note_wait(since: &mut Option<Instant>) {
    since.get_or_insert_with(time::now);
}

impl<S, P, Req> fmt::Debug for ResponseFuture<S, P, Req>
where
    S: Service<Req>,
    P: Retryable<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("attempts", &self.number).finish_non_exhaustive()
    }
}
