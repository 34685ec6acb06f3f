//! The response body under a policy.

use std::{
    cell::Cell,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{
    deadline::Entered,
    outcome::{End, Outcome},
    permit::Cause,
    protocol::{BoxError, HttpClassify, Watch, classify, end_of_error, hint, peek::Peeked, refusal},
    rejection::Rejection,
};

pin_project! {
    /// The body of a response that went through a policy: the inner body, seen to its end, or the text of a refusal.
    ///
    /// It gives back the policy's permit when the response is over, and can be ended by the policy's timeout: on HTTP
    /// with an error in which [`Rejection::of`] finds the reason, on gRPC with trailers. It adds no allocation. Its
    /// error is a [`BoxError`] with the inner error inside, unchanged.
    ///
    /// Dropping it early means that the caller left. Under a timeout or a deadline it is not `Unpin`, because its timer is
    /// part of it: pin it (`std::pin::pin!`) to read it frame by frame.
    pub struct ResponseBody<B, W: Watch> {
        #[pin]
        kind: Kind<B, W>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B, W: Watch> {
        Unwatched { #[pin] body: B },
        Watched { #[pin] body: B, #[pin] timer: W::Timer, verdict: Verdict<W> },
        Peeked { body: Peeked<B> },
        // The trailers in a box, for they are large and rare.
        Text { bytes: Option<Bytes>, trailers: Option<Box<HeaderMap>> },
    }
}

thread_local! {
    /// Whose clock ended the gRPC stream that is being polled on this thread right now.
    ///
    /// Trailers can't carry a `Rejection`, and `grpc-status: 4` does not say whether the operator's timeout or the
    /// caller's deadline ran out; policies further out must know. Bodies are polled through one another on one stack,
    /// so the inner one notes it here and the outer ones, which cleared it before they polled, read it right after.
    static CUT_BY: Cell<Option<End>> = const { Cell::new(None) };
}

/// Whose clock ended the stream in the poll that `poll` made, if it was ended.
pub(super) fn cut_by<T>(poll: impl FnOnce() -> T) -> (T, Option<End>) {
    CUT_BY.set(None);
    (poll(), CUT_BY.get())
}

/// Says again whose clock it was, where a frame is handed on later than it came.
pub(super) fn note_cut(end: Option<End>) {
    CUT_BY.set(end);
}

impl<B, W: Watch> ResponseBody<B, W> {
    /// A body that no policy waits for.
    #[inline]
    pub(crate) fn unwatched(body: B) -> Self {
        ResponseBody { kind: Kind::Unwatched { body } }
    }

    #[inline]
    pub(crate) fn watched(body: B, verdict: Verdict<W>) -> Self {
        if verdict.watch.is_none() {
            return Self::unwatched(body);
        }
        ResponseBody { kind: Kind::Watched { body, timer: W::Timer::default(), verdict } }
    }

    /// A body that was looked into before it was passed on.
    pub(crate) fn peeked(body: Peeked<B>) -> Self {
        ResponseBody { kind: Kind::Peeked { body } }
    }

    /// The text of a refusal.
    #[cold]
    pub(crate) fn text(bytes: Bytes) -> Self {
        ResponseBody { kind: Kind::Text { bytes: Some(bytes).filter(|b| !b.is_empty()), trailers: None } }
    }

    /// One chunk, and trailers behind it.
    pub(crate) fn text_and_trailers(bytes: Bytes, trailers: HeaderMap) -> Self {
        ResponseBody { kind: Kind::Text { bytes: Some(bytes), trailers: Some(Box::new(trailers)) } }
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
            KindProj::Watched { body, timer, verdict } => match ready!(verdict.poll(body, timer, cx)) {
                Ok(frame) => return Poll::Ready(frame),
                Err(rejection) => (rejection, verdict.grpc),
            },
            KindProj::Peeked { body } => return body.poll_frame(cx),
            KindProj::Text { bytes, trailers } => {
                let rest = || trailers.take().map(|t| Ok(Frame::trailers(*t)));
                return Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b))).or_else(rest));
            }
        };
        // The inner body goes now, not when somebody drops this one; and what is in it learns whose clock it was.
        Cause::of(rejection.reason(), rejection.had()).during(|| kind.set(Kind::Text { bytes: None, trailers: None }));
        Poll::Ready(Some(cut_short(rejection, grpc)))
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Unwatched { body } | Kind::Watched { body, .. } => body.is_end_stream(),
            Kind::Peeked { body } => body.is_end_stream(),
            Kind::Text { bytes, trailers } => bytes.is_none() && trailers.is_none(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Unwatched { body } | Kind::Watched { body, .. } => body.size_hint(),
            Kind::Peeked { body } => body.size_hint(),
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
        CUT_BY.set(Some(End::of_rejection(&rejection)));
        Ok(Frame::trailers(refusal::trailers(&rejection)))
    } else {
        Err(rejection.into())
    }
}

