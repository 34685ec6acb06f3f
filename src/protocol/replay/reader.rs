//! The body of one attempt.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{
    ReplayError,
    tape::{Handle, Read, Recording},
};

/// The body of one attempt: first what was recorded, then the rest of the body it was recorded from.
///
/// Its error is that of the body, or a [`ReplayError`] where another attempt has the rest.
pub struct ReplayBody<B> {
    tape: Arc<Recording<B>>,
    attempt: u32,
    /// How many frames it has had, and of how many bytes.
    frames: usize,
    bytes: u64,
}

/// What ended an attempt's body.
#[derive(Debug)]
pub(super) enum ReadError<E> {
    Body(E),
    Cut(ReplayError),
}

/// What an attempt reads; `None` at the end.
type Next<E> = Option<Result<Frame<Bytes>, ReadError<E>>>;

impl<B> ReplayBody<B> {
    pub(super) fn new(handle: &Handle<B>) -> Self {
        let (tape, attempt) = handle.begin();
        ReplayBody { tape, attempt, frames: 0, bytes: 0 }
    }
}

impl<B> ReplayBody<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
{
    /// As `poll_frame`, with the error apart.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Next<B::Error>> {
        loop {
            match self.tape.read(self.attempt, self.frames) {
                Read::Frame(frame) => {
                    self.count(&frame);
                    return Poll::Ready(Some(Ok(frame)));
                }
                Read::End => return Poll::Ready(None),
                Read::Cut => return Poll::Ready(Some(Err(ReadError::Cut(ReplayError::CUT)))),
                Read::Busy if self.tape.wait_for_others(self.attempt, cx.waker()) => return Poll::Pending,
                // It is over by now.
                Read::Busy => {}
                Read::Poll(body) => return self.poll_body(body, cx),
            }
        }
    }

    fn poll_body(&mut self, mut body: B, cx: &mut Context<'_>) -> Poll<Next<B::Error>> {
        let everybody = Waker::from(Arc::clone(&self.tape));
        let failed = Failed { tape: &self.tape, attempt: self.attempt };
        let polled = Pin::new(&mut body).poll_frame(&mut Context::from_waker(&everybody));
        match polled {
            Poll::Ready(Some(Err(error))) => {
                drop(failed);
                return Poll::Ready(Some(Err(ReadError::Body(error))));
            }
            Poll::Pending => self.tape.wait(self.attempt, cx.waker(), body),
            Poll::Ready(None) => self.tape.put(self.attempt, None, None),
            Poll::Ready(Some(Ok(ref frame))) => {
                let more = !frame.is_trailers() && !body.is_end_stream();
                self.tape.put(self.attempt, Some(frame), more.then_some(body));
            }
        }
        std::mem::forget(failed);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.count(frame);
        }
        polled.map(|frame| frame.map(|f| f.map_err(ReadError::Body)))
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        self.frames += 1;
        self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
}

/// Unless forgotten: the body failed, or panicked.
struct Failed<'a, B> {
    tape: &'a Recording<B>,
    attempt: u32,
}

impl<B> Drop for Failed<'_, B> {
    fn drop(&mut self) {
        self.tape.fail(self.attempt);
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<crate::BoxError>,
{
    type Data = Bytes;
    type Error = crate::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, crate::BoxError>>> {
        self.poll_read(cx).map(|frame| {
            frame.map(|f| {
                f.map_err(|error| match error {
                    ReadError::Body(e) => e.into(),
                    ReadError::Cut(e) => e.into(),
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.tape.is_over(self.attempt, self.frames)
    }

    fn size_hint(&self) -> SizeHint {
        self.left()
    }
}

impl<B> ReplayBody<B> {
    pub(super) fn is_over(&self) -> bool {
        self.tape.is_over(self.attempt, self.frames)
    }

    /// What the body announced, less what this attempt has had.
    pub(super) fn left(&self) -> SizeHint {
        let mut left = SizeHint::new();
        if let Some(upper) = self.tape.hint.upper() {
            left.set_upper(upper.saturating_sub(self.bytes));
        }
        left.set_lower(self.tape.hint.lower().saturating_sub(self.bytes));
        left
    }
}

impl<B> Drop for ReplayBody<B> {
    fn drop(&mut self) {
        self.tape.leave();
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody").field("attempt", &self.attempt).field("frames", &self.frames).finish()
    }
}
