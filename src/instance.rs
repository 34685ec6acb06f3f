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
    /// It asked, so that the instance may hold something for the next call. It stays so after that call: calls that go
    /// have nothing to note, and a door that closes later costs one clone more.
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
        // First: where a clone panics, it is still known that something is held.
        if self.is_asked() {
            give_back(&mut self.service);
        }
        self.readiness = Readiness::Refused(why);
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
            give_back(&mut self.service);
            self.readiness = Readiness::Unasked;
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
        let unready = self.service.clone();
        let readied = mem::replace(&mut self.service, unready);
        if was_asked {
            self.readiness = Readiness::Unasked;
        }
        (readied, was_asked)
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

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
    };

    use super::*;

    /// Holds something once it was asked, as a clone does not. A clone may panic.
    struct Holds {
        _held: Option<Arc<()>>,
        fails: Arc<AtomicBool>,
    }

    impl Clone for Holds {
        fn clone(&self) -> Self {
            assert!(!self.fails.swap(false, Relaxed), "no clone");
            Holds { _held: None, fails: Arc::clone(&self.fails) }
        }
    }

    /// What is held is given back at the next closed door, if it could not be at this one.
    #[test]
    fn a_clone_that_panics_forgets_nothing() {
        for by_call in [false, true] {
            let (held, fails) = (Arc::new(()), Arc::new(AtomicBool::new(true)));
            let mut instance = Instance::new(Holds { _held: Some(Arc::clone(&held)), fails });
            instance.readiness = Readiness::Asked;
            let gives_back =
                |instance: &mut Instance<Holds>| if by_call { instance.give_back() } else { instance.refuse(()) };
            assert!(catch_unwind(AssertUnwindSafe(|| gives_back(&mut instance))).is_err());
            assert_eq!(Arc::strong_count(&held), 2);
            instance.refuse(());
            assert_eq!((Arc::strong_count(&held), instance.is_refused()), (1, true));
        }
    }

    /// Whoever is refused stays so until readiness is asked for, whatever is given back meanwhile.
    #[test]
    fn a_refusal_stays() {
        let mut instance = Instance::new(());
        instance.refuse(());
        instance.give_back();
        instance.unready();
        assert!(!instance.take().1 && instance.is_refused());
    }
}
