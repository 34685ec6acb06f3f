//! A call that waits: for its turn, for the answer of a store, for the inner service.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    protocol::Protocol,
    rate_limit::{
        Engine,
        bucket::{Bucket, Place, Turn as Look},
        decision::{After, Decision, Refusal, Turn, Until},
        future::{Then, take},
        limiter::Limiter,
        store::Local,
    },
    rejection::Reason,
    stripe::Shared,
    time::{Sleep, sleep_until},
};

pin_project! {
    /// The request, and an instance of the inner service that is polled ready once the call may go.
    pub(crate) struct Waiting<S, Req, St: Engine> {
        #[pin]
        wait: Wait<St>,
        service: S,
        request: Option<Req>,
        limiter: Shared<Limiter<St>>,
        after: After,
    }
}

pin_project! {
    #[project = WaitProj]
    enum Wait<St: Engine> {
        // In the line.
        Turn { #[pin] timer: Option<Sleep>, ticket: Option<Ticket<St>>, until: Until },
        // For the answer of the store. `fresh`: the instance beside it is still ready from before the call.
        Answer { #[pin] acquire: St::Acquire, until: Until, fresh: bool },
        // For another answer, later.
        Pause { #[pin] timer: Sleep, until: Until },
        // For the inner service. What the call has taken goes back if nobody waits for it.
        Readiness { ticket: Option<Ticket<St>> },
    }
}

/// A place in a line, given up when it is dropped; once its turn has come, units that are given back.
struct Ticket<St: Engine> {
    limiter: Shared<Limiter<St>>,
    bucket: Arc<Bucket>,
    units: u32,
    place: Option<Place>,
}

impl<St: Engine> Ticket<St> {
    /// Its turn has come.
    fn goes(&mut self) {
        if self.place.take().is_some() {
            self.limiter.waits_no_more();
        }
    }

    /// The call is made: nothing goes back.
    fn used(mut self) {
        self.units = 0;
    }

    /// Waits for its turn. `Some`: it would come too late, because of a smaller quota.
    fn poll(
        &mut self,
        mut timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
        until: Until,
    ) -> Poll<Option<Refusal>> {
        let Some(place) = self.place else { return Poll::Ready(None) };
        loop {
            let now = self.limiter.now();
            match self.bucket.turn(place, now, cx.waker()) {
                Look::Now => {
                    self.goes();
                    self.limiter.has_come();
                    return Poll::Ready(None);
                }
                Look::At(at) if at > until.0 => {
                    let refused = self.limiter.refuses(Reason::RateLimited);
                    return Poll::Ready(refused.then(|| Refusal::late(at, now)));
                }
                Look::At(at) => {
                    let Some(at) = self.limiter.instant(at) else { return Poll::Pending };
                    match timer.as_mut().as_pin_mut() {
                        None => timer.set(Some(sleep_until(at))),
                        Some(sleep) if sleep.deadline() != at => sleep.reset(at),
                        Some(_) => {}
                    }
                    if let Some(sleep) = timer.as_mut().as_pin_mut() {
                        ready!(sleep.poll(cx));
                    }
                    timer.set(None);
                }
            }
        }
    }
}

impl<St: Engine> Drop for Ticket<St> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.bucket.leave(place, self.limiter.now());
            self.limiter.waits_no_more();
        } else if self.units > 0 {
            self.bucket.refund(self.units, self.limiter.now());
        }
    }
}

impl<S, Req, St: Engine> Waiting<S, Req, St> {
    #[cold]
    pub(crate) fn new(
        go: Decision<St::Acquire>,
        fresh: bool,
        (service, request): (S, Req),
        limiter: Shared<Limiter<St>>,
    ) -> Pin<Box<Self>> {
        let (wait, after) = match go {
            Decision::Wait(Turn { bucket, place, units, until, after }) => {
                let ticket = Ticket { limiter: limiter.clone(), bucket, units, place: Some(place) };
                (Wait::Turn { timer: None, ticket: Some(ticket), until }, after)
            }
            Decision::Ask(acquire, until) => (Wait::Answer { acquire, until, fresh }, After::default()),
            // It may go and has taken a unit, but the inner service was not asked whether it is ready.
            Decision::Go(after) => {
                let common = limiter.store.local().map(|Local(buckets)| Arc::clone(&buckets.common));
                let ticket = common.map(|bucket| Ticket { limiter: limiter.clone(), bucket, units: 1, place: None });
                (Wait::Readiness { ticket }, after)
            }
            Decision::No(_) => (Wait::Readiness { ticket: None }, After::default()),
        };
        Box::pin(Waiting { wait, service, request: Some(request), limiter, after })
    }

