//! The future of a call that may have several attempts at once.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    budget::{Budget, Reservation},
    deadline::Deadline,
    hedge::hedger::Hedger,
    on_panic::on_panic,
    polled::POLLED,
    protocol::{Hold, Judged, Protocol},
    retry::Retryable,
    stripe::Shared,
    time::Sleep,
};

mod attempts;
mod steps;
mod turns;
mod waited;

use self::{attempts::Others, waited::Waited};

pin_project! {
    /// The response of a call that may have several attempts at once.
    ///
    /// Dropping it drops the attempts that run, gives back what was taken from the budget for one that does not, and
    /// nothing more is sent.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, P, Req>
    where
        S: Service<Req>,
        P: Retryable<Req, S::Response, S::Error>,
    {
        #[pin]
        first: Attempt<S::Future>,
        // Nearly all calls end without it, so it costs them one word.
        #[pin]
        rest: Option<Rest<S::Future>>,
        spare: Option<Spare<S, P::Original>>,
        kept: Kept<P, P::Context>,
    }
}

pin_project! {
    /// What there is of a call that was not answered well at once.
    #[project = RestProj]
    struct Rest<F> {
        #[pin]
        others: Others<F>,
        // For the turn of the next attempt.
        #[pin]
        timer: Option<Sleep>,
        stage: Stage,
        // Attempts so far.
        made: u32,
        // For the first one, which runs.
        waited: Waited,
    }

    // A call without it has one question to ask when it is dropped; all that follows is out of line.
    impl<F> PinnedDrop for Rest<F> {
        fn drop(this: Pin<&mut Self>) {
            stop(this.project().timer);
        }
    }
}

#[cold]
#[inline(never)]
fn stop(mut timer: Pin<&mut Option<Sleep>>) {
    timer.set(None);
}

impl<F> Rest<F> {
    fn new() -> Self {
        Rest { others: Others::new(), timer: None, stage: Stage::New, made: 1, waited: Waited::NONE }
    }
}

fn open<F>(rest: Pin<&mut Option<Rest<F>>>) -> RestProj<'_, F> {
    rest.as_pin_mut().expect(POLLED).project()
}

pin_project! {
    /// The future of an attempt, until it is ready or given up.
    #[project = AttemptProj]
    pub(crate) enum Attempt<F> {
        Running { #[pin] inner: F },
        Gone,
    }
}

/// What there is of a call whatever becomes of it.
pub(crate) struct Kept<P, C> {
    pub(crate) protocol: P,
    pub(crate) context: C,
    pub(crate) shared: Shared<Hedger>,
    pub(crate) deadline: Option<Deadline>,
    /// Into the budget: else a retry around it does.
    pub(crate) pays: bool,
}

/// What further attempts are made of.
pub(crate) struct Spare<S, O> {
    /// There is none once the last attempt was sent.
    pub(crate) service: Option<S>,
    pub(crate) original: Option<O>,
}

/// What a call waits for beside its attempts.
#[derive(Debug)]
enum Stage {
    /// Nobody had to wait yet.
    New,
    /// The turn of the next attempt, by the timer.
    Waiting,
    /// The next attempt can only come by a failure.
    Idle,
    /// The next attempt was taken from the budget and waits for readiness.
    Starting(Reservation),
    /// There will be no further one.
    Last,
}

impl<S, P, Req> ResponseFuture<S, P, Req>
where
    S: Service<Req>,
    P: Retryable<Req, S::Response, S::Error>,
{
    #[inline(always)]
    pub(crate) fn running(inner: S::Future, kept: Kept<P, P::Context>, spare: Option<Spare<S, P::Original>>) -> Self {
        ResponseFuture { first: Attempt::Running { inner }, rest: None, spare, kept }
    }

    // Inlined, because a future that has to be written through a pointer here is moved whole on every other path too.
    #[inline(always)]
    pub(crate) fn refused(protocol: P, context: P::Context, shared: Shared<Hedger>) -> Self {
        let kept = Kept { protocol, context, shared, deadline: None, pays: false };
        ResponseFuture { first: Attempt::Gone, rest: None, spare: None, kept }
    }
}

type Output<S, P, Req> = Result<
    <P as Protocol<Req, <S as Service<Req>>::Response, <S as Service<Req>>::Error>>::Response<()>,
    <P as Protocol<Req, <S as Service<Req>>::Response, <S as Service<Req>>::Error>>::Error,
>;

/// An attempt as its form judges it.
type Ended<S, P, Req> = Judged<Held<S, P, Req>, Failure<S, P, Req>>;
type Held<S, P, Req> = <P as Hold<Req, <S as Service<Req>>::Response, <S as Service<Req>>::Error>>::Held;
type Failure<S, P, Req> = <P as Protocol<Req, <S as Service<Req>>::Response, <S as Service<Req>>::Error>>::Error;

/// What is known of the first attempt when the rest of the work begins.
enum First<S: Service<Req>, P: Retryable<Req, S::Response, S::Error>, Req> {
    /// It was not polled just now.
    Unknown,
    Pending,
    Ended(Ended<S, P, Req>),
}

impl<S, P, Req> Future for ResponseFuture<S, P, Req>
where
    S: Service<Req> + Clone,
    P: Retryable<Req, S::Response, S::Error>,
{
    type Output = Output<S, P, Req>;

    // Only what every call needs is here; all else is a loop of its own, out of line.
    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.as_mut().project();
        let kept = this.kept;
        let first = match this.first.project() {
            AttemptProj::Running { inner } if this.rest.is_none() => {
                match on_panic(|| kept.shared.reporter().panicked(1), || inner.poll(cx)) {
                    Poll::Pending => First::Pending,
                    Poll::Ready(result) => match kept.protocol.hold(&kept.context, result) {
                        // Nobody had to wait, so there is nothing to be given up.
                        Judged::Good(held) => {
                            kept.shared.succeeded(1, kept.pays);
                            return kept.protocol.pass_at_once(&kept.context, held, None);
                        }
                        // Arms of their own, for a whole attempt that might be moved on would be asked about again.
                        Judged::Bad(end, held) => First::Ended(Judged::Bad(end, held)),
                        Judged::Unclear(held) => First::Ended(Judged::Unclear(held)),
                    },
                }
            }
            _ => First::Unknown,
        };
        self.go_on(first, cx)
    }
}

impl<P, C> Kept<P, C> {
    /// The budget of a call, where each key has one.
    #[inline(always)]
    fn own_budget<S, Req, Res, Err>(&self, spare: &Option<Spare<S, P::Original>>) -> Option<Budget>
    where
        P: Retryable<Req, Res, Err>,
    {
        let original = spare.as_ref().and_then(|spare| spare.original.as_ref());
        let head = || original.and_then(|original| self.protocol.head_of(original));
        self.shared.budget.own::<P, Req, Res, Err>(head)
    }
}

impl<S, P, Req> fmt::Debug for ResponseFuture<S, P, Req>
where
    S: Service<Req>,
    P: Retryable<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempts = self.rest.as_ref().map_or(1, |rest| rest.made);
        f.debug_struct("ResponseFuture").field("attempts", &attempts).finish_non_exhaustive()
    }
}
