//! A request of which copies are sent.

use std::fmt;

use http::{Request, request::Parts};

use super::Replay;

/// A request that may be sent again: its head, and the source of its body.
pub struct Original<B: Replay> {
    head: Parts,
    source: B::Source,
    made: u32,
}

impl<B: Replay> Original<B> {
    /// The original. It was not sent yet.
    #[inline]
    pub(crate) fn new(request: Request<B>, cap: usize) -> Self {
        let (head, body) = request.into_parts();
        Original { head, source: body.split(cap), made: 0 }
    }

    pub(crate) fn head(&self) -> &Parts {
        &self.head
    }

    /// Can a further attempt have the whole body? `unsent`: nothing of it has reached the backend.
    pub(crate) fn can_replay(&self, unsent: bool) -> bool {
        B::can_replay(&self.source) || unsent && B::is_whole(&self.source)
    }

    /// A copy of the head and a body of its own. Those before it may still be read.
    pub(crate) fn attempt(&mut self) -> Request<B> {
        self.made += 1;
        Request::from_parts(self.head.clone(), B::attempt(&self.source))
    }

    /// The last attempt: the head itself. Those before it were given up.
    pub(crate) fn last(self) -> Request<B> {
        let body = B::attempt(&self.source);
        B::only(&self.source, self.made);
        Request::from_parts(self.head, body)
    }

    /// Nobody reads until the next attempt does: those so far were given up.
    pub(crate) fn give_up(&self) {
        B::only(&self.source, self.made);
    }

    /// Can the attempt of this number, from 0, not have the rest of the body?
    pub(crate) fn is_cut(&self, attempt: u32) -> bool {
        B::is_cut(&self.source, attempt)
    }

    /// From now on only the attempt of this number, from 0, reads.
    pub(crate) fn only(&self, attempt: u32) {
        B::only(&self.source, attempt);
    }
}

impl<B: Replay> fmt::Debug for Original<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither path nor headers: they may hold secrets.
        f.debug_struct("Original").field("made", &self.made).finish_non_exhaustive()
    }
}
