//! Policies that look at a response before they pass it on: what do they see, and what do they pass on?

use std::task::{Context, Poll};

use crate::{
    outcome::{Classify, End, Outcome},
    protocol::{BoxError, Boxed, Flat, Plain, Protocol, Watch},
    rejection::{Error, Rejection},
};

/// A form in which a response can be held back until it is known what it means, as retry and fallback need it.
pub trait Hold<Req, Res, Err>: Protocol<Req, Res, Err> {
    /// A response that is held back.
    type Held;

    /// Judges what can be judged at once.
    #[doc(hidden)]
    fn hold(&self, context: &Self::Context, result: Result<Res, Err>) -> Judged<Self::Held, Self::Error>;

    /// Looks at the first frame of a response that could not be judged by its head. `Ready(None)`: a message came, so
    /// the rest is nobody's business but the caller's.
    #[doc(hidden)]
    fn poll_peek(&self, _context: &Self::Context, _held: &mut Self::Held, _cx: &mut Context<'_>) -> Poll<Option<End>> {
        Poll::Ready(None)
    }

    /// The response as the caller gets it. A watch is not told of the rest of a body that was looked into.
    #[doc(hidden)]
    fn pass<W: Watch>(&self, context: &Self::Context, held: Self::Held, watch: Option<W>) -> Self::Response<W>;

    /// As [`pass`](Self::pass), as the last thing that a poll does: an answer is large, and wrapped by the poll itself
    /// it would be moved once more.
    #[doc(hidden)]
    #[inline(always)]
    fn pass_at_once<W: Watch>(
        &self,
        context: &Self::Context,
        held: Self::Held,
        watch: Option<W>,
    ) -> Poll<Result<Self::Response<W>, Self::Error>> {
        Poll::Ready(Ok(self.pass(context, held, watch)))
    }

    /// Is it an answer that a fallback gave?
    #[doc(hidden)]
    fn is_degraded(_held: &Self::Held) -> bool {
        false
    }

    /// The refusal that a response or an error is, if it is one.
    #[doc(hidden)]
    fn rejection<'a>(result: Result<&'a Self::Held, &'a Self::Error>) -> Option<&'a Rejection>;
}

/// What a result means, as far as it can be seen at once. The way of nearly all calls has an arm of its own, for it
/// shall cost them nothing that there are others.
#[derive(Debug)]
pub enum Judged<H, E> {
    /// It is a success.
    Good(H),
    /// It is something else.
    Bad(End, Result<H, E>),
    /// Only [`poll_peek`](Hold::poll_peek) can tell.
    Unclear(H),
}

/// The forms in which all is said with the result.
macro_rules! holds {
    ($form:ident, [$($bound:tt)*], $error:ty, |$given:ident| $convert:expr, |$e:ident| $rejection:expr) => {
        impl<C, Req, Res, E> Hold<Req, Res, E> for $form<C>
        where
            C: Classify<Res, E>,
            E: $($bound)*,
        {
            type Held = Res;

            #[inline(always)]
            fn hold(&self, (): &(), result: Result<Res, E>) -> Judged<Res, $error> {
                // `E` need not be an error before it is converted, so it is judged first and searched for a rejection
                // then.
                let judged = self.0.classify(result.as_ref());
                match result {
                    Ok(response) if judged == Outcome::Success => Judged::Good(response),
                    Ok(response) => Judged::Bad(End::Outcome(judged), Ok(response)),
                    Err($given) => {
                        let error = $convert;
                        let end = match ours(&error, |$e: &$error| $rejection) {
                            None => End::Outcome(judged),
                            Some(rejection) => End::of_rejection(rejection),
                        };
                        Judged::Bad(end, Err(error))
                    }
                }
            }

            #[inline(always)]
            fn pass<W: Watch>(&self, (): &(), held: Res, _watch: Option<W>) -> Res {
                held
            }

            fn rejection<'a>(result: Result<&'a Res, &'a $error>) -> Option<&'a Rejection> {
                result.err().and_then(|$e| $rejection)
            }
        }
    };
}

/// The rejection of ours that an error is, or that is behind it. Out of the way of the others.
#[cold]
#[inline(never)]
fn ours<E>(error: &E, rejection: impl FnOnce(&E) -> Option<&Rejection>) -> Option<&Rejection> {
    rejection(error)
}

