//! The instance of the inner service that a layer keeps for its next call, and what it holds for that call.

use std::{
    mem,
    task::{Context, Poll},
};

use tower_service::Service;

/// The instance behind a layer that may refuse. A clone starts unready, so it has nothing to refuse either.
#[derive(Debug)]
pub(crate) struct Instance<S, Why = ()> {
    service: S,
    readiness: Readiness<Why>,
}

/// What the last `poll_ready` of the layer did with the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness<Why> {
    /// It asked, so that the instance may hold something for the next call. Still so after that call, which costs a
    /// clone more when the door closes, and those that go nothing.
    Asked,
    /// It left the instance alone: the next call is refused, for this.
    Refused(Why),
    /// There was none: nothing is held.
    Unasked,
}

impl<S, Why> Instance<S, Why> {
    pub(crate) fn new(service: S) -> Self {
        Instance { service, readiness: Readiness::Unasked }
    }

    /// The door is open.
    #[inline(always)]
    pub(crate) fn poll_ready<Req>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>>
    where
        S: Service<Req>,
    {
        self.readiness = Readiness::Asked;
        self.service.poll_ready(cx)
    }

    /// The door is closed, and nothing is held behind it.
    #[inline(always)]
    pub(crate) fn refuse(&mut self, why: Why)
    where
        S: Clone,
    {
        if let Readiness::Asked = mem::replace(&mut self.readiness, Readiness::Refused(why)) {
            give_back(&mut self.service);
        }
    }

    /// Did the last `poll_ready` ask for the readiness of the instance?
    #[inline(always)]
    pub(crate) fn is_asked(&self) -> bool {
        matches!(self.readiness, Readiness::Asked)
    }

    /// Did it find the door closed? It stays so until the next.
    #[inline(always)]
    pub(crate) fn is_refused(&self) -> bool {
        self.refused().is_some()
    }

    /// As [`is_refused`](Self::is_refused), with the reason.
    #[inline(always)]
    pub(crate) fn refused(&self) -> Option<&Why> {
        match &self.readiness {
            Readiness::Refused(why) => Some(why),
            Readiness::Asked | Readiness::Unasked => None,
        }
    }

    #[inline(always)]
    pub(crate) fn call<Req>(&mut self, request: Req) -> S::Future
    where
        S: Service<Req>,
    {
        self.service.call(request)
    }

    /// For a call by other means.
    #[inline(always)]
    pub(crate) fn service(&mut self) -> &mut S {
        &mut self.service
    }

    /// Another instance, for a further attempt. It holds nothing.
    #[inline(always)]
    pub(crate) fn another(&self) -> S
    where
        S: Clone,
    {
        self.service.clone()
    }

    /// The call is refused after readiness, or has to wait.
    #[inline(always)]
    pub(crate) fn give_back(&mut self)
    where
        S: Clone,
    {
        if self.is_asked() {
            self.readiness = Readiness::Unasked;
            give_back(&mut self.service);
        }
    }

    /// An instance for a call that waits, which holds nothing, and no longer does this one.
    #[cold]
    pub(crate) fn unready(&mut self) -> S
    where
        S: Clone,
    {
        self.give_back();
        self.service.clone()
    }

    /// The instance itself, for a call that goes at once or soon, and whether it was asked for readiness.
    pub(crate) fn take(&mut self) -> (S, bool)
    where
        S: Clone,
    {
        let was_asked = self.is_asked();
        if was_asked {
            self.readiness = Readiness::Unasked;
        }
        let unready = self.service.clone();
        (mem::replace(&mut self.service, unready), was_asked)
    }
}

impl<S: Clone, Why> Clone for Instance<S, Why> {
    fn clone(&self) -> Self {
        Self::new(self.service.clone())
    }
}

/// A call that is refused after readiness, or waits, does not use what the instance was promised (a permit, a place, a
/// connection), and that must not wait for the next call: the readied one goes, and an unready one comes. Out of line,
/// for a door that closes has been open for many calls.
#[cold]
#[inline(never)]
pub(crate) fn give_back<S: Clone>(readied: &mut S) {
    let unready = readied.clone();
    drop(mem::replace(readied, unready));
}
