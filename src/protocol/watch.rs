//! What a policy leaves in a response.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    deadline::Deadline,
    outcome::{End, Outcome},
    protocol::sealed::Sealed,
    rejection::Rejection,
};

/// What a policy leaves in a response until it is over: a permit to give back, a clock that may cut it short.
///
/// Dropping it means that the response is over. For plain services that is when the inner future is ready; for HTTP
/// and gRPC the watch lives in the [`ResponseBody`](crate::ResponseBody) and sees its end. Sealed.
pub trait Watch: Sealed {
    /// A timer that must be pinned; `()` for a watch that needs none, whose body can be moved at will. It stands
    /// beside the watch and not in it, because a head is judged before the body has its place in memory.
    type Timer: Default;

    /// Does it want a verdict? Without, nothing is judged, and it only learns when the response is over.
    #[doc(hidden)]
    const JUDGES: bool = true;

    /// Is it told of headers that could not be read?
    #[doc(hidden)]
    const COUNTS_MALFORMED: bool = false;

    /// The verdict, as soon as it is known and at most once. It may come before the body is over: a 500 is a failure
    /// at its head. A watch dropped without one was left by its caller.
    #[doc(hidden)]
    fn settle(&mut self, _end: End) {}

    /// The verdict, with which the response is over.
    #[doc(hidden)]
    #[inline(always)]
    fn finish(mut self, end: End)
    where
        Self: Sized,
    {
        self.settle(end);
    }

    /// The body panicked in its poll: that is a failure, whoever waits for it.
    #[doc(hidden)]
    fn panicked(&mut self) {
        self.settle(End::Outcome(Outcome::Failure));
    }

    /// A header of the peer could not be read and was ignored.
    #[doc(hidden)]
    fn malformed(&mut self) {}

    /// Does it want to know when the server asked its callers to come back?
    #[doc(hidden)]
    fn wants_hint(&self) -> bool {
        false
    }

    /// The server asked its callers to come back after so long. Comes before the verdict.
    #[doc(hidden)]
    fn hint(&mut self, _after: Duration) {}

    /// Is what a policy of ours has refused on the other side of the wire no failure to it?
    #[doc(hidden)]
    fn spares_peers(&self) -> bool {
        false
    }

    /// The verdict on an answer of which nobody has read anything, whose head was good: a success.
    #[doc(hidden)]
    fn unread(&mut self) {
        self.settle(End::Outcome(Outcome::Success));
    }

    /// The head has come and does not decide; the verdict waits for the end of the body.
    #[doc(hidden)]
    fn good_head(&mut self) {}

    /// The head has come and the body goes on after it, whatever the verdict.
    #[doc(hidden)]
    fn goes_on(&mut self) {}

    /// Does it want to know of frames?
    #[doc(hidden)]
    fn wants_frames(&self) -> bool {
        false
    }

    /// The first frame of the body has come.
    #[doc(hidden)]
    fn first_frame(&mut self) {}

    /// Bytes of the body have come.
    #[cfg(feature = "http")]
    #[doc(hidden)]
    fn data(&mut self, _data: &bytes::Bytes) {}

    /// The response came to its end: every announced byte, or the last frame.
    #[doc(hidden)]
    fn over(&mut self) {}

    /// The response is a stream of events or messages: its latency is that of its first frame.
    #[doc(hidden)]
    fn streams(&mut self) {}

    /// The ambient deadline under which the body is polled.
    #[doc(hidden)]
    fn deadline(&self) -> Option<Deadline> {
        None
    }

    /// A frame has come, and more may. `Some` ends the body in its place.
    #[doc(hidden)]
    fn frame(&mut self) -> Option<Rejection> {
        None
    }

    /// The inner body has nothing yet. `Ready` ends it; a pending one has left a waker.
    #[doc(hidden)]
    fn poll_overdue(&mut self, _timer: Pin<&mut Self::Timer>, _cx: &mut Context<'_>) -> Poll<Rejection> {
        Poll::Pending
    }
}

impl Sealed for () {}

/// Of policies that are done with a response once they pass it on.
impl Watch for () {
    type Timer = ();
}

/// There is none: the policy has no interest in the response once it is there.
#[derive(Debug, Clone, Copy)]
pub enum Unwatched {}

impl Sealed for Unwatched {}

impl Watch for Unwatched {
    type Timer = ();
}
