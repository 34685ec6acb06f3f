//! Calls that can be made more than once: how the request of a further attempt is made.

use std::time::Duration;

use crate::{
    deadline::{self, Deadline},
    outcome::Classify,
    protocol::{BoxError, Boxed, Flat, Head, Hold, Plain},
    rejection::Rejection,
};

/// A form in which a call can be made more than once, as retry and hedge need it. Sealed.
///
/// In the HTTP form the head of the request is copied and its body recorded while it is sent
/// ([`Replay`](crate::Replay)); in the other forms the request is cloned, or a function makes the copies
/// ([`RetryLayer::clone_with`](crate::RetryLayer::clone_with)).
#[diagnostic::on_unimplemented(
    message = "a `{Self}` layer cannot send a `{Req}` more than once to a service that gives `Result<{Res}, {Err}>`",
    label = "this request can't be sent again in this form",
    note = "`Http`, the default, wants `http::Request<B>` with a body `B: buttress::Replay`: those of axum (feature `axum`) and tonic (feature `tonic`), `Full`, `Empty`, `BoxBody` and `UnsyncBoxBody`",
    note = "`.plain()`, `.flat()` and `.boxed()` want a request that is `Clone`; for others say how with `.clone_with(|request| ..)`"
)]
pub trait Again<Req, Res, Err>: Hold<Req, Res, Err> {
    /// What further requests are made from.
    type Original;

    /// The request of the first attempt, and the original, which is put where it stays: both are large. Left `None`: it
    /// can be sent only once.
    #[doc(hidden)]
    fn split(&self, request: Req, cap: usize, original: &mut Option<Self::Original>) -> Req;

    /// The head of the original, if requests have one.
    #[doc(hidden)]
    fn head_of<'a>(&self, _original: &'a Self::Original) -> Option<Head<'a>> {
        None
    }

    /// Can there be a further attempt? `unsent`: those so far never reached the backend.
    #[doc(hidden)]
    fn can_again(&self, _original: &Self::Original, _unsent: bool) -> bool {
        true
    }

    /// As [`can_again`](Self::can_again), and from now on the attempts so far read nothing more.
    #[doc(hidden)]
    fn give_up(&self, _original: &Self::Original, _unsent: bool) -> bool {
        true
    }

    /// The request of the next attempt, and the original if it is good for more. The last one need not be a copy.
    #[doc(hidden)]
    fn again(&self, original: Self::Original, last: bool) -> (Option<Self::Original>, Req);

    /// Has another attempt the rest of the request, so that this one (from 0) waits for it in vain?
    #[doc(hidden)]
    fn is_cut(&self, _original: &Self::Original, _attempt: u32) -> bool {
        false
    }

    /// From now on only this attempt (from 0) reads.
    #[doc(hidden)]
    fn only(&self, _original: &Self::Original, _attempt: u32) {}

    /// Writes on a request how many attempts there were before it, and how much time is left for it.
    #[doc(hidden)]
    fn mark(&self, _request: &mut Req, _mark: &Mark<'_>) {}

    /// May this request be sent twice? By its method, where it has one.
    #[doc(hidden)]
    fn is_safe(&self, _context: &Self::Context, _request: &Req, _trust: Trust) -> bool {
        true
    }

    /// The earliest of the deadlines that this call has.
    #[doc(hidden)]
    #[inline(always)]
    fn deadline_of(&self, _context: &Self::Context, request: &Req) -> Option<Deadline> {
        deadline::earliest(Self::deadline(request), Deadline::current())
    }
}

/// What is written on a further attempt.
#[doc(hidden)]
#[derive(Debug)]
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "it is written in headers"))]
pub struct Mark<'a> {
    /// How many attempts there were before.
    pub(crate) previous: u32,
    pub(crate) left: Option<Duration>,
    #[cfg(feature = "http")]
    pub(crate) header: Option<&'a http::HeaderName>,
    #[cfg(not(feature = "http"))]
    pub(crate) header: std::marker::PhantomData<&'a ()>,
}

/// What the operator says about requests that are not idempotent by their method.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Trust {
    pub(crate) any_method: bool,
    pub(crate) idempotency_key: bool,
}

