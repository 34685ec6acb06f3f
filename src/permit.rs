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

    /// See [`Watch`].
    fn wants_hint(&self) -> bool {
        false
    }

    /// See [`Watch`].
    fn hint(&mut self, _after: Duration) {}

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
    keeper: K,
    settled: bool,
}

impl<K: Keeper> Permit<K> {
    #[inline]
    pub(crate) fn new(keeper: K) -> Self {
        Self { keeper, settled: false }
    }

    /// A permit of which nothing is to be booked.
    #[inline]
    pub(crate) fn settled(keeper: K) -> Self {
        Self { keeper, settled: true }
    }

    pub(crate) fn keeper(&self) -> &K {
        &self.keeper
    }

    /// The first end counts, later ones are not heard.
    #[inline(always)]
    pub(crate) fn settle(&mut self, end: End) {
        if !self.settled {
            self.settled = true;
            self.keeper.settle(end);
        }
    }

    /// Runs the inner service's own code: a panic in there is a failure of the backend, not a caller that left.
    #[inline(always)]
    pub(crate) fn guard<T>(&mut self, run: impl FnOnce() -> T) -> T {
        /// Dropped only by a panic.
        struct Bomb<'a, K: Keeper>(&'a mut Permit<K>);
        impl<K: Keeper> Drop for Bomb<'_, K> {
            #[inline(always)]
            fn drop(&mut self) {
                self.0.settle(End::Outcome(Outcome::Failure));
            }
        }
        let bomb = Bomb(self);
        let out = run();
        mem::forget(bomb);
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

    fn wants_hint(&self) -> bool {
        self.keeper.wants_hint()
    }

    fn hint(&mut self, after: Duration) {
        self.keeper.hint(after);
    }

    fn good_head(&mut self) {
        self.settled |= self.keeper.good_head();
    }

    fn wants_frames(&self) -> bool {
        self.keeper.wants_frames()
    }

    fn first_frame(&mut self) {
        self.keeper.first_frame();
    }

    fn streams(&mut self) {
        self.keeper.streams();
    }
}

impl<K: Keeper> Drop for Permit<K> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.settled {
            self.settle(Cause::current().end());
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
}
