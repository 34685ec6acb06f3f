//! What a call does that was not answered at once.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tower_service::Service;

use super::{Attempt, Ended, Failure, First, Held, Output, ResponseFuture, Rest, Stage, open};
use crate::{
    hedge::hedger::Meaning,
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
    /// Polls all that there is, until the call is over or all of it is pending. An answer that is there wins over a turn that
    /// has come.
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
            } else if let Some(output) = ready!(self.as_mut().next(cx)) {
                return Poll::Ready(output);
            }
            from = 1;
        }
    }

    /// Polls the attempts from this one on. The first that has ended.
    fn poll_attempts(mut self: Pin<&mut Self>, from: u32, cx: &mut Context<'_>) -> Option<(u32, Ended<S, P, Req>)> {
        for number in from..=self.made() {
            if self.is_cut(number) {
                self.as_mut().drop_attempt(number);
                continue;
            }
            let attempt = self.as_mut().attempt(number);
            if let Poll::Ready(result) = attempt.poll_it(cx) {
                let kept = self.project().kept;
                return Some((number, kept.protocol.hold(&kept.context, result)));
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
        match kept.protocol.poll_peek(&kept.context, &mut held, cx) {
            Poll::Ready(Some(end)) if end != End::Outcome(Outcome::Success) => self.ended(number, end, Ok(held)),
            _ => Some(Ok(self.succeeded(number, held))),
        }
    }

    fn succeeded(mut self: Pin<&mut Self>, number: u32, held: Held<S, P, Req>) -> P::Response<()> {
        if number == 1 || self.is_running(1) {
            self.measure();
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
        if end == End::TimedOut && number == 1 {
            self.measure();
        }
        let meaning = Meaning::of(end, verdict);
        let next = meaning == Meaning::Failed && self.as_mut().after_a_failure();
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
        if kept.pays {
            kept.shared.count_in_tokens(verdict);
        }
        kept.shared.report(number, end.outcome(), next.then_some(Duration::ZERO));
        over.then(|| held.map(|held| kept.protocol.pass(&kept.context, held, None)))
    }

    /// Does the next attempt come at once (or is it about to already)?
    fn after_a_failure(mut self: Pin<&mut Self>) -> bool {
        let now = time::now();
        match self.stage() {
            Stage::Starting(_) | Stage::Last => {}
            // A hedge that does not know yet when to be of use stays out of the way.
            Stage::New if self.kept.shared.delay.now(now).is_none() => self.as_mut().no_more(),
            Stage::New | Stage::Waiting | Stage::Idle => self.as_mut().turn(now),
        }
        if matches!(self.stage(), Stage::Starting(_)) && !self.is_any_running() {
            // Nobody reads the request's body until the next attempt does: what was given up must not read it away.
            let this = self.as_mut().project();
            let original = this.spare.as_ref().and_then(|spare| spare.original.as_ref());
            if !original.is_some_and(|original| this.kept.protocol.give_up(original)) {
                self.as_mut().no_more();
            }
        }
        matches!(self.stage(), Stage::Starting(_))
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
        self.no_more();
    }

    fn attempt(self: Pin<&mut Self>, number: u32) -> Pin<&mut Attempt<S::Future>> {
        let this = self.project();
        if number == 1 { this.first } else { open(this.rest).others.attempt(number).expect("it was made") }
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
        let mut attempt = self.as_mut().attempt(number);
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

    /// Has another attempt the rest of the request's body, so that this one can't succeed? The last that runs is left to find
    /// that out by itself: its error is the call's.
    fn is_cut(&self, number: u32) -> bool {
        let others = (1..=self.made()).any(|n| n != number && self.is_running(n));
        let original = self.spare.as_ref().and_then(|spare| spare.original.as_ref());
        others && original.is_some_and(|original| self.kept.protocol.is_cut(original, number - 1))
    }

    /// How long the first attempt took; or, where another one was better, how long it was waited for. Nothing is learnt from
    /// the others: those that win are short, that is why they win.
    fn measure(&self) {
        if let Some(since) = self.rest().since {
            self.kept.shared.measure(since);
        }
    }

    pub(super) fn reject(mut self: Pin<&mut Self>) -> Output<S, P, Req> {
        let kept = self.as_mut().project().kept;
        kept.protocol.reject(&kept.context, kept.shared.ledger.late())
    }
}
