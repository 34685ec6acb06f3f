//! What answers in the place of the backend.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use crate::{
    outcome::{End, Outcome},
    protocol::{Hold, Protocol, Watch},
};
#[cfg(feature = "http")]
use crate::{protocol::Degraded, rejection::Rejection};

/// What stands behind a [`FallbackLayer`](crate::FallbackLayer): a function, a [`Backup`](crate::Backup), or
/// [`LastGood`](crate::LastGood). `Req`, `Res` and `Err` are those of the service that is wrapped.
#[diagnostic::on_unimplemented(
    message = "this fallback does not fit a service from `{Req}` to `Result<{Res}, {Err}>`",
    label = "the function, backup or cache of this fallback does not fit this service",
    note = "`FallbackLayer::from_fn` wants `Fn(&FallbackContext<'_>) -> Answer + Clone` and an HTTP or gRPC service",
    note = "`FallbackLayer::to_service` wants a backup with the same request and response types, and a request body that is `Replay`",
    note = "`FallbackLayer::plain_from_fn` wants `Fn(&buttress::Error<E>) -> Option<Response> + Clone`"
)]
pub trait Substitute<Req, Res, Err, P: Hold<Req, Res, Err>>: Clone {
    /// What is kept of a request while the backend has it.
    type Kept;
    /// What is left in a good response.
    type Watch: Watch;
    /// An answer that takes time; `Infallible` where none does, and then the future has no room for one.
    type Later;

    /// Keeps what an answer will need, and makes the call. In one, because a request is large, and one that came back
    /// would be moved twice.
    #[doc(hidden)]
    fn keep<T>(&self, context: &P::Context, request: Req, call: impl FnOnce(Req) -> T) -> (Self::Kept, T);

    /// The backend has answered well.
    #[doc(hidden)]
    fn good(&self, _kept: &mut Self::Kept, _held: &P::Held) -> Option<Self::Watch> {
        None
    }

    /// It has not, and this is to be answered.
    #[doc(hidden)]
    fn answer(
        &self,
        protocol: &P,
        kept: &mut Self::Kept,
        context: &P::Context,
        bad: Bad<P::Held, P::Error>,
    ) -> GivenBy<Self, Req, Res, Err, P>;

    /// Polls an answer that takes time. It is not `Later` again.
    #[doc(hidden)]
    fn poll_later(later: Pin<&mut Self::Later>, cx: &mut Context<'_>) -> Poll<GivenBy<Self, Req, Res, Err, P>>;
}

/// What a substitute gives.
pub(crate) type GivenBy<F, Req, Res, Err, P> = Given<
    <P as Protocol<Req, Res, Err>>::Response<<F as Substitute<Req, Res, Err, P>>::Watch>,
    <F as Substitute<Req, Res, Err, P>>::Later,
    <P as Hold<Req, Res, Err>>::Held,
    <P as Protocol<Req, Res, Err>>::Error,
>;

/// What the backend gave, and why an answer in its place is wanted.
#[derive(Debug)]
pub struct Bad<H, E> {
    pub(crate) end: End,
    pub(crate) result: Result<H, E>,
    /// Mark the answer with a header too.
    #[cfg_attr(not(feature = "http"), allow(dead_code, reason = "errors have no headers"))]
    pub(crate) header: bool,
}

/// What came of the request for an answer.
#[derive(Debug)]
pub enum Given<R, L, H, E> {
    /// An answer, in the place of what meant this.
    Now(R, Outcome),
    /// It takes time. What the backend gave is kept in there, for the other may fail as well.
    Later(L),
    /// None: what the backend gave is passed on.
    Nothing(Result<H, E>),
}

#[cfg(feature = "http")]
impl<H, E> Bad<H, E> {
    pub(crate) fn outcome(&self) -> Outcome {
        self.end.outcome()
    }

    /// What marks the answer. The rejection is the one that is in the result.
    pub(crate) fn mark(&self, rejection: Option<&Rejection>) -> Mark {
        let policy = rejection.map_or("fallback", Rejection::policy);
        let degraded = Degraded { policy, outcome: self.outcome(), rejection: rejection.cloned() };
        Mark { degraded, header: self.header }
    }
}

/// Says so to other processes.
#[cfg(feature = "http")]
pub(crate) const DEGRADED: http::HeaderName = http::HeaderName::from_static("x-degraded");

/// The mark of an answer.
#[cfg(feature = "http")]
#[derive(Debug)]
pub(crate) struct Mark {
    degraded: Degraded,
    header: bool,
}

#[cfg(feature = "http")]
impl Mark {
    /// The marked answer, and the outcome that it covers up.
    pub(crate) fn put<B>(self, mut response: http::Response<B>) -> (http::Response<B>, Outcome) {
        let outcome = self.degraded.outcome;
        if self.header {
            response.headers_mut().insert(DEGRADED, http::HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(self.degraded);
        (response, outcome)
    }
}
