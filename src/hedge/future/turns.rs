//! The turn of the next attempt: when it comes, what it needs, and how it is sent.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tower_service::Service;

use super::{Output, ResponseFuture, Stage, open};
use crate::{
    deadline::{self, Deadline},
    on_panic::on_panic,
    outline,
    polled::{POLLED, take},
    protocol::Mark,
    retry::Retryable,
    time::{self, Instant, sleep_until},
};

impl<S, P, Req> ResponseFuture<S, P, Req>
where
    S: Service<Req>,
    P: Retryable<Req, S::Response, S::Error>,
{
    /// Nothing has ended: is it time for the next attempt? `Ready(None)`: there may be a further one to poll, or to ask
    /// for.
    pub(super) fn next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Output<S, P, Req>>>
    where
        S: Clone,
    {
        let this = self.as_mut().project();
        let mut rest = open(this.rest);
        match rest.stage {
            Stage::New => {
                let now = time::now();
                rest.waited.begin(&this.kept.shared, now);
                self.arrange(now);
            }
            Stage::Waiting => {
                ready!(rest.timer.as_mut().as_pin_mut().expect(POLLED).poll(cx));
                self.turn(false, time::now());
            }
            Stage::Starting(_) => return self.start(cx),
            Stage::Idle | Stage::Last => return Poll::Pending,
        }
        Poll::Ready(None)
    }

    /// The next attempt goes as soon as its instance is ready. `Ready(None)`: there is something to poll.
    fn start(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Output<S, P, Req>>>
    where
        S: Clone,
    {
        let this = self.as_mut().project();
        let deadline = this.kept.deadline;
        let spare = this.spare.as_mut().expect(POLLED);
        match outline::poll_ready(spare.service.as_mut().expect(POLLED), cx) {
            Poll::Ready(Ok(())) if is_over(deadline, time::now()) => return self.too_late(),
            // While it waited another one read the request's body past the cap.
            Poll::Ready(Ok(())) if self.is_any_running() && !self.can_again() => self.no_more(),
            Poll::Ready(Ok(())) => self.send(),
            Poll::Ready(Err(error)) => {
                // What was taken from the budget goes back now, not when somebody drops this.
                self.as_mut().no_more();
                if !self.is_any_running() {
                    return Poll::Ready(Some(Err(P::error(error))));
                }
            }
            Poll::Pending => {
                ready!(deadline::poll_passed(open(self.as_mut().project().rest).timer, deadline, cx));
                return self.too_late();
            }
        }
        Poll::Ready(None)
    }

    /// The deadline came before the next attempt was ready.
    fn too_late(mut self: Pin<&mut Self>) -> Poll<Option<Output<S, P, Req>>> {
        self.as_mut().no_more();
        if self.is_any_running() {
            return Poll::Ready(None);
        }
        // The last answer was given up for the attempt that can't be made any more.
        self.kept.shared.ledger.refuse_late();
        Poll::Ready(Some(self.reject()))
    }

    /// When is the turn of the next attempt?
    fn arrange(mut self: Pin<&mut Self>, now: Instant) {
        let this = self.as_mut().project();
        let mut rest = open(this.rest);
        let delay = if this.spare.is_some() { this.kept.shared.delay.current(now) } else { None };
        let Some(delay) = delay else { return self.no_more() };
        if delay.is_zero() {
            self.turn(false, now);
            return;
        }
        let at = now + delay;
        *rest.stage = Stage::Idle;
        if !is_over(this.kept.deadline, at) {
            rest.timer.set(Some(sleep_until(at)));
            *rest.stage = Stage::Waiting;
        }
    }

    /// It is the turn of the next attempt, if there may be one: one failed, or takes long. Was it taken from the
    /// budget?
    pub(super) fn turn(mut self: Pin<&mut Self>, failed: bool, now: Instant) -> bool {
        if !self.can_again() || is_over(self.kept.deadline, now) {
            self.no_more();
            return false;
        }
        let this = self.as_mut().project();
        let own_budget = this.kept.own_budget::<S, Req, S::Response, S::Error>(this.spare);
        let budget = own_budget.as_ref().unwrap_or(&this.kept.shared.budget);
        let Some(taken) = this.kept.shared.take(budget, failed, now) else {
            self.no_more();
            return false;
        };
        *open(this.rest).stage = Stage::Starting(budget.hold(taken));
        true
    }

    fn can_again(&self) -> bool {
        let original = self.spare.as_ref().and_then(|spare| spare.original.as_ref());
        original.is_some_and(|original| self.kept.protocol.can_again(original, false))
    }

    /// The instance is ready.
    fn send(mut self: Pin<&mut Self>)
    where
        S: Clone,
    {
        let this = self.as_mut().project();
        let (kept, mut rest) = (this.kept, open(this.rest));
        let spare = this.spare.as_mut().expect(POLLED);
        let original = take(&mut spare.original);
        // Never as the last one: that would take the request's body from those that run.
        let (original, mut request) = kept.protocol.again(original, false);
        let mark = Mark {
            previous: *rest.made,
            left: kept.deadline.map(Deadline::remaining),
            #[cfg(feature = "http")]
            header: None,
            #[cfg(not(feature = "http"))]
            header: std::marker::PhantomData,
        };
        kept.protocol.mark(&mut request, &mark);
        if let Stage::Starting(reservation) = std::mem::replace(rest.stage, Stage::Last) {
            reservation.spend();
        }
        kept.shared.count_further();
        let mut service = take(&mut spare.service);
        let more = original.is_some() && *rest.made < kept.shared.max();
        spare.service = more.then(|| service.clone());
        spare.original = original;
        *rest.made += 1;
        let inner = on_panic(|| kept.shared.reporter().panicked(*rest.made), || outline::call(&mut service, request));
        rest.others.as_mut().add(*rest.made, inner);
        if more {
            self.arrange(time::now());
        }
    }
}

/// Is nothing begun any more at this time?
fn is_over(deadline: Option<Deadline>, now: Instant) -> bool {
    deadline.is_some_and(|deadline| deadline.instant() <= now)
}