holds!(Plain, [std::error::Error + 'static], Error<E>, |e| Error::Inner(e), |e| match e {
    Error::Rejected(rejection) => Some(rejection),
    Error::Inner(e) => Rejection::of_a(e),
});
holds!(Flat, [From<Rejection> + std::error::Error + 'static], E, |e| e, |e| Rejection::of_a(e));
holds!(Boxed, [Into<BoxError>], BoxError, |e| e.into(), |e| Rejection::of(&**e));

#[cfg(feature = "http")]
mod http_form {
    use bytes::Bytes;
    use http::{HeaderMap, Request, Response, response::Parts};
    use http_body::Body;

    use super::*;
    use crate::protocol::{Degraded, Http, ResponseBody, classify, cut, peek::Peeked, transport};

    /// An HTTP or gRPC response that is held back.
    #[derive(Debug)]
    pub struct HeldResponse<B> {
        pub(crate) parts: Parts,
        body: HeldBody<B>,
    }

    #[derive(Debug)]
    enum HeldBody<B> {
        Whole(B),
        Peeked(Peeked<B>),
        /// Only while it turns from the one into the other.
        Gone,
    }

    impl<B, RB, E> Hold<Request<B>, Response<RB>, E> for Http
    where
        RB: Body<Data = Bytes>,
        RB::Error: Into<BoxError>,
        E: 'static,
    {
        type Held = HeldResponse<RB>;

        #[inline]
        fn hold(&self, context: &Self::Context, result: Result<Response<RB>, E>) -> Judged<HeldResponse<RB>, E> {
            let response = match result {
                Ok(response) => response,
                Err(error) => return Judged::Bad(transport::end_of(transport::as_error(&error)), Err(error)),
            };
            let (parts, body) = response.into_parts();
            let held = HeldResponse { parts, body: HeldBody::Whole(body) };
            let grpc = context.is_answered_in_grpc(&held.parts);
            let end = self.judge_head(context, grpc, &held.parts);
            match end {
                // The status of a gRPC call comes last, and may be there already.
                None if grpc => Judged::Unclear(held),
                None | Some(End::Outcome(Outcome::Success)) => Judged::Good(held),
                Some(end) => Judged::Bad(end, Ok(held)),
            }
        }

        fn poll_peek(&self, _: &Self::Context, held: &mut HeldResponse<RB>, cx: &mut Context<'_>) -> Poll<Option<End>> {
            let Some(peeked) = held.body.peek() else { return Poll::Ready(None) };
            peeked.poll_first(cx).map(|(first, cut_by)| match first {
                None => Some(self.judge_end(true, None)),
                Some(Err(error)) => Some(transport::end_of(Some(&**error))),
                Some(Ok(frame)) => frame.trailers_ref().map(|trailers| {
                    let code = classify::grpc_status(trailers).flatten();
                    let cut_by = cut_by.filter(|_| code == Some(4)).or_else(|| cut::at_the_peer(trailers));
                    cut_by.unwrap_or_else(|| self.judge_end(true, Some(trailers)))
                }),
            })
        }

        fn pass<W: Watch>(
            &self,
            context: &Self::Context,
            held: HeldResponse<RB>,
            watch: Option<W>,
        ) -> Response<ResponseBody<RB, W>> {
            let HeldResponse { parts, body } = held;
            match body {
                HeldBody::Whole(body) => match watch {
                    None => Response::from_parts(parts, ResponseBody::unwatched(body)),
                    Some(watch) => self.watch(context, parts, body, watch),
                },
                HeldBody::Peeked(body) => Response::from_parts(parts, ResponseBody::peeked(body)),
                HeldBody::Gone => Response::from_parts(parts, ResponseBody::default()),
            }
        }

        #[inline(always)]
        fn pass_at_once<W: Watch>(
            &self,
            context: &Self::Context,
            held: HeldResponse<RB>,
            watch: Option<W>,
        ) -> Poll<Result<Response<ResponseBody<RB, W>>, E>> {
            // The way of nearly all by itself, as it is after all those in which a response was held back and judged.
            let HeldResponse { parts, body } = held;
            match body {
                HeldBody::Whole(body) if watch.is_none() => {
                    Poll::Ready(Ok(Response::from_parts(parts, ResponseBody::unwatched(body))))
                }
                body => {
                    let held = HeldResponse { parts, body };
                    Poll::Ready(Ok(Hold::<Request<B>, _, E>::pass(self, context, held, watch)))
                }
            }
        }

        fn is_degraded(held: &HeldResponse<RB>) -> bool {
            held.is_degraded()
        }

        fn rejection<'a>(result: Result<&'a HeldResponse<RB>, &'a E>) -> Option<&'a Rejection> {
            result.ok().and_then(HeldResponse::rejection)
        }
    }

    impl<B> HeldResponse<B> {
        pub(crate) fn is_degraded(&self) -> bool {
            self.parts.extensions.get::<Degraded>().is_some()
        }

        pub(crate) fn rejection(&self) -> Option<&Rejection> {
            Rejection::in_extensions(&self.parts.extensions)
        }

        /// The trailers that have come already.
        pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
            match &self.body {
                HeldBody::Peeked(peeked) => peeked.trailers(),
                HeldBody::Whole(_) | HeldBody::Gone => None,
            }
        }

        /// What broke the body off before anything of it came.
        pub(crate) fn error(&self) -> Option<&BoxError> {
            match &self.body {
                HeldBody::Peeked(peeked) => peeked.error(),
                HeldBody::Whole(_) | HeldBody::Gone => None,
            }
        }

        /// Is nothing of its body to come?
        pub(crate) fn is_whole(&self) -> bool
        where
            B: Body<Data = Bytes>,
            B::Error: Into<BoxError>,
        {
            match &self.body {
                HeldBody::Whole(body) => body.is_end_stream(),
                HeldBody::Peeked(body) => body.ends(),
                HeldBody::Gone => true,
            }
        }

        /// How long its body is, if that is known before it is read.
        pub(crate) fn length(&self) -> Option<u64>
        where
            B: Body<Data = Bytes>,
        {
            match &self.body {
                HeldBody::Whole(body) => body.size_hint().exact(),
                HeldBody::Peeked(_) | HeldBody::Gone => None,
            }
        }

        /// The body of a response that is given up, unless it was looked into.
        pub(crate) fn into_whole_body(self) -> Option<B> {
            match self.body {
                HeldBody::Whole(body) => Some(body),
                HeldBody::Peeked(_) | HeldBody::Gone => None,
            }
        }
    }

    impl<B> HeldBody<B>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        fn peek(&mut self) -> Option<&mut Peeked<B>> {
            *self = match std::mem::replace(self, HeldBody::Gone) {
                HeldBody::Whole(body) => HeldBody::Peeked(Peeked::new(body)),
                peeked => peeked,
            };
            match self {
                HeldBody::Peeked(peeked) => Some(peeked),
                HeldBody::Whole(_) | HeldBody::Gone => None,
            }
        }
    }
}

#[cfg(feature = "http")]
pub use self::http_form::HeldResponse;