/// What a body's poll yields; `None` is its end.
pub(super) type Step = Option<Result<Frame<Bytes>, BoxError>>;

/// Follows one response to its verdict and to its end. The watch is gone once the response is over.
pub(crate) struct Verdict<W> {
    watch: Option<W>,
    settled: bool,
    grpc: bool,
    classify: Option<Arc<dyn HttpClassify>>,
    /// Announced bytes that have not come yet.
    left: Option<u64>,
    frames: Frames,
}

/// What is known of the frames, for a watch that wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frames {
    NotAsked,
    /// None has come. Will each of them be an event of its own?
    None {
        events: bool,
    },
    /// The first gRPC message is not whole yet: so many bytes of it have not come.
    FirstMessage {
        left: u64,
    },
    /// All that the watch wants to know it knows.
    Known,
}

impl<W: Watch> Verdict<W> {
    pub(crate) fn new(watch: W, grpc: bool, classify: Option<Arc<dyn HttpClassify>>) -> Self {
        Verdict { watch: Some(watch), settled: false, grpc, classify, left: None, frames: Frames::NotAsked }
    }

    pub(crate) fn expect(&mut self, bytes: Option<u64>) {
        self.left = bytes;
    }

    /// The head has come, and with it what there is to know of the frames that will.
    pub(crate) fn head(&mut self, headers: &HeaderMap) {
        let Some(watch) = self.watch.as_mut().filter(|_| !self.settled) else { return };
        watch.good_head();
        if watch.wants_frames() {
            let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
            self.frames = Frames::None { events: content_type.starts_with(b"text/event-stream") };
        }
    }

    /// There will be no verdict.
    pub(crate) fn waive(&mut self) {
        self.settled = true;
    }

