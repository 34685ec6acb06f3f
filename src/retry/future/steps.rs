//! What comes after an attempt: looking into its response, waiting, becoming ready, the next one.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tower_service::Service;

use super::{
    Answer, Attempt, AttemptProj, Held, Output, ResponseFuture, Rest, Spare, Step, StepOf, StepProj, note_wait,
    wait::{Wait, poll_patience, poll_ready_in_time},
};
use crate::{
    budget::Budget,
    deadline::Deadline,
    observe::StoppedBy,
    on_panic::on_panic,
    outcome::{End, Outcome},
    outline,
    polled::{POLLED, take},
    protocol::{Judged, Mark},
    retry::{
        Attempts, Stopped,
        retrier::{Ended, Further, Retrier},
        verdict::Retryable,
    },
    time::Span,
};

/// After so many attempts others get their turn: those that end at once and have no wait between them would go on in
/// one poll.
const AT_ONCE: u32 = 32;

impl<S, P, Req> ResponseFuture<S, P, Req>
where
    S: Service<Req>,
    P: Retryable<Req, S::Response, S::Error>,
{
    #[inline(always)]
    pub(super) fn succeeded(self: Pin<&mut Self>, mut held: Held<S, P, Req>) -> Poll<Output<S, P, Req>> {
        let this = self.project();
        if let Some(since) = *this.waited_since {
            this.shared.measure(since);
        }
        this.shared.succeeded(*this.number);
        P::note(&mut held, Attempts { made: *this.number, stopped: Stopped::Succeeded });
        this.protocol.pass_at_once(this.context, held, None)
    }

    /// The attempt has ended, and not well. `None`: the call goes on, with the next attempt made already where there is
    /// nothing to wait for and it may be made here.
    #[inline(always)]
    pub(super) fn ended(
        mut self: Pin<&mut Self>,
        end: End,
        held: Answer<S, P, Req>,
        at_once: Option<&mut Context<'_>>,
    ) -> Option<Output<S, P, Req>> {
        let mut this = self.as_mut().project();
        let context = &*this.context;
        let verdict = this.protocol.verdict(context, *this.safe, end, held.as_ref());
        let ended = Ended { number: *this.number, end, verdict, deadline: *this.deadline };
        let (protocol, spare) = (&*this.protocol, this.spare.as_ref());
        let own_budget = own_budget(this.protocol, this.shared, this.spare);
        let budget = own_budget.as_ref().unwrap_or(&this.shared.budget);
        let next = this.shared.next(
            budget,
            ended,
            this.last_delay,
            |unsent| spare.is_some_and(|s| protocol.can_again(&s.original, unsent)),
            |unsent| spare.is_some_and(|s| protocol.give_up(&s.original, unsent)),
        );
        let Further { delay, taken } = match next {
            Ok(further) => further,
            Err(stopped) => {
                // There is none left where this attempt was the last one when it began.
                let used_up = stopped == Stopped::BodyTooLarge && this.spare.is_none();
                let stopped = if used_up { Stopped::Attempts } else { stopped };
                let attempts = Attempts { made: *this.number, stopped };
                return Some(held.map(|held| pass(this.protocol, this.context, held, attempts)));
            }
        };
        let GivenUp { rest, last } = give_up::<S, P, Req>(held, this.deadline.is_some());
        let yields = this.number.is_multiple_of(AT_ONCE);
        if let Some(cx) = at_once
            && delay == Span::ZERO
            && rest.is_none()
            && this.deadline.is_none()
            && !yields
        {
            // The attempt that failed is dropped before the next one is begun.
            let ready = || {
                this.attempt.set(Attempt::Gone);
                this.spare.as_mut().expect(POLLED).service.poll_ready(cx)
            };
            match on_panic(|| budget.give_back(taken), ready) {
                Poll::Ready(Ok(())) => {
                    self.call_again(own_budget, S::call);
                    return None;
                }
                Poll::Ready(Err(error)) => {
                    budget.give_back(taken);
                    let made = *this.number;
                    self.stop(Step::Refused { made });
                    return Some(Err(P::error(error)));
                }
                Poll::Pending => {}
            }
        }
        let reservation = Some(budget.hold(taken));
        self.stop(Step::Waiting { timer: None, wait: Wait::new(delay, yields), rest, reservation, last });
        None
    }

    /// Here the future of the attempt goes, and this comes instead.
    pub(super) fn stop(self: Pin<&mut Self>, step: StepOf<S, P, Req>) {
        let mut this = self.project();
        this.attempt.set(Attempt::Gone);
        this.step.set(Some(step));
    }

    /// No attempt runs. `Ready(None)`: now one does, or has ended.
    #[inline(never)]
    pub(super) fn between(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Output<S, P, Req>>> {
        let mut this = self.as_mut().project();
        let panicked = || this.shared.reporter().panicked(*this.number);
        if let AttemptProj::Paid { inner, payment } = this.attempt.as_mut().project() {
            let Poll::Ready(result) = on_panic(panicked, || payment.during(|| outline::poll(inner, cx))) else {
                note_wait(this.waited_since);
                return Poll::Pending;
            };
            return Poll::Ready(match this.protocol.hold(this.context, result) {
                Judged::Good(held) => return self.succeeded(held).map(Some),
                Judged::Bad(end, held) => self.ended(end, held, None),
                Judged::Unclear(held) => {
                    self.stop(Step::Peeking { held: Some(held), patience: None });
                    None
                }
            });
        }
        match this.step.as_mut().as_pin_mut().expect(POLLED).project() {
            StepProj::Peeking { held, patience } => {
                let context = &*this.context;
                let look = || this.protocol.poll_peek(context, held.as_mut().expect(POLLED), cx);
                let looked = match on_panic(panicked, look) {
                    Poll::Ready(end) => end,
                    Poll::Pending => {
                        note_wait(this.waited_since);
                        ready!(poll_patience(patience, this.shared.settings.peek(), *this.deadline, cx));
                        None
                    }
                };
                let held = take(held);
                Poll::Ready(match looked {
                    // A message came, or none in time: the rest is the caller's.
                    None | Some(End::Outcome(Outcome::Success)) => return self.succeeded(held).map(Some),
                    Some(end) => self.ended(end, Ok(held), None),
                })
            }
            StepProj::Waiting { timer, wait, rest, reservation, last } => {
                ready!(wait.poll::<S, P, Req>(timer, rest, cx));
                let (reservation, last) = (reservation.take(), last.take());
                this.step.set(Some(Step::Readying { timer: None, reservation, last }));
                Poll::Ready(None)
            }
            StepProj::Readying { timer, reservation, last } => {
                let service = &mut this.spare.as_mut().expect(POLLED).service;
                let in_time = ready!(poll_ready_in_time(service, timer, *this.deadline, cx));
                let (reservation, last) = (reservation.take(), last.take());
                Poll::Ready(match in_time {
                    Ok(true) => {
                        if let Some(reservation) = reservation {
                            reservation.spend();
                        }
                        // What there is of the last attempt goes before the next one is begun.
                        drop(last);
                        this.step.set(None);
                        let own_budget = own_budget(this.protocol, this.shared, this.spare);
                        self.call_again(own_budget, outline::call);
                        None
                    }
                    Ok(false) => Some(self.too_late(last)),
                    // What was taken from the budget goes back now, not when somebody drops this.
                    Err(error) => {
                        this.step.set(Some(Step::Refused { made: *this.number }));
                        Some(Err(P::error(error)))
                    }
                })
            }
            StepProj::Refused { made } => {
                let made = *made;
                Poll::Ready(Some(self.reject(made)))
            }
        }
    }

    /// The instance is ready. The budget is that of the call, where each key has one.
    #[inline(always)]
    fn call_again(self: Pin<&mut Self>, own_budget: Option<Budget>, call: impl FnOnce(&mut S, Req) -> S::Future) {
        let mut this = self.project();
        let Spare { mut service, original } = take(this.spare);
        let settings = &this.shared.settings;
        let (original, mut request) = this.protocol.again(original, *this.number + 1 >= settings.attempts());
        let mark = Mark {
            previous: *this.number,
            left: this.deadline.map(Deadline::remaining),
            #[cfg(feature = "http")]
            header: settings.fixed.header.as_ref(),
            #[cfg(not(feature = "http"))]
            header: std::marker::PhantomData,
        };
        this.protocol.mark(&mut request, &mark);
        this.shared.count_further();
        *this.number += 1;
        *this.waited_since = None;
        let budget = own_budget.as_ref().unwrap_or(&this.shared.budget);
        match this.shared.payment(budget) {
            None => {
                let inner = on_panic(|| this.shared.reporter().panicked(*this.number), || call(&mut service, request));
                this.attempt.set(Attempt::Running { inner });
            }
            Some(payment) => {
                let call = || payment.during(|| outline::call(&mut service, request));
                let inner = on_panic(|| this.shared.reporter().panicked(*this.number), call);
                this.attempt.set(Attempt::Paid { inner, payment });
            }
        }
        *this.spare = original.map(|original| Spare { service, original });
    }

    /// The deadline came before the next attempt could be made: what there is of the last answer is the call's.
    fn too_late(mut self: Pin<&mut Self>, last: Option<Answer<S, P, Req>>) -> Output<S, P, Req> {
        let mut this = self.as_mut().project();
        *this.spare = None;
        let made = *this.number;
        let Some(last) = last else {
            // It was given up for the attempt that can't be made any more.
            this.shared.ledger.refuse_late();
            return self.reject(made);
        };
        this.step.set(Some(Step::Refused { made }));
        this.shared.count_stopped(StoppedBy::Deadline);
        let attempts = Attempts { made, stopped: Stopped::Deadline };
        last.map(|held| pass(this.protocol, this.context, held, attempts))
    }

    fn reject(self: Pin<&mut Self>, made: u32) -> Output<S, P, Req> {
        let mut this = self.project();
        this.step.set(Some(Step::Refused { made }));
        let attempts = Attempts { made, stopped: Stopped::Deadline };
        let mut rejected = this.protocol.reject(this.context, this.shared.ledger.late())?;
        P::note_rejection(&mut rejected, attempts);
        Ok(rejected)
    }
}

/// What becomes of an answer that is given up for a further attempt.
struct GivenUp<R, A> {
    /// It is read, for the sake of its connection.
    rest: Option<R>,
    /// It is kept, for a deadline that may come first.
    last: Option<A>,
}

#[inline(always)]
fn give_up<S, P, Req>(answer: Answer<S, P, Req>, keeps: bool) -> GivenUp<Rest<S, P, Req>, Answer<S, P, Req>>
where
    S: Service<Req>,
    P: Retryable<Req, S::Response, S::Error>,
{
    // No arm for both, for an error would be moved there and asked about again.
    match answer {
        Ok(held) if keeps && P::is_whole(&held) => GivenUp { rest: None, last: Some(Ok(P::bare(held))) },
        Ok(held) => GivenUp { rest: P::rest(held), last: None },
        Err(error) if keeps => GivenUp { rest: None, last: Some(Err(error)) },
        Err(_) => GivenUp { rest: None, last: None },
    }
}

/// The budget of a call, where each key has one.
#[inline(always)]
fn own_budget<S, P, Req, Res, Err>(
    protocol: &P,
    retrier: &Retrier,
    spare: &Option<Spare<S, P::Original>>,
) -> Option<Budget>
where
    P: Retryable<Req, Res, Err>,
{
    let head = || spare.as_ref().and_then(|spare| protocol.head_of(&spare.original));
    retrier.budget.own::<P, Req, Res, Err>(head)
}

#[inline(always)]
fn pass<P, Req, Res, Err>(protocol: &P, context: &P::Context, mut held: P::Held, attempts: Attempts) -> P::Response<()>
where
    P: Retryable<Req, Res, Err>,
{
    P::note(&mut held, attempts);
    protocol.pass(context, held, None)
}
