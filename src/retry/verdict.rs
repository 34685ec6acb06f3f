//! What is worth another attempt.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    outcome::{Classify, End, Outcome},
    protocol::{Again, BoxError, Boxed, CloneWith, Flat, Hold, Plain},
    rejection::Rejection,
    retry::Attempts,
};

/// What a retry makes of the end of an attempt.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It needs no other one.
    Done,
    /// It failed, and another one would not help, or could do harm.
    Never,
    /// The caller's deadline passed.
    Late,
    /// The server said so.
    Stop,
    /// Another one may help. When, if the server said so?
    Again(Option<Duration>),
    /// As well, by another instance than this one, which drains and will be back then.
    Elsewhere(Duration),
    /// As well, and it never reached the backend.
    Unsent,
}

/// A form whose failures can be told apart. Sealed.
#[diagnostic::on_unimplemented(
    message = "a `{Self}` retry or hedge cannot send a `{Req}` more than once to a service that gives `Result<{Res}, {Err}>`",
    label = "this request can't be sent again in this form",
    note = "`Http`, the default, wants `http::Request<B>` with a body `B: buttress::Replay`: those of axum (feature `axum`) and tonic (feature `tonic`), `Full`, `Empty`, `BoxBody` and `UnsyncBoxBody`",
    note = "`.plain()`, `.flat()` and `.boxed()` want a request that is `Clone`; for others say how with `.clone_with(|request| ..)`"
)]
pub trait Retryable<Req, Res, Err>: Again<Req, Res, Err> {
    /// What is left of a response that is given up, where reading it to its end is of use.
    type Rest;

    /// `safe`: may this request be sent twice?
    #[doc(hidden)]
    fn verdict(
        &self,
        _context: &Self::Context,
        _safe: bool,
        end: End,
        _result: Result<&Self::Held, &Self::Error>,
    ) -> Verdict {
        by_end(end)
    }

    /// Leaves in a response how many attempts there were.
    #[doc(hidden)]
    fn note(_held: &mut Self::Held, _attempts: Attempts) {}

    /// The same in a response that was made here.
    #[doc(hidden)]
    fn note_rejection(_response: &mut Self::Response<()>, _attempts: Attempts) {}

    /// Is it all there, so that keeping it keeps nothing of the inner service?
    #[doc(hidden)]
    fn is_whole(_held: &Self::Held) -> bool {
        false
    }

    /// What of it may be kept then: an extension may be a connection, or a permit.
    #[doc(hidden)]
    fn bare(held: Self::Held) -> Self::Held {
        held
    }

    #[doc(hidden)]
    fn rest(_held: Self::Held) -> Option<Self::Rest> {
        None
    }

