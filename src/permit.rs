//! The right to run one call, given back exactly once.

use std::{cell::Cell, mem, time::Duration};

use crate::{
    outcome::{End, Outcome},
    protocol::{Watch, sealed::Sealed},
    rejection::Reason,
};

/// What stands behind a [`Permit`]: it is told once how the call ended. It carries the generation in which the call was
/// admitted, so that a late end can't be booked on a newer state.
pub trait Keeper {
    /// The call has ended. Called once.
    fn settle(&mut self, end: End);

    /// As [`settle`](Self::settle): the inner service's own code panicked.
    fn panicked(&mut self) {
        self.settle(End::Outcome(Outcome::Failure));
    }

    /// As [`settle`](Self::settle), and drops it. A keeper that can do both by value says how here, see [`UntilReady`].
    #[inline(always)]
    fn finish(mut self, end: End)
    where
        Self: Sized,
    {
        self.settle(end);
    }

    /// Runs the inner service's own code. A panic in there is a failure of the backend, and settles the call.
    #[inline(always)]
    fn guard<T>(&mut self, run: impl FnOnce() -> T) -> T
    where
        Self: Sized,
    {
        /// Dropped only by a panic.
        struct Bomb<'a, K: Keeper>(&'a mut K);
        impl<K: Keeper> Drop for Bomb<'_, K> {
            fn drop(&mut self) {
                self.0.panicked();
            }
        }
        let bomb = Bomb(self);
        let out = run();
        mem::forget(bomb);
        out
    }

    /// See [`Watch`].
    fn wants_hint(&self) -> bool {
        false
    }

    /// See [`Watch`].
    fn hint(&mut self, _after: Duration) {}

    /// See [`Watch`].
    fn spares_peers(&self) -> bool {
        false
    }

    /// See [`Watch`].
    fn unread(&mut self) {
        self.settle(End::Outcome(Outcome::Success));
    }

    /// See [`Watch`]. True if that was the verdict.
    fn good_head(&mut self) -> bool {
        false
    }

    /// See [`Watch`].
    fn wants_frames(&self) -> bool {
        false
    }

    /// See [`Watch`].
    fn first_frame(&mut self) {}

    /// See [`Watch`].
    fn streams(&mut self) {}
}

/// The right to run one call. Finished once; dropped unfinished, the caller has left (or our own timeout has: see
/// [`Cause`]).
#[derive(Debug)]
pub struct Permit<K: Keeper> {
    // `None` only while it is dropped: then it is moved to where that is done. Nobody takes its address there either,
    // see `UntilReady`.
    keeper: Option<K>,
    settled: bool,
}

impl<K: Keeper> Permit<K> {
    #[inline(always)]
    pub(crate) fn new(keeper: K) -> Self {
        Self { keeper: Some(keeper), settled: false }
    }

    /// `None` only while it is dropped.
    #[cfg(feature = "http")]
    pub(crate) fn keeper(&self) -> Option<&K> {
        self.keeper.as_ref()
    }

    /// The first end counts, later ones are not heard.
    #[inline(always)]
    pub(crate) fn settle(&mut self, end: End) {
        self.settle_with(|keeper| keeper.settle(end));
    }

    #[inline(always)]
    fn settle_with(&mut self, settle: impl FnOnce(&mut K)) {
        if !self.settled {
            self.settled = true;
            if let Some(keeper) = &mut self.keeper {
                settle(keeper);
            }
        }
    }

    /// As [`settle`](Self::settle), and drops it.
    #[inline(always)]
    pub(crate) fn finish(mut self, end: End) {
        let (keeper, settled) = (self.keeper.take(), self.settled);
        // Nothing is left in it, and its drop need not find that out.
        mem::forget(self);
        if let Some(keeper) = keeper
            && !settled
        {
            keeper.finish(end);
        }
    }

    /// Runs the inner service's own code: a panic in there is a failure of the backend, not a caller that left.
    #[inline(always)]
    pub(crate) fn guard<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let Some(keeper) = &mut self.keeper else { return run() };
        if self.settled {
            return run();
        }
        // If it panics, it stays so, for the keeper is told by its own guard then.
        self.settled = true;
        let out = keeper.guard(run);
        self.settled = false;
        out
    }
}

impl<K: Keeper> Sealed for Permit<K> {}

/// In a response body the permit lasts until the response is over.
impl<K: Keeper> Watch for Permit<K> {
    type Timer = ();

    #[inline(always)]
    fn settle(&mut self, end: End) {
        Permit::settle(self, end);
    }

    #[inline(always)]
    fn finish(self, end: End) {
        Permit::finish(self, end);
    }

    fn panicked(&mut self) {
        self.settle_with(K::panicked);
    }

    fn unread(&mut self) {
        self.settle_with(K::unread);
    }

    fn wants_hint(&self) -> bool {
        self.keeper.as_ref().is_some_and(K::wants_hint)
    }

    fn hint(&mut self, after: Duration) {
        if let Some(keeper) = &mut self.keeper {
            keeper.hint(after);
        }
    }

    fn spares_peers(&self) -> bool {
        self.keeper.as_ref().is_some_and(K::spares_peers)
    }

    fn good_head(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            self.settled |= keeper.good_head();
        }
    }

    fn wants_frames(&self) -> bool {
        self.keeper.as_ref().is_some_and(K::wants_frames)
    }

    fn first_frame(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.first_frame();
        }
    }

    fn streams(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.streams();
        }
    }
}

