//! A call that waits, and then is made.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    deadline::{self, Deadline},
    outline,
    polled::{POLLED, take},
    protocol::Protocol,
    rate_limit::{
        Engine,
        decision::{After, Decision, Queued},
        future::{self, Refused},
        limiter::Limiter,
        store::Local,
        ticket::Ticket,
        wait::{Go, Wait},
    },
    stripe::Shared,
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
            Decision::Wait(Queued { bucket, place, units, patience, after }) => {
                let ticket = Ticket { limiter: limiter.clone(), bucket, units, place: Some(place) };
                (Wait::turn(ticket, patience), after)
            }
            Decision::Ask(acquire, patience) => (Wait::answer(acquire, patience, fresh), After::default()),
            // The inner service was not asked whether it is ready, for no unit was there then.
            Decision::Go(after, units) => {
                // With keys that is rare: a deadline had passed then and there is none now. They have given their units
                // for good.
                let local = limiter.store.local().filter(|_| limiter.rules.all_cost_one());
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
