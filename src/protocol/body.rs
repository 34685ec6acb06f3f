//! The response body under a policy.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{
    outcome::End,
    permit::Cause,
    protocol::{
        BoxError, Watch, cut,
        judge::{Judge, Step},
        peek::Peeked,
        refusal,
    },
    rejection::Rejection,
};

pin_project! {
    /// The body of a response that went through a policy: the inner body, seen to its end, or the text of a refusal.
    ///
    /// It gives back the policy's permit when the response is over, and can be ended by the policy's timeout: on HTTP
    /// with an error in which [`Rejection::of`] finds the reason, on gRPC with trailers. It adds no allocation. Its
    /// error is a [`BoxError`] with the inner error inside, unchanged.
    ///
    /// Dropping it early means that the caller left, unless nobody has read anything of a plain HTTP body with an
    /// announced length: then the status was all that was wanted. Under a timeout or a deadline it is not `Unpin`,
    /// because its timer is part of it: pin it (`std::pin::pin!`) to read it frame by frame.
    pub struct ResponseBody<B, W: Watch> {
        #[pin]
        kind: Kind<B, W>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B, W: Watch> {
        Unwatched { #[pin] body: B },
        Watched { #[pin] body: B, #[pin] timer: W::Timer, judge: Judge<W> },
        Peeked { body: Peeked<B> },
        // The trailers in a box, for they are large and rare.
        // Not a kind of its own for an answer to HEAD: each kind costs all of them a look.
        Text { bytes: Option<Bytes>, trailers: Option<Box<HeaderMap>>, is_untold: bool },
    }
}

impl<B, W: Watch> ResponseBody<B, W> {
    /// A body that no policy waits for.
    #[inline]
    pub(crate) fn unwatched(body: B) -> Self {
        ResponseBody { kind: Kind::Unwatched { body } }
    }

    #[inline]
    pub(crate) fn watched(body: B, judge: Judge<W>) -> Self {
        ResponseBody { kind: Kind::Watched { body, timer: W::Timer::default(), judge } }
    }

    /// A body that was looked into before it was passed on.
    pub(crate) fn peeked(body: Peeked<B>) -> Self {
        ResponseBody { kind: Kind::Peeked { body } }
    }

    /// The text of a refusal.
    #[cold]
    pub(crate) fn text(bytes: Bytes) -> Self {
        ResponseBody {
            kind: Kind::Text { bytes: Some(bytes).filter(|b| !b.is_empty()), trailers: None, is_untold: false },
        }
    }

    /// Of the answer to a HEAD request that does not say how long it would be: empty, but not of length zero, which a
    /// server would write down.
    pub(crate) fn untold() -> Self {
        ResponseBody { kind: Kind::Text { bytes: None, trailers: None, is_untold: true } }
    }

    /// One chunk, and trailers behind it.
    pub(crate) fn text_and_trailers(bytes: Bytes, trailers: HeaderMap) -> Self {
        ResponseBody { kind: Kind::Text { bytes: Some(bytes), trailers: Some(Box::new(trailers)), is_untold: false } }
    }
}

/// An empty body.
impl<B, W: Watch> Default for ResponseBody<B, W> {
    fn default() -> Self {
        Self::text(Bytes::new())
    }
}

impl<B, W> Body for ResponseBody<B, W>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    W: Watch,
{
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step> {
        let mut kind = self.project().kind;
        let (rejection, grpc) = match kind.as_mut().project() {
            KindProj::Unwatched { body } => return body.poll_frame(cx).map_err(Into::into),
            KindProj::Watched { body, timer, judge } => match ready!(judge.poll(body, timer, cx)) {
                Ok(frame) => return Poll::Ready(frame),
                Err(rejection) => (rejection, judge.grpc),
            },
            KindProj::Peeked { body } => return body.poll_frame(cx),
            KindProj::Text { bytes, trailers, .. } => {
                let rest = || trailers.take().map(|t| Ok(Frame::trailers(*t)));
                return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b))).or_else(rest));
            }
        };
        // The inner body goes now, not when somebody drops this one; and what is in it learns whose clock it was.
        Cause::of(rejection.reason(), rejection.had()).during(|| {
            kind.set(Kind::Text { bytes: None, trailers: None, is_untold: false });
        });
        Poll::Ready(Some(cut_short(rejection, grpc)))
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Unwatched { body } | Kind::Watched { body, .. } => body.is_end_stream(),
            Kind::Peeked { body } => body.is_end_stream(),
            Kind::Text { bytes, trailers, .. } => bytes.is_none() && trailers.is_none(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Unwatched { body } | Kind::Watched { body, .. } => body.size_hint(),
            Kind::Peeked { body } => body.size_hint(),
            Kind::Text { is_untold: true, .. } => SizeHint::new(),
            Kind::Text { bytes, .. } => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
        }
    }
}

impl<B, W: Watch> fmt::Debug for ResponseBody<B, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Unwatched { .. } => "unwatched",
            Kind::Watched { .. } => "watched",
            Kind::Peeked { .. } => "peeked",
            Kind::Text { .. } => "text",
        };
        f.debug_struct("ResponseBody").field("kind", &kind).finish_non_exhaustive()
    }
}

fn cut_short(rejection: Rejection, grpc: bool) -> Result<Frame<Bytes>, BoxError> {
    if grpc {
        cut::note(Some(End::of_rejection(&rejection)));
        Ok(Frame::trailers(refusal::trailers(&rejection)))
    } else {
        Err(rejection.into())
    }
}