impl<K: Keeper> Drop for Permit<K> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cold]
        #[inline(never)]
        fn abandon<K: Keeper>(mut keeper: K) {
            keeper.settle(Cause::current().end());
        }
        if !self.settled
            && let Some(keeper) = self.keeper.take()
        {
            abandon(keeper);
        }
    }
}

/// What a future holds until it is ready, and drops itself only if it never is.
///
/// That drop is out of line and moves the value there. So the compiler sees that a future which became ready has
/// nothing to drop, and nobody takes the address of its parts: then they never leave the registers.
#[derive(Debug)]
pub(crate) struct UntilReady<T>(pub(crate) Option<T>);

impl<T> UntilReady<T> {
    #[inline(always)]
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T> Drop for UntilReady<T> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cold]
        #[inline(never)]
        fn out_of_line<T>(value: T) {
            drop(value);
        }
        if self.0.is_some()
            && let Some(value) = self.0.take()
        {
            out_of_line(value);
        }
    }
}

/// Why futures and bodies are being dropped right now, on this thread.
///
/// A future that is dropped can't be told why. Our timeout drops the call inside it because the operator's bound was
/// reached, and a breaker in there must book a failure; a caller who hangs up looks exactly the same from inside and
/// must book nothing. So whoever drops says why for as long as the drop runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The default: the caller left. Hedge losers are dropped under it too, whatever else is in force.
    Caller,
    /// An operator's timeout ran out.
    Timeout,
    /// The caller's deadline passed. How long had whoever drops?
    Deadline { had: Option<Duration> },
}

thread_local! {
    static CAUSE: Cell<Cause> = const { Cell::new(Cause::Caller) };
}

impl Cause {
    pub(crate) fn of(reason: Reason, had: Option<Duration>) -> Self {
        match reason {
            Reason::Timeout => Cause::Timeout,
            Reason::DeadlineExceeded => Cause::Deadline { had },
            _ => Cause::Caller,
        }
    }

    pub(crate) fn current() -> Self {
        CAUSE.get()
    }

    /// Drops run by `f` happen for this cause.
    pub(crate) fn during<T>(self, f: impl FnOnce() -> T) -> T {
        struct Restore(Cause);
        impl Drop for Restore {
            fn drop(&mut self) {
                CAUSE.set(self.0);
            }
        }
        let _restore = Restore(CAUSE.replace(self));
        f()
    }

    fn end(self) -> End {
        match self {
            Cause::Caller => End::Left,
            Cause::Timeout => End::TimedOut,
            Cause::Deadline { had } => End::DeadlinePassed { had },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{Arc, Mutex},
    };

    use super::*;

    const HAD: Duration = Duration::from_secs(3);

    #[derive(Clone, Default)]
    struct Book(Arc<Mutex<Vec<End>>>);

    impl Keeper for Book {
        fn settle(&mut self, end: End) {
            self.0.lock().unwrap().push(end);
        }
    }

    impl Book {
        fn ends(&self) -> Vec<End> {
            self.0.lock().unwrap().clone()
        }
    }

    #[test]
    fn finished_once() {
        let book = Book::default();
        let mut permit = Permit::new(book.clone());
        permit.settle(End::Outcome(Outcome::Success));
        permit.settle(End::Outcome(Outcome::Failure));
        drop(permit);
        assert_eq!(book.ends(), [End::Outcome(Outcome::Success)]);
    }

    #[test]
    fn a_drop_says_why() {
        let book = Book::default();
        drop(Permit::new(book.clone()));
        Cause::Timeout.during(|| {
            drop(Permit::new(book.clone()));
            Cause::Caller.during(|| drop(Permit::new(book.clone())));
            Cause::Deadline { had: Some(HAD) }.during(|| drop(Permit::new(book.clone())));
        });
        drop(Permit::new(book.clone()));
        let passed = End::DeadlinePassed { had: Some(HAD) };
        assert_eq!(book.ends(), [End::Left, End::TimedOut, End::Left, passed, End::Left]);
    }

    #[test]
    fn a_panic_is_a_failure_and_the_cause_is_restored() {
        let book = Book::default();
        let mut permit = Permit::new(book.clone());
        let panic = catch_unwind(AssertUnwindSafe(|| {
            Cause::Deadline { had: None }.during(|| permit.guard(|| panic!("inner")))
        }));
        assert!(panic.is_err());
        assert_eq!(Cause::current(), Cause::Caller);
        drop(permit);
        assert_eq!(book.ends(), [End::Outcome(Outcome::Failure)]);
    }

    #[test]
    fn a_permit_that_was_finished_is_not_finished_again() {
        let book = Book::default();
        Permit::new(book.clone()).finish(End::Refused);
        let mut settled = Permit::new(book.clone());
        settled.settle(End::TimedOut);
        settled.finish(End::Left);
        assert_eq!(book.ends(), [End::Refused, End::TimedOut]);
    }

    #[test]
    fn what_was_held_until_ready_is_dropped_once() {
        let book = Book::default();
        drop(UntilReady::new(Permit::new(book.clone())));
        let mut ready = UntilReady::new(Permit::new(book.clone()));
        ready.0.take().unwrap().finish(End::Refused);
        drop(ready);
        assert_eq!(book.ends(), [End::Left, End::Refused]);
    }
}
