//! A call that waits: for its turn, for the answer of a store, for the inner service.

use std::{
    future::Future,
    mem,
    ops::ControlFlow::{self, Break, Continue},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    deadline::{self, Deadline},
    instance::give_back,
    outline,
    polled::{POLLED, take},
    protocol::Protocol,
    rate_limit::{
        Engine,
        decision::{After, Decision, Patience, Refusal, Turn},
        future::{self, Refused},
        limiter::Limiter,
        pause::{Pause, Paused},
        store::{Grant, Local},
        ticket::{Booked, Ticket},
    },
    rejection::Reason,
    stripe::Shared,
    time::Sleep,
};

pin_project! {
    /// An instance of the inner service that is polled ready once the call may go, and the request; and then the call.
    pub(crate) struct Waiting<F, S, Req, St: Engine> {
        #[pin]
        state: State<F, St>,
        // Until it is made.
        call: Option<(S, Req)>,
        limiter: Shared<Limiter<St>>,
        after: After,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, St: Engine> {
        Waiting { #[pin] wait: Wait<St> },
        Running { #[pin] inner: F },
    }
}

pin_project! {
    #[project = WaitProj]
    enum Wait<St: Engine> {
        // In the line.
        Turn { #[pin] timer: Option<Sleep>, ticket: Option<Ticket<St>>, patience: Patience },
        // For the answer of the store, by the deadline. `fresh`: the instance beside it is still ready from before the
        // call.
        Answer { #[pin] acquire: St::Acquire, #[pin] timer: Option<Sleep>, patience: Patience, fresh: bool },
        // For another answer, later.
        Pause { #[pin] pause: Pause<St>, patience: Patience },
        // For the inner service, by the deadline. What the call has taken goes back if nobody waits for it.
        Readiness { ticket: Option<Ticket<St>>, #[pin] timer: Option<Sleep>, deadline: Option<Deadline>, booked: Booked },
    }
}

impl<F, S, Req, St: Engine> Waiting<F, S, Req, St> {
    /// `go` says for what it waits; the instance is ready only if that is a store's answer and `fresh`. The deadline is
    /// that of a call that waits for nothing but the inner service.
    #[cold]
    pub(crate) fn new(
        go: Decision<St::Acquire>,
        fresh: bool,
        deadline: Option<Deadline>,
        call: impl FnOnce() -> (S, Req),
        limiter: Shared<Limiter<St>>,
    ) -> Pin<Box<Self>> {
        let (wait, after) = match go {
            Decision::Wait(Turn { bucket, place, units, patience, after }) => {
                let ticket = Ticket { limiter: limiter.clone(), bucket, units, place: Some(place) };
                (Wait::Turn { timer: None, ticket: Some(ticket), patience }, after)
            }
            Decision::Ask(acquire, patience) => {
                (Wait::Answer { acquire, timer: None, patience, fresh }, After::default())
            }
            // The inner service was not asked whether it is ready, for no unit was there then.
            Decision::Go(after, units) => {
                // With keys that is rare: a deadline had passed then and there is none now. They have given their units
                // for good.
                let local = limiter.store.local().filter(|_| limiter.rules.are_keyless());
                let common = local.map(|Local(buckets)| Arc::clone(&buckets.common));
                let ticket = common.map(|bucket| Ticket { limiter: limiter.clone(), bucket, units, place: None });
                (Wait::readiness(ticket, deadline), after)
            }
            Decision::Shadowed | Decision::No(_) => (Wait::shadowed(), After::default()),
        };
        // A clone is somebody else's code: what was taken is in safe hands before.
        let call = Some(call());
        Box::pin(Waiting { state: State::Waiting { wait }, call, limiter, after })
    }
}

impl<S, Req, St> Waiting<S::Future, S, Req, St>
where
    S: Service<Req> + Clone,
    St: Engine,
{
    /// Waits, calls, and waits for the answer.
    #[inline(never)]
    pub(crate) fn poll<P>(
        mut self: Pin<&mut Self>,
        protocol: &P,
        cx: &mut Context<'_>,
    ) -> Poll<Went<S::Response, S::Error, St>>
    where
        P: Protocol<Req, S::Response, S::Error>,
    {
        loop {
            let mut this = self.as_mut().project();
            let wait = match this.state.as_mut().project() {
                StateProj::Waiting { wait } => wait,
                StateProj::Running { inner } => {
                    let result = ready!(outline::poll(inner, cx));
                    let then = (!this.after.is_nothing()).then(|| (this.limiter.clone(), mem::take(this.after)));
                    return Poll::Ready(Went::Answered(result, then));
                }
            };
            let call = this.call.as_mut().expect(POLLED);
            match ready!(wait.poll(protocol, cx, this.limiter, call, this.after)) {
                Go::Call => {
                    let (mut service, mut request) = take(this.call);
                    deadline::shorten(protocol, &mut request);
                    let inner = outline::call(&mut service, request);
                    this.state.set(State::Running { inner });
                }
                Go::Refused(refusal) => return Poll::Ready(Went::Refused((refusal, this.limiter.clone()))),
                Go::Broken(error) => return Poll::Ready(Went::Broken(error)),
            }
        }
    }
}

/// What came of a call that waited.
pub(crate) enum Went<Res, Err, St: Engine> {
    Answered(Result<Res, Err>, Option<future::Then<St>>),
    Refused(Refused<St>),
    /// The inner service did not become ready.
    Broken(Err),
}

/// Where a wait has led to.
enum Go<E> {
    Call,
    Refused(Refusal),
    Broken(E),
}

/// What comes after a part of a wait: another, or the end of it.
type Then<St, E> = ControlFlow<Go<E>, Wait<St>>;

impl<St: Engine> Wait<St> {
    fn readiness(ticket: Option<Ticket<St>>, deadline: Option<Deadline>) -> Self {
        Wait::Readiness { ticket, timer: None, deadline, booked: Booked::WhenMade }
    }

    /// It goes only because of the shadow, however long that takes.
    fn shadowed() -> Self {
        Wait::Readiness { ticket: None, timer: None, deadline: None, booked: Booked::Already }
    }

    fn poll<S, Req, P>(
        mut self: Pin<&mut Self>,
        protocol: &P,
        cx: &mut Context<'_>,
        limiter: &Shared<Limiter<St>>,
        (service, request): &mut (S, Req),
        after: &mut After,
    ) -> Poll<Go<S::Error>>
    where
        S: Service<Req> + Clone,
        P: Protocol<Req, S::Response, S::Error>,
    {
        loop {
            let then = match self.as_mut().project() {
                WaitProj::Turn { timer, ticket, patience } => {
                    let Some(own) = ticket else { return Poll::Pending };
                    let come = match own.poll(timer, cx, patience.until) {
                        Poll::Pending if limiter.in_shadow() => {
                            own.goes_early();
                            Ok(Booked::WhenMade)
                        }
                        come => ready!(come),
                    };
                    match come {
                        Ok(booked) => Continue(Wait::Readiness {
                            ticket: ticket.take(),
                            timer: None,
                            deadline: patience.deadline.filter(|_| !limiter.in_shadow()),
                            booked,
                        }),
                        Err(refusal) => Break(Go::Refused(refusal)),
                    }
                }
                WaitProj::Answer { acquire, timer, patience, fresh } => match acquire.poll(cx) {
                    Poll::Ready(grant) => answered(grant, *patience, fresh, limiter, service, after),
                    Poll::Pending => {
                        hold_nothing(fresh, service);
                        ready!(deadline::poll_passed(timer, patience.deadline, cx));
                        refuse_or(Refusal::new(Reason::DeadlineExceeded), limiter, Wait::shadowed)
                    }
                },
                WaitProj::Pause { pause, patience } => Continue(match ready!(pause.poll(cx)) {
                    Paused::ByShadow => Wait::readiness(None, None),
                    Paused::ToTheEnd => match limiter.ask_again(protocol, request) {
                        Some(acquire) => Wait::Answer { acquire, timer: None, patience: *patience, fresh: false },
                        None => Wait::readiness(None, patience.deadline),
                    },
                }),
                WaitProj::Readiness { ticket, timer, deadline, booked } => match outline::poll_ready(service, cx) {
                    // It may be polled long after its turn has come: nothing is begun past its deadline.
                    Poll::Ready(Ok(())) if !deadline::is_behind(*deadline) => {
                        if *booked == Booked::WhenMade {
                            limiter.goes();
                        }
                        if let Some(ticket) = ticket.take() {
                            ticket.used();
                        }
                        Break(Go::Call)
                    }
                    Poll::Ready(Err(error)) => Break(Go::Broken(error)),
                    ready => {
                        if ready.is_pending() {
                            ready!(deadline::poll_passed(timer, *deadline, cx));
                        }
                        let refusal = Refusal::new(Reason::DeadlineExceeded);
                        refuse_or(refusal, limiter, || Wait::Readiness {
                            ticket: ticket.take(),
                            timer: None,
                            deadline: None,
                            booked: Booked::Already,
                        })
                    }
                },
            };
            match then {
                Continue(wait) => self.set(wait),
                Break(go) => return Poll::Ready(go),
            }
        }
    }
}

/// The store has answered.
fn answered<S: Clone, St: Engine, E>(
    grant: Grant,
    patience: Patience,
    fresh: &mut bool,
    limiter: &Shared<Limiter<St>>,
    service: &mut S,
    after: &mut After,
) -> Then<St, E> {
    match limiter.answered(grant, patience.until) {
        Ok(Ok(granted)) => {
            *after = granted;
            if *fresh && !deadline::is_behind(patience.deadline) {
                limiter.goes();
                return Break(Go::Call);
            }
            Continue(Wait::readiness(None, patience.deadline))
        }
        Ok(Err(refusal)) => match refuse_or(refusal, limiter, Wait::shadowed) {
            Continue(_) if *fresh => Break(Go::Call),
            then => then,
        },
        Err(at) => {
            hold_nothing(fresh, service);
            match limiter.instant(at) {
                Some(at) => Continue(Wait::Pause { pause: Pause::new(at, limiter.clone()), patience }),
                None => Break(Go::Refused(Refusal::late(at, limiter.now()))),
            }
        }
    }
}

/// It is refused; in shadow this comes instead.
fn refuse_or<St: Engine, E>(refusal: Refusal, limiter: &Limiter<St>, go_on: impl FnOnce() -> Wait<St>) -> Then<St, E> {
    if limiter.refuses(refusal.reason) { Break(Go::Refused(refusal)) } else { Continue(go_on()) }
}

/// Whoever waits holds nothing of the inner service.
fn hold_nothing<S: Clone>(fresh: &mut bool, service: &mut S) {
    if mem::take(fresh) {
        give_back(service);
    }
}