    #[doc(hidden)]
    fn poll_rest(_rest: Pin<&mut Self::Rest>, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// Every failure, and nothing else. A refusal made here is none.
#[inline]
fn by_end(end: End) -> Verdict {
    match end {
        End::Outcome(Outcome::Failure) | End::TimedOut => Verdict::Again(None),
        End::DeadlinePassed { .. } => Verdict::Late,
        End::Outcome(Outcome::Success | Outcome::Ignored) => Verdict::Done,
        End::Outcome(_) | End::Refused | End::Left => Verdict::Never,
    }
}

macro_rules! retryable {
    ($form:ident, [$($bound:tt)*]) => {
        #[diagnostic::do_not_recommend]
        impl<C, Req, Res, E> Retryable<Req, Res, E> for $form<C>
        where
            Req: Clone,
            C: Classify<Res, E>,
            E: $($bound)*,
        {
            type Rest = ();
        }
    };
}

retryable!(Plain, [std::error::Error + 'static]);
retryable!(Flat, [From<Rejection> + std::error::Error + 'static]);
retryable!(Boxed, [Into<BoxError>]);

#[diagnostic::do_not_recommend]
impl<P, F, Req, Res, Err> Retryable<Req, Res, Err> for CloneWith<P, F>
where
    P: Hold<Req, Res, Err>,
    F: Fn(&Req) -> Option<Req> + Clone,
{
    type Rest = ();
}

#[cfg(feature = "http")]
mod http_form {
    use bytes::Bytes;
    use http::{HeaderMap, Request, Response, StatusCode, Version};
    use http_body::Body;
    use pin_project_lite::pin_project;

    use super::*;
    use crate::protocol::{
        Degraded, HeldResponse, Http, HttpContext, Replay, ResponseBody, classify,
        hint::{self, Hint},
        peer, transport,
    };
    use crate::rejection::Reason;

    /// So much of a failed response is read, for the sake of its connection.
    const MOST_REST: u64 = 16 * 1024;

    #[diagnostic::do_not_recommend]
    impl<B, RB, E> Retryable<Request<B>, Response<RB>, E> for Http
    where
        B: Replay,
        RB: Body<Data = Bytes>,
        RB::Error: Into<BoxError>,
        E: 'static,
    {
        type Rest = Rest<RB>;

        fn verdict(
            &self,
            context: &HttpContext,
            safe: bool,
            end: End,
            result: Result<&HeldResponse<RB>, &E>,
        ) -> Verdict {
            let held = match result {
                Ok(held) => held,
                Err(error) => return of_error(context.is_grpc(), safe, end, error),
            };
            let verdict = by_end(end);
            if held.parts.extensions.get::<Degraded>().is_some() && verdict != Verdict::Done {
                // There is an answer already.
                return Verdict::Never;
            }
            let outcome = match end {
                End::TimedOut if safe => return Verdict::Again(None),
                End::TimedOut => return Verdict::Never,
                End::Outcome(outcome @ (Outcome::Failure | Outcome::Throttled)) => outcome,
                _ => return verdict,
            };
            let headers = held.trailers().unwrap_or(&held.parts.headers);
            let hint = hint::for_retry(context.is_grpc(), headers);
            let may_help = if self.has_own_classification() && outcome == Outcome::Failure {
                true
            } else if context.is_grpc() {
                held.error().map_or_else(|| of_grpc(held, hint), |error| transport::is_unavailable(&**error))
            } else {
                of_http(held.parts.status, hint)
            };
            match hint {
                _ if !may_help || !safe => Verdict::Never,
                Hint::Stop => Verdict::Stop,
                Hint::After(after) if drains(context.is_grpc(), held.parts.status, headers) => {
                    Verdict::Elsewhere(after)
                }
                Hint::After(after) => Verdict::Again(Some(after)),
                Hint::None => Verdict::Again(None),
            }
        }

        fn note(held: &mut HeldResponse<RB>, attempts: Attempts) {
            held.parts.extensions.insert(attempts);
        }

        fn note_rejection(response: &mut Response<ResponseBody<RB, ()>>, attempts: Attempts) {
            response.extensions_mut().insert(attempts);
        }

        fn is_whole(held: &HeldResponse<RB>) -> bool {
            held.is_whole()
        }

        fn bare(mut held: HeldResponse<RB>) -> HeldResponse<RB> {
            let rejection = held.rejection().cloned();
            held.parts.extensions.clear();
            rejection.into_iter().for_each(|ours| drop(held.parts.extensions.insert(ours)));
            held
        }

        fn rest(held: HeldResponse<RB>) -> Option<Rest<RB>> {
            // HTTP/2 gives up a stream and keeps its connection.
            let is_old = held.parts.version <= Version::HTTP_11;
            let body = held.into_whole_body().filter(|_| is_old)?;
            let small = !body.is_end_stream() && body.size_hint().upper().is_none_or(|n| n <= MOST_REST);
            small.then_some(Rest { body, left: MOST_REST })
        }

        fn poll_rest(rest: Pin<&mut Rest<RB>>, cx: &mut Context<'_>) -> Poll<()> {
            let mut rest = rest.project();
            loop {
                match rest.body.as_mut().poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        let came = frame.data_ref().map_or(0, |data| data.len() as u64);
                        *rest.left = rest.left.saturating_sub(came);
                        if *rest.left == 0 {
                            return Poll::Ready(());
                        }
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
    }

    /// A call that a transport could not make. What never reached the backend may be sent again whatever it is, and on
    /// gRPC what is UNAVAILABLE there.
    fn of_error<E: 'static>(is_grpc: bool, safe: bool, end: End, error: &E) -> Verdict {
        let known = transport::as_error(error);
        // It may be a timeout of ours that comes as an error: that is no proof that nothing was done.
        match by_end(end) {
            Verdict::Again(_) if known.is_some_and(transport::never_arrived) => Verdict::Unsent,
            Verdict::Again(_) if !safe => Verdict::Never,
            Verdict::Again(_) if is_grpc && !known.is_none_or(transport::is_unavailable) => Verdict::Never,
            verdict => verdict,
        }
    }

    fn drains(is_grpc: bool, status: StatusCode, headers: &HeaderMap) -> bool {
        peer::refused_for(is_grpc, status, headers) == Some(Reason::Draining)
    }

    fn of_http(status: StatusCode, hint: Hint) -> bool {
        match status {
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => true,
            StatusCode::TOO_MANY_REQUESTS => hint != Hint::None,
            _ => false,
        }
    }

    fn of_grpc<RB>(held: &HeldResponse<RB>, hint: Hint) -> bool {
        let status = held.trailers().and_then(classify::grpc_status);
        match status.or_else(|| classify::grpc_status(&held.parts.headers)) {
            Some(Some(14)) => true,
            Some(Some(8)) => hint != Hint::None,
            Some(_) => false,
            // Not from a gRPC server, but from something between that speaks HTTP: these are UNAVAILABLE then.
            None => held.parts.status == StatusCode::TOO_MANY_REQUESTS || of_http(held.parts.status, hint),
        }
    }

    pin_project! {
        /// The rest of a response that is given up.
        pub struct Rest<B> {
            #[pin]
            body: B,
            left: u64,
        }
    }
}
