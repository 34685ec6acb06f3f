//! What a call waits for: its turn, the answer of a store, the inner service.

use std::{
    future::Future,
    mem,
    ops::ControlFlow::{self, Break, Continue},
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    deadline::{self, Deadline},
    instance::give_back,
    outline,
    protocol::Protocol,
    rate_limit::{
        Engine,
        decision::{After, Patience, Refusal},
        limiter::Limiter,
        pause::{Pause, Paused},
        store::Grant,
        ticket::{Booked, Ticket},
    },
    rejection::Reason,
    stripe::Shared,
    time::Sleep,
};

pin_project! {
    #[project = WaitProj]
    pub(super) enum Wait<St: Engine> {
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

/// Where a wait has led to.
pub(super) enum Go<E> {
    Call,
    Refused(Refusal),
    Broken(E),
}

/// What comes after a part of a wait: another, or the end of it.
type Then<St, E> = ControlFlow<Go<E>, Wait<St>>;

impl<St: Engine> Wait<St> {
    pub(super) fn turn(ticket: Ticket<St>, patience: Patience) -> Self {
        Wait::Turn { timer: None, ticket: Some(ticket), patience }
    }

    pub(super) fn answer(acquire: St::Acquire, patience: Patience, fresh: bool) -> Self {
        Wait::Answer { acquire, timer: None, patience, fresh }
    }

    pub(super) fn readiness(ticket: Option<Ticket<St>>, deadline: Option<Deadline>) -> Self {
        Wait::Readiness { ticket, timer: None, deadline, booked: Booked::WhenMade }
    }

    /// It goes only because of the shadow, however long that takes.
    pub(super) fn shadowed() -> Self {
        Wait::Readiness { ticket: None, timer: None, deadline: None, booked: Booked::Already }
    }

    pub(super) fn poll<S, Req, P>(
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
                WaitProj::Turn { timer, ticket, patience } => ready!(poll_turn(timer, ticket, *patience, limiter, cx)),
                WaitProj::Answer { acquire, timer, patience, fresh } => match acquire.poll(cx) {
                    Poll::Ready(grant) => answered(grant, *patience, fresh, limiter, service, after),
                    Poll::Pending => {
                        hold_nothing(fresh, service);
                        ready!(deadline::poll_passed(timer, patience.deadline, cx));
                        refuse_or(Refusal::new(Reason::DeadlineExceeded), limiter, Wait::shadowed)
                    }
                },
                WaitProj::Pause { pause, patience } => match ready!(pause.poll(cx)) {
                    Paused::ByShadow => Continue(Wait::readiness(None, None)),
                    // No unit is spent on what nobody waits for.
                    Paused::ToTheEnd if deadline::is_behind(patience.deadline) => {
                        refuse_or(Refusal::new(Reason::DeadlineExceeded), limiter, Wait::shadowed)
                    }
                    Paused::ToTheEnd => match limiter.ask_again(protocol, request) {
                        Ok(Some(acquire)) => Continue(Wait::answer(acquire, *patience, false)),
                        Ok(None) => Continue(Wait::readiness(None, patience.deadline)),
                        Err(refusal) => refuse_or(refusal, limiter, Wait::shadowed),
                    },
                },
                WaitProj::Readiness { ticket, timer, deadline, booked } => {
                    let ready = outline::poll_ready(service, cx);
                    ready!(poll_readiness(ready, ticket, timer, *deadline, *booked, limiter, cx))
                }
            };
            match then {
                Continue(wait) => self.set(wait),
                Break(go) => return Poll::Ready(go),
            }
        }
    }
}

/// In the line; once it is in shadow nobody waits there.
fn poll_turn<St: Engine, E>(
    timer: Pin<&mut Option<Sleep>>,
    ticket: &mut Option<Ticket<St>>,
    patience: Patience,
    limiter: &Limiter<St>,
    cx: &mut Context<'_>,
) -> Poll<Then<St, E>> {
    let Some(own) = ticket else { return Poll::Pending };
    let come = match own.poll(timer, cx, patience.until) {
        Poll::Pending if limiter.in_shadow() => {
            own.goes_early();
            Ok(Booked::WhenMade)
        }
        come => ready!(come),
    };
    Poll::Ready(match come {
        Ok(booked) => Continue(Wait::Readiness {
            ticket: ticket.take(),
            timer: None,
            deadline: patience.deadline.filter(|_| !limiter.in_shadow()),
            booked,
        }),
        Err(refusal) => Break(Go::Refused(refusal)),
    })
}

/// It has its turn, and waits for the inner service, of which `ready` is what it says.
fn poll_readiness<St: Engine, E>(
    ready: Poll<Result<(), E>>,
    ticket: &mut Option<Ticket<St>>,
    timer: Pin<&mut Option<Sleep>>,
    deadline: Option<Deadline>,
    booked: Booked,
    limiter: &Limiter<St>,
    cx: &mut Context<'_>,
) -> Poll<Then<St, E>> {
    Poll::Ready(match ready {
        // It may be polled long after its turn has come: nothing is begun past its deadline.
        Poll::Ready(Ok(())) if !deadline::is_behind(deadline) => {
            if booked == Booked::WhenMade {
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
                ready!(deadline::poll_passed(timer, deadline, cx));
            }
            let refusal = Refusal::new(Reason::DeadlineExceeded);
            refuse_or(refusal, limiter, || Wait::Readiness {
                ticket: ticket.take(),
                timer: None,
                deadline: None,
                booked: Booked::Already,
            })
        }
    })
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
    if limiter.book_refusal(refusal.reason) { Break(Go::Refused(refusal)) } else { Continue(go_on()) }
}

/// Whoever waits holds nothing of the inner service.
fn hold_nothing<S: Clone>(fresh: &mut bool, service: &mut S) {
    if mem::take(fresh) {
        give_back(service);
    }
}
