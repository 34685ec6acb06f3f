//! What a call does that was not answered at once.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tower_service::Service;

use super::{Attempt, Ended, Failure, First, Held, Output, ResponseFuture, Rest, Stage, Waited, open};
use crate::{
    hedge::hedger::Meaning,
    on_panic::on_panic,
    outcome::{End, Outcome},
    permit::Cause,
    polled::POLLED,
    protocol::Judged,
    retry::Retryable,
    time,
};

impl<S, P, Req> ResponseFuture<S, P, Req>
where
    S: Service<Req>,
    P: Retryable<Req, S::Response, S::Error>,
{
    /// Polls all that there is, until the call is over or all of it is pending. An answer that is there wins over a
    /// turn that has come.
    #[cold]
    #[inline(never)]
    pub(super) fn go_on(
        mut self: Pin<&mut Self>,
        first: First<S, P, Req>,
        cx: &mut Context<'_>,
    ) -> Poll<Output<S, P, Req>>
    where
        S: Clone,
    {
        if self.rest.is_none() {
            if matches!(first, First::Unknown) {
                return Poll::Ready(self.reject());
            }
            self.as_mut().project().rest.set(Some(Rest::new()));
        }
        let (mut from, mut ended) = match first {
            First::Unknown => (1, None),
            First::Pending => (2, None),
            First::Ended(judged) => {
                self.as_mut().project().first.set(Attempt::Gone);
                (2, Some((1, judged)))
            }
        };
        loop {
            if let Some((number, judged)) = ended.take().or_else(|| self.as_mut().poll_attempts(from, cx)) {
                if let Some(output) = self.as_mut().judged(number, judged, cx) {
                    return Poll::Ready(output);
                }
                // What has failed may have cut others off.
                from = 1;
            } else {
                // Those that are there are pending. One may come.
                from = self.made() + 1;
                if let Some(output) = ready!(self.as_mut().next(cx)) {
                    return Poll::Ready(output);
                }
            }
        }
    }

    /// Polls the attempts from this one on. The first that has ended.
    fn poll_attempts(mut self: Pin<&mut Self>, from: u32, cx: &mut Context<'_>) -> Option<(u32, Ended<S, P, Req>)> {
        for number in from..=self.made() {
            if self.is_cut(number) {
                if number == 1 {
                    self.as_mut().waited().forget();
                }
                self.as_mut().drop_attempt(number);
                continue;
            }
            let this = self.as_mut().project();
            let attempt = attempt_of(this.first, this.rest, number);
            let polled = on_panic(|| this.kept.shared.reporter().panicked(number), || attempt.poll_it(cx));
            if let Poll::Ready(result) = polled {
                return Some((number, this.kept.protocol.hold(&this.kept.context, result)));
            }
        }
        None
    }

    /// The head has come, or an error. `None`: the call goes on.
    fn judged(
        mut self: Pin<&mut Self>,
        number: u32,
        judged: Ended<S, P, Req>,
        cx: &mut Context<'_>,
    ) -> Option<Output<S, P, Req>> {
        let mut held = match judged {
            Judged::Good(held) => return Some(Ok(self.succeeded(number, held))),
            Judged::Bad(end, held) => return self.ended(number, end, held),
            Judged::Unclear(held) => held,
        };
        // Trailers that are there already are seen, and others not waited for.
        let kept = self.as_mut().project().kept;
        let look = || kept.protocol.poll_peek(&kept.context, &mut held, cx);
        match on_panic(|| kept.shared.reporter().panicked(number), look) {
            Poll::Ready(Some(end)) if end != End::Outcome(Outcome::Success) => self.ended(number, end, Ok(held)),
            _ => Some(Ok(self.succeeded(number, held))),
        }
    }

    fn succeeded(mut self: Pin<&mut Self>, number: u32, held: Held<S, P, Req>) -> P::Response<()> {
        if number == 1 || self.is_running(1) {
            self.as_mut().waited().learn();
        }
        self.as_mut().finish(number);
        let kept = self.project().kept;
        if number > 1 {
            kept.shared.won();
        }
        kept.shared.succeeded(number, kept.pays);
        kept.protocol.pass(&kept.context, held, None)
    }

    /// An attempt has ended, and not well. `None`: the call goes on.
    fn ended(
        mut self: Pin<&mut Self>,
        number: u32,
        end: End,
        held: Result<Held<S, P, Req>, Failure<S, P, Req>>,
    ) -> Option<Output<S, P, Req>> {
        let this = self.as_mut().project();
        let verdict = this.kept.protocol.verdict(&this.kept.context, this.spare.is_some(), end, held.as_ref());
        match number {
            1 if end == End::TimedOut => self.as_mut().waited().learn(),
            1 => self.as_mut().waited().forget(),
            _ => {}
        }
        let meaning = Meaning::of(end, verdict);
        let taken = meaning == Meaning::Failed && self.as_mut().after_a_failure();
        let next = meaning == Meaning::Failed && matches!(self.stage(), Stage::Starting(_));
        if meaning == Meaning::Enough {
            // Gives up one that waits for readiness, too.
            self.as_mut().no_more();
        }
        let over = meaning == Meaning::Over || !next && !self.is_any_running();
        if over {
            self.as_mut().finish(number);
        } else {
            self.as_mut().only_one_reads();
        }
        let kept = self.project().kept;
        // What comes of the call is counted by a retry around it that has paid for it; what that does not get to see is
        // not.
        if !taken && (kept.pays || !over) {
            kept.shared.count_in_tokens(verdict);
        }
        kept.shared.report(number, end.outcome(), next.then_some(Duration::ZERO));
        over.then(|| held.map(|held| kept.protocol.pass(&kept.context, held, None)))
    }

    /// The next attempt comes at once, if there may be one. Was it taken from the budget now?
    fn after_a_failure(mut self: Pin<&mut Self>) -> bool {
        let now = time::now();
        let mut taken = false;
        match self.stage() {
            Stage::Starting(_) | Stage::Last => {}
            // A hedge that does not know yet when to be of use stays out of the way.
            Stage::New if self.kept.shared.delay.current(now).is_none() => self.as_mut().no_more(),
            Stage::New | Stage::Waiting | Stage::Idle => taken = self.as_mut().turn(true, now),
        }
        if matches!(self.stage(), Stage::Starting(_)) && !self.is_any_running() {
            // Nobody reads the request's body until the next attempt does: what was given up must not read it away.
            let this = self.as_mut().project();
            let original = this.spare.as_ref().and_then(|spare| spare.original.as_ref());
            if !original.is_some_and(|original| this.kept.protocol.give_up(original, false)) {
                self.as_mut().no_more();
            }
        }
        taken
    }

    /// The call has its result: all other attempts go, at once, and whatever the cause for which this runs.
    fn finish(mut self: Pin<&mut Self>, winner: u32) {
        if self.made() > 1 {
            let this = self.as_mut().project();
            if let Some(original) = this.spare.as_ref().and_then(|spare| spare.original.as_ref()) {
                // A transport may hold on to the bodies of the others.
                this.kept.protocol.only(original, winner - 1);
            }
            for number in 1..=self.made() {
                self.as_mut().drop_attempt(number);
            }
        }
        // How long the first one was waited for is known now, whenever somebody drops this.
        *self.as_mut().waited() = Waited::NONE;
        self.no_more();
    }

    fn rest(&self) -> &Rest<S::Future> {
        self.rest.as_ref().expect(POLLED)
    }

    fn made(&self) -> u32 {
        self.rest().made
    }

    fn stage(&self) -> &Stage {
        &self.rest().stage
    }

    fn is_running(&self, number: u32) -> bool {
        if number == 1 { self.first.is_running() } else { self.rest().others.is_running(number) }
    }

    pub(super) fn is_any_running(&self) -> bool {
        (1..=self.made()).any(|number| self.is_running(number))
    }

    fn drop_attempt(mut self: Pin<&mut Self>, number: u32) {
        let this = self.as_mut().project();
        let mut attempt = attempt_of(this.first, this.rest, number);
        if attempt.is_running() {
            Cause::Caller.during(|| attempt.set(Attempt::Gone));
            self.kept.shared.report(number, Outcome::Cancelled, None);
        }
    }

    /// There will be no further attempt.
    pub(super) fn no_more(self: Pin<&mut Self>) {
        let this = self.project();
        let mut rest = open(this.rest);
        *rest.stage = Stage::Last;
        rest.timer.set(None);
        if let Some(spare) = this.spare {
            spare.service = None;
        }
    }

    /// Of the attempts only one is left, and no further one comes.
    fn only_one_reads(self: Pin<&mut Self>) {
        if !matches!(self.stage(), Stage::Last) {
            return;
        }
        let running = (1..=self.made()).filter(|n| self.is_running(*n));
        if let (Some(last), 1) = (running.clone().next(), running.count())
            && let Some(original) = self.spare.as_ref().and_then(|spare| spare.original.as_ref())
        {
            self.kept.protocol.only(original, last - 1);
        }
    }

    /// Has another attempt the rest of the request's body, so that this one can't succeed? The last that runs is left
    /// to find that out by itself: its error is the call's.
    fn is_cut(&self, number: u32) -> bool {
        let others = (1..=self.made()).any(|n| n != number && self.is_running(n));
        let original = self.spare.as_ref().and_then(|spare| spare.original.as_ref());
        others && original.is_some_and(|original| self.kept.protocol.is_cut(original, number - 1))
    }

    fn waited(self: Pin<&mut Self>) -> &mut Waited {
        open(self.project().rest).waited
    }

    pub(super) fn reject(mut self: Pin<&mut Self>) -> Output<S, P, Req> {
        let kept = self.as_mut().project().kept;
        kept.protocol.reject(&kept.context, kept.shared.ledger.late())
    }
}

fn attempt_of<'a, F>(
    first: Pin<&'a mut Attempt<F>>,
    rest: Pin<&'a mut Option<Rest<F>>>,
    number: u32,
) -> Pin<&'a mut Attempt<F>> {
    if number == 1 { first } else { open(rest).others.attempt(number).expect("it was made") }
}