    /// All of the head is known. Where the response is not over with it, its body goes on.
    pub(crate) fn goes_on(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.goes_on();
        }
    }

    /// When the server asked its callers to come back, if it did and the watch wants to know.
    pub(crate) fn hint(&mut self, headers: &HeaderMap) {
        if let Some(watch) = self.watch.as_mut().filter(|w| !self.settled && w.wants_hint())
            && let Some(after) = hint::of(self.grpc, headers)
        {
            watch.hint(after);
        }
    }

    /// A frame of data: is it the first, and is the response a stream of many?
    fn data(&mut self, data: &Bytes) {
        let Some(watch) = &mut self.watch else { return };
        watch.data(data);
        let len = data.len() as u64;
        let begun = match self.frames {
            Frames::NotAsked | Frames::Known => return,
            Frames::None { events } => {
                watch.first_frame();
                match data.get(1..5).and_then(|n| n.try_into().ok()).map(u32::from_be_bytes) {
                    _ if events => Frames::Known,
                    // Five bytes go before each message: a flag and its length.
                    Some(n) if self.grpc => Frames::FirstMessage { left: 5 + u64::from(n) },
                    _ => {
                        self.frames = Frames::Known;
                        return;
                    }
                }
            }
            first_message => first_message,
        };
        self.frames = match begun {
            Frames::FirstMessage { left } if len <= left => Frames::FirstMessage { left: left - len },
            _ => {
                watch.streams();
                Frames::Known
            }
        };
    }

    pub(crate) fn malformed(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.malformed();
        }
    }

    pub(crate) fn settle(&mut self, end: End) {
        if let Some(watch) = self.watch.as_mut().filter(|_| !self.settled) {
            self.settled = true;
            watch.settle(end);
        }
    }

    /// The response is over, with or without trailers.
    pub(crate) fn end(&mut self, trailers: Option<&HeaderMap>) {
        if !self.settled && self.watch.is_some() {
            let outcome = match &self.classify {
                Some(own) => own.end(self.grpc, trailers),
                None => classify::default_end(self.grpc, trailers),
            };
            self.settle(End::Outcome(outcome));
        }
        if let Some(watch) = &mut self.watch {
            watch.over();
        }
        self.watch = None;
    }

    /// One poll of the inner body. `Err`: the watch ends it here.
    fn poll<B>(
        &mut self,
        mut body: Pin<&mut B>,
        timer: Pin<&mut W::Timer>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Step, Rejection>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let Some(watch) = &mut self.watch else { return body.poll_frame(cx).map_err(Into::into).map(Ok) };
        CUT_BY.set(None);
        let frame = {
            let _entered = Entered::new(watch.deadline());
            let guard = PanicIsFailure(self);
            let frame = body.as_mut().poll_frame(cx);
            std::mem::forget(guard);
            frame
        };
        match frame {
            Poll::Pending => match &mut self.watch {
                Some(watch) => watch.poll_overdue(timer, cx).map(Err),
                None => Poll::Pending,
            },
            Poll::Ready(frame) => {
                let frame = frame.map(|f| f.map_err(Into::into));
                Poll::Ready(self.see(frame, || body.is_end_stream()))
            }
        }
    }

    fn see(&mut self, frame: Step, is_last: impl FnOnce() -> bool) -> Result<Step, Rejection> {
        match &frame {
            None => self.end(None),
            Some(Err(error)) => {
                self.settle(end_of_error(&**error).unwrap_or(End::Outcome(Outcome::Failure)));
                self.watch = None;
            }
            Some(Ok(frame)) if frame.is_trailers() => self.trailers(frame.trailers_ref()),
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |d| d.len() as u64);
                frame.data_ref().into_iter().for_each(|d| self.data(d));
                self.left = self.left.map(|n| n.saturating_sub(bytes));
                // hyper does not poll a body again once it knows that nothing can come.
                if self.left == Some(0) || is_last() {
                    self.end(None);
                } else if let Some(rejection) = self.watch.as_mut().and_then(W::frame) {
                    return Err(rejection);
                }
            }
        }
        Ok(frame)
    }

    fn trailers(&mut self, trailers: Option<&HeaderMap>) {
        // Left there for whoever stands further out; each clears it before it polls. A handler may have seen the stream it
        // reads being cut and ended well all the same, and then its trailers do not say 4.
        let code = trailers.and_then(classify::grpc_status).flatten();
        if let Some(end) = CUT_BY.get().filter(|_| self.grpc && code == Some(4)) {
            self.settle(end);
        }
        if let Some(trailers) = trailers.filter(|_| self.grpc) {
            if classify::grpc_status(trailers) == Some(None) {
                self.malformed();
            }
            self.hint(trailers);
        }
        self.end(trailers);
    }
}

/// Dropped only by a panic in the inner body.
struct PanicIsFailure<'a, W: Watch>(&'a mut Verdict<W>);

impl<W: Watch> Drop for PanicIsFailure<'_, W> {
    fn drop(&mut self) {
        self.0.settle(End::Outcome(Outcome::Failure));
    }
}
