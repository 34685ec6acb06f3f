//! Until when an answer is of use, carried from hop to hop.
//!
//! A timeout is a duration that one hop chose. A deadline is an instant that the *caller* chose, and everything that
//! works for that caller should stop at it: the handler, the calls the handler makes, and the calls those make. Nobody
//! passes it along by hand for long, so here it travels by itself, in three forms:
//!
//! - on the wire as `grpc-timeout` (or a header in milliseconds, see [`DeadlineLayer::header`]);
//! - on a request as an extension, which is explicit and can be set by hand;
//! - *ambient*: while a future is polled inside [`Deadline::scope`], [`Deadline::current`] is that deadline. This is
//!   what takes it from an axum handler to the tonic client it calls, with no code in the handler.
//!
//! Where several are present, the earliest wins.
//!
//! [`DeadlineLayer::server`] reads the deadline of incoming requests and bounds everything below it, response body
//! included. [`DeadlineLayer::client`] writes it on outgoing requests. No other policy waits past it.
//!
//! ```
//! use axum::{Router, routing::get};
//! use buttress::{Deadline, DeadlineLayer};
//! use std::time::Duration;
//!
//! // Whatever the caller says, but never more than ten seconds.
//! let app: Router = Router::new()
//!     .route("/", get(|| async { format!("{:?} left", Deadline::current().map(Deadline::remaining)) }))
//!     .layer(DeadlineLayer::server(Duration::from_secs(10)));
//! # drop(app);
//! ```
//!
//! # Where the ambient form ends
//!
//! It follows the task: through `join!`, `select!` and every combinator, and into the response body. It does not follow
//! `tokio::spawn` (wrap the future: `deadline.scope(future)`), nor into a tonic `Channel`, whose worker is a task of
//! its own: put layers around the channel, not inside it.
//!
//! # Cancel safety
//!
//! Dropping the call drops the inner future at once. When the deadline passes, the inner future or body is dropped
//! and policies inside learn that it was the deadline, not the backend.
//!
//! # Who wins against tonic's own timers
//!
//! tonic has timers on the same `grpc-timeout`, and they answer CANCELLED. Ours run out a little before the deadline
//! that came in by that header: 1 % of what was left, but at least 1 ms and at most 5 ms. Then the answer is
//! DEADLINE_EXCEEDED.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;

use crate::{
    protocol::Protocol,
    time::{self, Instant, Sleep, poll_at},
};

pub(crate) mod caller;
#[cfg(feature = "http")]
mod handle;
#[cfg(feature = "http")]
mod layer;
#[cfg(feature = "http")]
pub(crate) mod outer;
#[cfg(feature = "http")]
mod service;
#[cfg(feature = "http")]
pub(crate) mod wire;

#[cfg(feature = "http")]
pub use self::{
    handle::{DeadlineHandle, DeadlineSnapshot},
    layer::{DeadlineBuilder, DeadlineLayer},
    service::Deadlines,
};

/// Until when an answer is of use: an instant of tokio's clock, so it follows a paused runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

thread_local! {
    static CURRENT: Cell<Option<Deadline>> = const { Cell::new(None) };
}

impl Deadline {
    /// The deadline at `t`.
    pub fn at(t: Instant) -> Deadline {
        Deadline(t)
    }

    /// The deadline `d` from now. What lies beyond the clock's range becomes a year from now.
    pub fn after(d: Duration) -> Deadline {
        let now = time::now();
        Deadline(now.checked_add(d).unwrap_or_else(|| now + time::LONGEST))
    }

    /// The ambient deadline: that of the innermost [`scope`](Deadline::scope) this code is polled in.
    #[inline]
    pub fn current() -> Option<Deadline> {
        CURRENT.get()
    }

    /// The instant itself.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// What is left of it from now; zero once it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(time::now())
    }

    /// Makes this the ambient deadline of `future`. Inside another scope it can only shorten: the earlier of the two
    /// is current. A panic inside restores the outer one.
    pub fn scope<F: Future>(self, future: F) -> Scoped<F> {
        Scoped { future, deadline: Some(self) }
    }
}

/// The earlier of two deadlines, where there are any.
#[inline]
pub(crate) fn earliest(a: Option<Deadline>, b: Option<Deadline>) -> Option<Deadline> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Has it passed? Reads the clock only if there is one.
#[inline]
pub(crate) fn has_passed(deadline: Option<Deadline>) -> bool {
    deadline.is_some_and(|deadline| deadline.0 <= time::now())
}

