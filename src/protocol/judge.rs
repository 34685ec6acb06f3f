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
    outcome::End,
    permit::Cause,
    protocol::{BoxError, HttpClassify, Watch, classify, cut, head::end_of_body, hint, transport},
    rejection::Rejection,
};

/// What a body's poll yields; `None` is its end.
pub(super) type Step = Option<Result<Frame<Bytes>, BoxError>>;

/// Follows one response to its verdict and to its end. The watch is gone once the response is over.
pub(crate) struct Judge<W: Watch> {
    pub(super) watch: Option<W>,
    /// There was a verdict, or there will be none.
    settled: bool,
    pub(super) grpc: bool,
    classify: Option<Arc<dyn HttpClassify>>,
    /// Announced bytes that have not come yet.
    left: Option<u64>,
    /// Nobody has asked for the body yet.
    unread: bool,
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
    /// What goes before a gRPC message has not come yet: a flag and the length, in five bytes of which so many are
    /// there.
    Prefix {
        seen: u8,
        length: u32,
    },
    /// The first gRPC message is not whole yet: so many bytes of it have not come.
    FirstMessage {
        left: u64,
    },
    /// More comes than one message.
    Many,
    /// All that the watch wants to know it knows.
    Known,
}

impl Frames {
    /// More data has come.
    fn and(self, data: &[u8], grpc: bool) -> Self {
        match self {
            Frames::None { events: true } => Frames::Many,
            Frames::None { events: false } if grpc => Frames::Prefix { seen: 0, length: 0 }.and(data, grpc),
            Frames::Prefix { mut seen, mut length } => {
                // A transport may cut it anywhere.
                let (prefix, rest) = data.split_at(data.len().min(usize::from(PREFIX - seen)));
                for byte in prefix {
                    // The flag goes first, and out.
                    length = if seen == 0 { 0 } else { length << 8 | u32::from(*byte) };
                    seen += 1;
                }
                match seen {
                    PREFIX => Frames::FirstMessage { left: length.into() }.and(rest, grpc),
                    _ => Frames::Prefix { seen, length },
                }
            }
            Frames::FirstMessage { left } => match left.checked_sub(data.len() as u64) {
                Some(left) => Frames::FirstMessage { left },
                None => Frames::Many,
            },
            Frames::None { events: false } | Frames::NotAsked | Frames::Many | Frames::Known => Frames::Known,
        }
    }
}

/// Bytes that go before each gRPC message.
const PREFIX: u8 = 5;

/// `text/event-stream`, with or without parameters.
fn is_of_events(content_type: &[u8]) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    content_type.get(..EVENTS.len()).is_some_and(|t| t.eq_ignore_ascii_case(EVENTS))
}

impl<W: Watch> Judge<W> {
    pub(crate) fn new(watch: W, settled: bool, grpc: bool, classify: Option<Arc<dyn HttpClassify>>) -> Self {
        Judge { watch: Some(watch), settled, grpc, classify, left: None, unread: true, frames: Frames::NotAsked }
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
            self.frames = Frames::None { events: is_of_events(content_type) };
        }
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
        if matches!(self.frames, Frames::NotAsked | Frames::Known) || data.is_empty() {
            return;
        }
        if matches!(self.frames, Frames::None { .. }) {
            watch.first_frame();
        }
        self.frames = self.frames.and(data, self.grpc);
        if self.frames == Frames::Many {
            watch.streams();
            self.frames = Frames::Known;
        }
    }

    pub(crate) fn malformed(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.malformed();
        }
    }

    pub(crate) fn settle(&mut self, end: End) {
        self.settle_with(|watch| watch.settle(end));
    }

    fn settle_with(&mut self, settle: impl FnOnce(&mut W)) {
        if let Some(watch) = self.watch.as_mut().filter(|_| !self.settled) {
            self.settled = true;
            settle(watch);
        }
    }

    /// The response is over, with or without trailers.
    pub(crate) fn end(&mut self, trailers: Option<&HeaderMap>) {
        if !self.settled && self.watch.is_some() {
            self.settle(end_of_body(self.classify.as_deref(), self.grpc, trailers));
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
        self.unread = false;
        cut::note(None);
        let frame = {
            let _entered = Entered::new(watch.deadline());
            let guard = TellOfPanic(self);
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
                self.settle(transport::end_of(Some(&**error)));
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
        // Left there for whoever stands further out; each clears it before it polls. A handler may have seen the stream
        // it reads being cut and ended well all the same, and then its trailers do not say 4.
        let code = trailers.and_then(classify::grpc_status).flatten();
        if let Some(end) = cut::by().filter(|_| self.grpc && code == Some(4)) {
            self.settle(end);
        } else if let Some(end) = trailers.filter(|_| self.grpc).and_then(cut::at_the_peer) {
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

/// A caller that looks at the status and at nothing else has not left: it has what it wanted, and the head was good.
/// That is seen where nobody has asked for a body whose length was announced. Else only failures, which are known by
/// their heads, would count of such callers, and a few of them would open any breaker for good. One that drops a body
/// of which nobody knows how long it is may as well have enough of a stream.
impl<W: Watch> Drop for Judge<W> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cold]
        #[inline(never)]
        fn unread<W: Watch>(judge: &mut Judge<W>) {
            let by_default = !judge.grpc && judge.classify.is_none();
            if judge.unread && judge.left.is_some() && by_default && Cause::current() == Cause::Caller {
                judge.settle_with(W::unread);
            }
        }
        if self.watch.is_some() && !self.settled {
            unread(self);
        }
    }
}

/// Dropped only by a panic in the inner body.
struct TellOfPanic<'a, W: Watch>(&'a mut Judge<W>);

impl<W: Watch> Drop for TellOfPanic<'_, W> {
    fn drop(&mut self) {
        self.0.settle_with(W::panicked);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Wherever a transport cuts it, and with empty frames in between: it is a stream of many with the first byte
        /// behind the first message.
        #[test]
        fn a_stream_is_one_wherever_it_is_cut(
            message in 0_usize..40,
            more in 0_usize..20,
            cuts in prop::collection::vec(0_usize..70, 0..8),
        ) {
            let mut wire = vec![0, 0, 0, 0, message as u8];
            wire.resize(wire.len() + message + more, 7);
            let mut cuts: Vec<_> = cuts.into_iter().map(|at| at.min(wire.len())).chain([wire.len()]).collect();
            cuts.sort_unstable();
            let mut frames = Frames::None { events: false };
            let mut from = 0;
            for to in cuts {
                frames = if from == to { frames } else { frames.and(&wire[from..to], true) };
                prop_assert_eq!(frames == Frames::Many, to > 5 + message);
                if frames == Frames::Many {
                    break;
                }
                from = to;
            }
        }
    }

    #[test]
    fn the_content_type_of_events() {
        for (content_type, is) in [
            ("text/event-stream", true),
            ("Text/Event-Stream; charset=utf-8", true),
            ("text/event", false),
            ("text/plain", false),
            ("", false),
        ] {
            assert_eq!(is_of_events(content_type.as_bytes()), is, "{content_type}");
        }
    }
}
