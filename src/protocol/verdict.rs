//! From the head of a response to its end: what it means, and when it is over.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame};

use crate::{
    deadline::Entered,
    outcome::{End, Outcome},
    protocol::{BoxError, HttpClassify, Watch, classify, cut, end_of_error, hint},
    rejection::Rejection,
};

/// What a body's poll yields; `None` is its end.
pub(super) type Step = Option<Result<Frame<Bytes>, BoxError>>;

/// Follows one response to its verdict and to its end. The watch is gone once the response is over.
pub(crate) struct Verdict<W> {
    pub(super) watch: Option<W>,
    settled: bool,
    pub(super) grpc: bool,
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
    pub(super) fn poll<B>(
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
        cut::note(None);
        let frame = {
            let _entered = Entered::new(watch.deadline());
            let guard = PanicIsFailure(self);
            let frame = body.as_mut().poll_frame(cx);
            mem::forget(guard);
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
        if let Some(end) = cut::by().filter(|_| self.grpc && code == Some(4)) {
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