/// The forms whose requests are cloned.
macro_rules! cloned {
    ($form:ident, [$($bound:tt)*]) => {
        #[diagnostic::do_not_recommend]
        impl<C, Req, Res, E> Again<Req, Res, E> for $form<C>
        where
            Req: Clone,
            C: Classify<Res, E>,
            E: $($bound)*,
        {
            type Original = Req;

            #[inline(always)]
            fn split(&self, request: Req, _cap: usize, original: &mut Option<Req>) -> Req {
                *original = Some(request.clone());
                request
            }

            #[inline]
            fn again(&self, original: Req, last: bool) -> (Option<Req>, Req) {
                if last { (None, original) } else { (Some(original.clone()), original) }
            }
        }
    };
}

cloned!(Plain, [std::error::Error + 'static]);
cloned!(Flat, [From<Rejection> + std::error::Error + 'static]);
cloned!(Boxed, [Into<BoxError>]);

#[cfg(feature = "http")]
mod http_form {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderName, Method, Request, Response};
    use http_body::Body;

    use super::*;
    use crate::{
        deadline::wire,
        protocol::{Http, HttpContext, Protocol, Replay, number, replay::Original},
        time,
    };

    /// How many attempts of this call there were before (gRPC A6).
    pub(crate) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

    #[diagnostic::do_not_recommend]
    impl<B, RB, E> Again<Request<B>, Response<RB>, E> for Http
    where
        B: Replay,
        RB: Body<Data = Bytes>,
        RB::Error: Into<BoxError>,
        E: 'static,
    {
        type Original = Original<B>;

        #[inline]
        fn split(&self, request: Request<B>, cap: usize, original: &mut Option<Original<B>>) -> Request<B> {
            original.insert(Original::new(request, cap)).attempt()
        }

        fn head_of<'a>(&self, original: &'a Original<B>) -> Option<Head<'a>> {
            let parts = original.head();
            Some(Head { uri: &parts.uri, headers: &parts.headers, extensions: &parts.extensions })
        }

        fn can_again(&self, original: &Original<B>, unsent: bool) -> bool {
            original.can_replay(unsent)
        }

        fn give_up(&self, original: &Original<B>, unsent: bool) -> bool {
            // First nobody reads any more, and then it is asked: a body that is being read could go past the cap
            // between.
            original.give_up();
            original.can_replay(unsent)
        }

        fn again(&self, mut original: Original<B>, last: bool) -> (Option<Original<B>>, Request<B>) {
            if last {
                return (None, original.last());
            }
            let request = original.attempt();
            (Some(original), request)
        }

        fn is_cut(&self, original: &Original<B>, attempt: u32) -> bool {
            original.is_cut(attempt)
        }

        fn only(&self, original: &Original<B>, attempt: u32) {
            original.only(attempt);
        }

        fn mark(&self, request: &mut Request<B>, mark: &Mark<'_>) {
            let grpc = Protocol::<_, Response<RB>, E>::context(self, request).is_grpc();
            let headers = request.headers_mut();
            // It may be marked already, by a policy further out or the hop before: those were attempts too.
            let count = |headers: &mut HeaderMap, name: &HeaderName| {
                let so_far = headers.get(name).and_then(number::read::<u32>).unwrap_or(0);
                let previous = so_far.saturating_add(mark.previous);
                headers.insert(name, number::header_value(previous.into(), None));
            };
            if grpc {
                count(headers, &PREVIOUS_ATTEMPTS);
                // The time that a call has by its header is for all its attempts.
                if let Some(left) = mark.left.filter(|_| headers.contains_key(wire::GRPC_TIMEOUT)) {
                    wire::lower_grpc_timeout(headers, Some(left));
                }
            }
            if let Some(name) = mark.header {
                count(headers, name);
            }
        }

        fn is_safe(&self, context: &HttpContext, request: &Request<B>, trust: Trust) -> bool {
            context.is_grpc()
                || trust.any_method
                || is_idempotent(request.method())
                || trust.idempotency_key && request.headers().contains_key("idempotency-key")
        }

        /// With that of its `grpc-timeout`, which is for all attempts together.
        fn deadline_of(&self, context: &HttpContext, request: &Request<B>) -> Option<Deadline> {
            let known = <Self as Protocol<_, Response<RB>, E>>::deadline(request);
            let known = deadline::earliest(known, Deadline::current());
            if !context.is_grpc() {
                return known;
            }
            match wire::read_grpc_timeout(request.headers()) {
                wire::Read::Absent => known,
                own => deadline::earliest(known, wire::deadline(own, time::now())),
            }
        }
    }

    /// RFC 9110, 9.2.2.
    fn is_idempotent(method: &Method) -> bool {
        matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
    }
}

#[cfg(feature = "http")]
pub(crate) use self::http_form::PREVIOUS_ATTEMPTS;
