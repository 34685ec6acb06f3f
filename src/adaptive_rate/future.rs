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
    adaptive_rate::controller::{Call, Controller},
    deadline::{self, Deadline},
    permit::Permit,
    polled::{POLLED, take},
    protocol::Protocol,
    rejection::Rejection,
    stripe::Shared,
    time::{Sleep, Span, sleep_until},
};

pin_project! {
    /// The response of a call at an adaptive rate.
    ///
    /// A call that waits holds nothing of the inner service; dropping it gives its place back. What has come of the call is
    /// told when the response is over.
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
        has_come: bool,
        deadline: Option<Deadline>,
        place: Place,
        service: S,
        request: Option<Req>,
    }
}

/// A unit that was taken for a call that is not made yet; given back if it is not.
struct Place {
    controller: Shared<Controller>,
    used: bool,
}

impl Place {
    fn give_back(&mut self) {
        if !mem::replace(&mut self.used, true) {
            self.controller.pacer.give_back();
        }
    }
}

impl Drop for Place {
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

    /// Waits until its turn (at once, if there is none) and then for the inner service, by the deadline.
    #[inline(always)]
    pub(crate) fn waiting(
        turn: Option<u64>,
        deadline: Option<Deadline>,
        call: (S, Req),
        protocol: P,
        context: C,
        controller: Shared<Controller>,
    ) -> Self {
        let state = State::Waiting { call: Waiting::new(turn, deadline, call, controller) };
        ResponseFuture { state, protocol, context, permit: None }
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
    #[cold]
    fn new(
        turn: Option<u64>,
        deadline: Option<Deadline>,
        (service, request): (S, Req),
        controller: Shared<Controller>,
    ) -> Pin<Box<Self>> {
        // A turn beyond the clock's range was refused: it is later than every wait.
        let timer = turn.and_then(|at| controller.instant(at)).map(sleep_until);
        let (has_come, place) = (timer.is_none(), Place { controller, used: false });
        Box::pin(Waiting { timer, has_come, deadline, place, service, request: Some(request) })
    }

    #[inline(never)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Went<S::Future, S::Error>>
    where
        S: Service<Req>,
    {
        let mut this = self.project();
        if !*this.has_come {
            if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                ready!(timer.poll(cx));
            }
            this.timer.set(None);
            *this.has_come = true;
        }
        let controller = &this.place.controller;
        match this.service.poll_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Went::Broken(error)),
            Poll::Pending => {
                ready!(deadline::poll_passed(this.timer, *this.deadline, cx));
                if let Some(rejection) = controller.late() {
                    this.place.give_back();
                    return Poll::Ready(Went::Late(rejection));
                }
                // In shadow it goes on, however long that takes.
                *this.deadline = None;
                return Poll::Pending;
            }
        }
        let mut permit = Permit::new(Call::new(controller.clone()));
        this.place.used = true;
        let inner = permit.guard(|| this.service.call(take(this.request)));
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
                    #[cfg_attr(not(feature = "http"), allow(unused_mut, reason = "no headers to read"))]
                    let mut answer = this.protocol.finish(this.context, result, this.permit);
                    #[cfg(feature = "http")]
                    if let Ok(answer) = &mut answer
                        && let Some(controller) = controller
                        && let Some(headers) = P::answer_headers(answer)
                        && let Some(after) = super::remaining::nothing_for(headers)
                    {
                        controller.hold(after);
                    }
                    return Poll::Ready(answer);
                }
                StateProj::Refused { retry_after, controller } => {
                    let rejection = controller.rejection(*retry_after);
                    return Poll::Ready(this.protocol.reject(this.context, rejection));
                }
                StateProj::Waiting { call } => match ready!(call.as_mut().poll(cx)) {
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