    /// Waits, and calls.
    #[inline(never)]
    pub(crate) fn poll<P, Res>(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Went<S, Req, St>>
    where
        S: Service<Req> + Clone,
        P: Protocol<Req, Res, S::Error>,
    {
        let this = self.project();
        Poll::Ready(
            match ready!(this.wait.poll::<S, Req, P, Res>(cx, this.limiter, this.service, this.request, this.after)) {
                Go::Call => {
                    let then = (!this.after.is_nothing()).then(|| (this.limiter.clone(), mem::take(this.after)));
                    Went::Running(this.service.call(take(this.request)), then)
                }
                Go::Refused(refusal) => Went::Refused(refusal, this.limiter.clone()),
                Go::Broken(error) => Went::Broken(error),
            },
        )
    }
}

/// What came of a call that waited.
pub(crate) enum Went<S: Service<Req>, Req, St: Engine> {
    Running(S::Future, Option<Then<St>>),
    Refused(Refusal, Shared<Limiter<St>>),
    Broken(S::Error),
}

/// Where a wait has led to.
enum Go<E> {
    Call,
    Refused(Refusal),
    Broken(E),
}

impl<St: Engine> Wait<St> {
    fn poll<S, Req, P, Res>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        limiter: &Shared<Limiter<St>>,
        service: &mut S,
        request: &mut Option<Req>,
        after: &mut After,
    ) -> Poll<Go<S::Error>>
    where
        S: Service<Req> + Clone,
        P: Protocol<Req, Res, S::Error>,
    {
        loop {
            let next = match self.as_mut().project() {
                WaitProj::Turn { mut timer, ticket, until } => {
                    let Some(own) = ticket else { return Poll::Pending };
                    if let Some(refusal) = ready!(own.poll(timer.as_mut(), cx, *until)) {
                        return Poll::Ready(Go::Refused(refusal));
                    }
                    Wait::Readiness { ticket: ticket.take() }
                }
                WaitProj::Answer { acquire, until, fresh } => {
                    let Poll::Ready(grant) = acquire.poll(cx) else {
                        if mem::take(fresh) {
                            // Whoever waits holds nothing of the inner service.
                            let unready = service.clone();
                            *service = unready;
                        }
                        return Poll::Pending;
                    };
                    match limiter.answered(grant, *until) {
                        Ok(Ok(granted)) => {
                            limiter.has_come();
                            *after = granted;
                            if *fresh {
                                return Poll::Ready(Go::Call);
                            }
                            Wait::Readiness { ticket: None }
                        }
                        Ok(Err(refusal)) if limiter.refuses(refusal.reason) => {
                            return Poll::Ready(Go::Refused(refusal));
                        }
                        Ok(Err(_)) if *fresh => return Poll::Ready(Go::Call),
                        Ok(Err(_)) => Wait::Readiness { ticket: None },
                        Err(at) => {
                            if mem::take(fresh) {
                                let unready = service.clone();
                                *service = unready;
                            }
                            let Some(at) = limiter.instant(at) else {
                                return Poll::Ready(Go::Refused(Refusal::late(at, limiter.now())));
                            };
                            Wait::Pause { timer: sleep_until(at), until: *until }
                        }
                    }
                }
                WaitProj::Pause { timer, until } => {
                    ready!(timer.poll(cx));
                    match limiter.ask_again::<P, Req, Res, S::Error>(request) {
                        Some(acquire) => Wait::Answer { acquire, until: *until, fresh: false },
                        None => Wait::Readiness { ticket: None },
                    }
                }
                WaitProj::Readiness { ticket } => {
                    if let Err(error) = ready!(service.poll_ready(cx)) {
                        return Poll::Ready(Go::Broken(error));
                    }
                    if let Some(ticket) = ticket.take() {
                        ticket.used();
                    }
                    return Poll::Ready(Go::Call);
                }
            };
            self.set(next);
        }
    }
}
