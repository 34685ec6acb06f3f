//! The future of a call at an adaptive rate.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    adaptive_rate::{
        call::Call,
        controller::Controller,
        line::Place,
        pacer::{Turn, Unit},
    },
    deadline::{self, Deadline},
    outline,
    permit::Permit,
    polled::{POLLED, take},
    protocol::Protocol,
    rejection::Rejection,
    stripe::Shared,
    time::{Sleep, Span, poll_at},
};

pin_project! {
    /// The response of a call at an adaptive rate.
    ///
    /// A call that waits holds nothing of the inner service; dropping it gives its place back. What has come of the
    /// call is told when the response is over.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, S, P, C, Req> {
        #[pin]
        state: State<F, S, Req>,
        protocol: P,
        context: C,
        permit: Option<Permit<Call>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, S, Req> {
        Running { #[pin] inner: F },
        // Only what it comes to: the rejection is made when it is asked for.
        Refused { retry_after: Span, controller: Shared<Controller> },
        // In a box of its own: every call that does not wait would be moved about with room for a request and a timer.
        Waiting { call: Pin<Box<Waiting<S, Req>>> },
    }
}

pin_project! {
    struct Waiting<S, Req> {
        // Of its turn, and then of the deadline.
        #[pin]
        timer: Option<Sleep>,
        wait: Wait,
        deadline: Option<Deadline>,
        service: S,
        request: Option<Req>,
    }
}

/// For what a call waits. What it has of the rate is given back if it is not made.
pub(crate) struct Wait {
    controller: Shared<Controller>,
    has: Has,
}

enum Has {
    /// A place in the line, until then at the latest.
    Place(Place, u64),
    /// Its turn has come, and it waits for the inner service.
    Unit(Unit),
    /// As with a unit; there was no rate, or there is a shadow.
    Nothing,
}

impl Wait {
    pub(crate) fn for_turn(place: Place, latest: u64, controller: Shared<Controller>) -> Self {
        Wait { controller, has: Has::Place(place, latest) }
    }

    pub(crate) fn for_readiness(unit: Option<Unit>, controller: Shared<Controller>) -> Self {
        Wait { controller, has: unit.map_or(Has::Nothing, Has::Unit) }
    }

    /// Waits for the turn. `Err`: it comes too late, by so much.
    fn poll_turn(&mut self, mut timer: Pin<&mut Option<Sleep>>, cx: &mut Context<'_>) -> Poll<Result<(), Span>> {
        while let Has::Place(place, latest) = self.has {
            let now = self.controller.now();
            match self.controller.pacer.look(place, now, latest, cx.waker()) {
                Turn::Now(unit) => self.has = Has::Unit(unit),
                Turn::Late(turn) => {
                    self.has = Has::Nothing;
                    if let Some(by) = self.controller.too_early(turn, now) {
                        return Poll::Ready(Err(by));
                    }
                }
                // Asked once it has left its waker, so that a shadow that comes now finds it.
                Turn::At(_) if self.controller.in_shadow() => self.give_back(),
                Turn::At(at) => {
                    // Beyond the clock's range the line alone calls it.
                    let Some(at) = self.controller.instant(at) else { return Poll::Pending };
                    ready!(poll_at(timer.as_mut(), at, cx));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn give_back(&mut self) {
        match mem::replace(&mut self.has, Has::Nothing) {
            Has::Place(place, _) => self.controller.pacer.leave(place),
            Has::Unit(unit) => self.controller.pacer.give_back(unit),
            Has::Nothing => {}
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl<F, S, P, C, Req> ResponseFuture<F, S, P, C, Req> {
    #[inline(always)]
    pub(crate) fn running(inner: F, protocol: P, context: C, permit: Permit<Call>) -> Self {
        ResponseFuture { state: State::Running { inner }, protocol, context, permit: Some(permit) }
    }

    #[inline(always)]
    pub(crate) fn refused(retry_after: Span, protocol: P, context: C, controller: Shared<Controller>) -> Self {
        let state = State::Refused { retry_after, controller };
        ResponseFuture { state, protocol, context, permit: None }
    }

    /// Waits for its turn, where that has not come, and then for the inner service, by the deadline.
    #[inline(always)]
    pub(crate) fn waiting(
        wait: Wait,
        deadline: Option<Deadline>,
        (service, request): (S, Req),
        protocol: P,
        context: C,
    ) -> Self {
        let call = Box::pin(Waiting { timer: None, wait, deadline, service, request: Some(request) });
        ResponseFuture { state: State::Waiting { call }, protocol, context, permit: None }
    }
}

/// What came of a call that waited.
enum Went<F, E> {
    Made(F, Permit<Call>),
    Late(Rejection),
    /// The inner service did not become ready.
    Broken(E),
}

impl<S, Req> Waiting<S, Req> {
    #[inline(never)]
    fn poll<P>(self: Pin<&mut Self>, protocol: &P, cx: &mut Context<'_>) -> Poll<Went<S::Future, S::Error>>
    where
        S: Service<Req>,
        P: Protocol<Req, S::Response, S::Error>,
    {
        let mut this = self.project();
        if let Has::Place(..) = this.wait.has {
            if let Err(by) = ready!(this.wait.poll_turn(this.timer.as_mut(), cx)) {
                return Poll::Ready(Went::Late(this.wait.controller.rejection(by)));
            }
            this.timer.set(None);
        }
        let controller = &this.wait.controller;
        match outline::poll_ready(this.service, cx) {
            // It may be polled long after its turn has come: nothing is begun past its deadline.
            Poll::Ready(Ok(())) if !deadline::is_behind(*this.deadline) => {}
            Poll::Ready(Err(error)) => {
                this.wait.give_back();
                return Poll::Ready(Went::Broken(error));
            }
            ready => {
                if ready.is_pending() {
                    ready!(deadline::poll_passed(this.timer, *this.deadline, cx));
                }
                if let Some(rejection) = controller.late() {
                    this.wait.give_back();
                    return Poll::Ready(Went::Late(rejection));
                }
                // In shadow it goes on, however long that takes.
                *this.deadline = None;
                if ready.is_pending() {
                    return Poll::Pending;
                }
            }
        }
        let mut permit = Permit::new(Call::new(controller.clone()));
        this.wait.has = Has::Nothing;
        let mut request = take(this.request);
        deadline::shorten(protocol, &mut request);
        let inner = permit.guard(|| outline::call(this.service, request));
        Poll::Ready(Went::Made(inner, permit))
    }
}

impl<S, P, Req> Future for ResponseFuture<S::Future, S, P, P::Context, Req>
where
    S: Service<Req> + Clone,
    P: Protocol<Req, S::Response, S::Error>,
{
    type Output = Result<P::Response<Permit<Call>>, P::Error>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            match this.state.as_mut().project() {
                StateProj::Running { inner } => {
                    let permit = this.permit.as_mut().expect(POLLED);
                    let result = ready!(permit.guard(|| inner.poll(cx)));
                    #[cfg(feature = "http")]
                    let controller = permit.keeper().map(|call| call.controller().clone());
                    let answer = this.protocol.finish(this.context, result, this.permit);
                    #[cfg(feature = "http")]
                    if let Poll::Ready(Ok(answer)) = &answer
                        && let Some(controller) = controller
                        && let Some(headers) = P::headers_of_the_backend(answer)
                        && let Some(after) = super::remaining::nothing_for(headers)
                    {
                        controller.hold(after);
                    }
                    return answer;
                }
                StateProj::Refused { retry_after, controller } => {
                    let rejection = controller.rejection(*retry_after);
                    return Poll::Ready(this.protocol.reject(this.context, rejection));
                }
                StateProj::Waiting { call } => match ready!(call.as_mut().poll(this.protocol, cx)) {
                    Went::Made(inner, permit) => {
                        *this.permit = Some(permit);
                        this.state.set(State::Running { inner });
                    }
                    Went::Late(rejection) => return Poll::Ready(this.protocol.reject(this.context, rejection)),
                    Went::Broken(error) => return Poll::Ready(Err(P::error(error))),
                },
            }
        }
    }
}

impl<F, S, P, C, Req> fmt::Debug for ResponseFuture<F, S, P, C, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
