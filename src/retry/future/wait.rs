//! Waiting: for the next attempt, for a first frame, for readiness.

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tower_service::Service;

use crate::{
    deadline::{self, Deadline},
    outline,
    retry::verdict::Retryable,
    time::{self, Instant, Sleep, Span, poll_at, sleep_until},
};

/// A failed response is read for so long at most, for the sake of its connection.
const READ_FOR: Duration = Duration::from_millis(50);

/// A gRPC response is waited for only where the operator said for how long, and until the deadline at most.
pub(super) fn poll_patience(
    mut patience: Pin<&mut Option<Sleep>>,
    peek: Option<Duration>,
    deadline: Option<Deadline>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let Some(peek) = peek else { return Poll::Ready(()) };
    if patience.is_none() {
        // In range: `build()` has seen to it.
        let own = time::now() + peek;
        patience.set(Some(sleep_until(deadline.map_or(own, |deadline| own.min(deadline.instant())))));
    }
    patience.as_pin_mut().map_or(Poll::Ready(()), |sleep| sleep.poll(cx))
}

/// Is the instance ready for the next attempt, and before the deadline? One that is ready after it is not used.
pub(super) fn poll_ready_in_time<S, Req>(
    service: &mut S,
    timer: Pin<&mut Option<Sleep>>,
    deadline: Option<Deadline>,
    cx: &mut Context<'_>,
) -> Poll<Result<bool, S::Error>>
where
    S: Service<Req>,
{
    if outline::poll_ready(service, cx)?.is_ready() {
        return Poll::Ready(Ok(!deadline::has_passed(deadline)));
    }
    deadline::poll_passed(timer, deadline, cx).map(|()| Ok(false))
}

/// The wait before an attempt; in its first part the rest of the failed response is read.
#[derive(Debug)]
pub(super) struct Wait {
    /// `None`: for nothing.
    until: Option<Until>,
    /// Others get their turn first.
    yields: bool,
}

#[derive(Debug, Clone, Copy)]
struct Until {
    end: Instant,
    rest: Instant,
}

impl Wait {
    /// Zero needs no clock and no timer.
    pub(super) fn new(delay: Span, yields: bool) -> Self {
        let until = delay.duration().filter(|delay| !delay.is_zero()).map(|delay| {
            let now = time::now();
            Until { end: now + delay, rest: now + delay.min(READ_FOR) }
        });
        Wait { until, yields }
    }

    pub(super) fn poll<S, P, Req>(
        &mut self,
        mut timer: Pin<&mut Option<Sleep>>,
        mut rest: Pin<&mut Option<P::Rest>>,
        cx: &mut Context<'_>,
    ) -> Poll<()>
    where
        S: Service<Req>,
        P: Retryable<Req, S::Response, S::Error>,
    {
        let is_read = rest.as_mut().as_pin_mut().is_none_or(|rest| P::poll_rest(rest, cx).is_ready());
        if is_read {
            rest.set(None);
        }
        let Some(until) = self.until else {
            if mem::take(&mut self.yields) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(());
        };
        loop {
            let at = if rest.is_some() { until.rest } else { until.end };
            ready!(poll_at(timer.as_mut(), at, cx));
            if at == until.end {
                return Poll::Ready(());
            }
            rest.set(None);
        }
    }
}
