//! A body that is looked into before it is passed on.
//!
//! Some gRPC servers send an error as a head without a status, and the status in trailers right behind it. Whoever has
//! to decide on the head alone takes that for a success. So the body is polled once, without waiting: what is there is
//! judged, and handed on later as if it had just come.

use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, SizeHint};
use pin_project_lite::pin_project;

use super::{cut, judge::Step};
use crate::{outcome::End, protocol::BoxError};

/// A body, and the first frame of it if that has come.
///
/// In a box, because a body that was polled must not move again unless it is `Unpin`, and one under a timeout is not:
/// this is the one allocation of looking. The frame is in it too, for it is large, and every response has room for what
/// few of them are.
pub(crate) struct Peeked<B>(Pin<Box<Looked<B>>>);

pin_project! {
    struct Looked<B> {
        #[pin]
        body: B,
        first: First,
    }
}

/// So many frames without a byte are passed over in one look: some proxies send one before the trailers.
const EMPTY_FRAMES: u32 = 8;

enum First {
    /// Not there yet, or handed on.
    No,
    Came {
        step: Step,
        /// Whose clock made it, where it is trailers that say that one ran out.
        cut: Option<End>,
    },
    /// It came, was handed on, and was the last.
    Over,
}

impl<B> Peeked<B> {
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        match &self.0.first {
            First::Came { step: Some(Ok(frame)), .. } => frame.trailers_ref(),
            _ => None,
        }
    }

    /// Has the last of it come?
    pub(crate) fn ends(&self) -> bool {
        match &self.0.first {
            First::Came { step: Some(Ok(frame)), .. } => frame.is_trailers(),
            First::Came { step: None | Some(Err(_)), .. } | First::Over => true,
            First::No => false,
        }
    }

    /// What broke it, before anything of it came.
    pub(crate) fn error(&self) -> Option<&BoxError> {
        match &self.0.first {
            First::Came { step: Some(Err(error)), .. } => Some(error),
            _ => None,
        }
    }
}

impl<B> Peeked<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    pub(crate) fn new(body: B) -> Self {
        Peeked(Box::pin(Looked { body, first: First::No }))
    }

    /// The first frame that says something, and whose clock made it. It is still handed on.
    pub(crate) fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<(&Step, Option<End>)> {
        let mut this = self.0.as_mut().project();
        let mut empty = 0;
        while matches!(this.first, First::No) {
            let (polled, cut) = cut::in_poll(|| this.body.as_mut().poll_frame(cx));
            let Poll::Ready(step) = polled else { return Poll::Pending };
            let says_nothing = matches!(&step, Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty))
                && empty < EMPTY_FRAMES;
            if says_nothing {
                empty += 1;
            } else {
                *this.first = First::Came { step: step.map(|f| f.map_err(Into::into)), cut };
            }
        }
        match this.first {
            First::Came { step, cut } => Poll::Ready((step, *cut)),
            First::No | First::Over => Poll::Pending,
        }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let this = self.0.as_mut().project();
        match mem::replace(this.first, First::No) {
            First::No => this.body.poll_frame(cx).map_err(Into::into),
            First::Came { step, cut } => {
                cut::note(cut);
                if step.is_none() {
                    *this.first = First::Over;
                }
                Poll::Ready(step)
            }
            First::Over => {
                *this.first = First::Over;
                Poll::Ready(None)
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        match &self.0.first {
            First::No => self.0.body.is_end_stream(),
            First::Came { step, .. } => step.is_none(),
            First::Over => true,
        }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let mut hint = self.0.body.size_hint();
        if let First::Came { step: Some(Ok(frame)), .. } = &self.0.first {
            let seen = frame.data_ref().map_or(0, |data| data.len() as u64);
            let upper = hint.upper();
            // The lower bound last: it must not pass the upper one.
            if let Some(upper) = upper {
                hint.set_upper(upper.saturating_add(seen));
            }
            hint.set_lower(hint.lower().saturating_add(seen));
        }
        hint
    }
}

impl<B> fmt::Debug for Peeked<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peeked").finish_non_exhaustive()
    }
}