/// Has the ambient one passed, or is it so near that a peer with a timer of ours may answer that it has?
#[cfg(feature = "http")]
#[cold]
pub(crate) fn is_about_over() -> bool {
    Deadline::current().is_some_and(|deadline| deadline.remaining() <= wire::MOST_MARGIN)
}

/// Is it later than that? At the instant itself a turn may still come that was worth waiting for.
#[inline]
pub(crate) fn is_behind(deadline: Option<Deadline>) -> bool {
    deadline.is_some_and(|deadline| deadline.0 < time::now())
}

/// Waits until it has passed: for ever, if there is none. The timer is made with the first look.
pub(crate) fn poll_passed(
    timer: Pin<&mut Option<Sleep>>,
    deadline: Option<Deadline>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    deadline.map_or(Poll::Pending, |deadline| poll_at(timer, deadline.instant(), cx))
}

/// A call that had to wait is made now: by its `grpc-timeout` it has what is left, and not what there was. Only where
/// it says for how long the peer has to work; what that is by us is known of the deadline and of timeouts further out.
#[cfg_attr(not(feature = "http"), allow(unused_variables, clippy::extra_unused_type_parameters, reason = "no headers"))]
#[cold]
pub(crate) fn shorten<P, Req, Res, Err>(protocol: &P, request: &mut Req)
where
    P: Protocol<Req, Res, Err>,
{
    #[cfg(feature = "http")]
    {
        let deadline = earliest(P::deadline(request), Deadline::current());
        let context = protocol.context(request);
        let Some(headers) = P::grpc_headers(&context, request).filter(|h| h.contains_key(wire::GRPC_TIMEOUT)) else {
            return;
        };
        let left = deadline.map(Deadline::remaining).into_iter().chain(outer::left(time::now())).min();
        // What goes on with nothing left goes on in shadow, and there nothing is written.
        wire::lower_grpc_timeout(headers, left.filter(|left| !left.is_zero()));
    }
}

/// The ambient deadline for as long as this stands; then the outer one again.
#[derive(Debug)]
pub(crate) struct Entered(Option<Deadline>);

impl Entered {
    #[inline]
    pub(crate) fn new(deadline: Option<Deadline>) -> Self {
        let outer = CURRENT.get();
        CURRENT.set(earliest(outer, deadline));
        Entered(outer)
    }
}

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

pin_project! {
    /// A future polled under an ambient deadline. Made by [`Deadline::scope`]; adds no allocation.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Scoped<F> {
        #[pin]
        future: F,
        deadline: Option<Deadline>,
    }
}

#[cfg(feature = "http")]
impl<F> Scoped<F> {
    /// As [`Deadline::scope`], where there may be no deadline.
    pub(crate) fn new(deadline: Option<Deadline>, future: F) -> Self {
        Scoped { future, deadline }
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = Entered::new(*this.deadline);
        this.future.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[tokio::test(start_paused = true)]
    async fn a_scope_only_shortens_and_ends() {
        assert_eq!(Deadline::current(), None);
        let (near, far) = (Deadline::after(ms(10)), Deadline::after(ms(20)));
        far.scope(async {
            assert_eq!(Deadline::current(), Some(far));
            near.scope(async { assert_eq!(Deadline::current(), Some(near)) }).await;
            near.scope(far.scope(async { assert_eq!(Deadline::current(), Some(near)) })).await;
            assert_eq!(Deadline::current(), Some(far));
        })
        .await;
        assert_eq!(Deadline::current(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_restores_the_outer_one() {
        let outer = Deadline::after(ms(20));
        outer
            .scope(async {
                let mut inner = Box::pin(Deadline::after(ms(10)).scope(async { panic!("inside") }));
                let mut cx = Context::from_waker(std::task::Waker::noop());
                assert!(catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(&mut cx))).is_err());
                assert_eq!(Deadline::current(), Some(outer));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn remaining_follows_the_paused_clock() {
        let d = Deadline::after(ms(10));
        tokio::time::advance(ms(4)).await;
        assert_eq!(d.remaining(), ms(6));
        tokio::time::advance(ms(10)).await;
        assert_eq!(d.remaining(), Duration::ZERO);
        assert!(Deadline::after(Duration::MAX).remaining() >= time::LONGEST);
    }
}
