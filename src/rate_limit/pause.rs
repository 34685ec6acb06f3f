//! The wait of a call that a store has told to come back, or that came behind such a one.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use crate::{
    deadline,
    rate_limit::{Engine, decision::Patience, limiter::Limiter, store_line::Lines},
    stripe::Shared,
    time::{Sleep, poll_at},
    wake::wake_all,
};

/// Those who wait to ask a store.
#[derive(Debug, Default)]
pub(crate) struct Pausing(Mutex<Lines>);

/// A place in the line of a key.
#[derive(Debug)]
pub(crate) struct Seat {
    key: Arc<str>,
    number: u64,
}

impl Pausing {
    /// A place behind others, if any wait.
    pub(crate) fn join(&self, key: &Arc<str>) -> Option<Seat> {
        let number = self.lock().join(key)?;
        Some(Seat { key: Arc::clone(key), number })
    }

    /// A place for one that was told to come back then.
    pub(crate) fn begin(&self, key: Arc<str>, at: u64) -> Seat {
        let number = self.lock().begin(Arc::clone(&key), at);
        Seat { key, number }
    }

    /// Each of them looks whether it still has to wait.
    pub(crate) fn call_all(&self) {
        self.change(Lines::call_all);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Lines, &mut Vec<Waker>) -> T) -> T {
        let mut wake = Vec::new();
        let changed = change(&mut self.lock(), &mut wake);
        wake_all(wake);
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in a line, counted as waiting for as long as it is there.
pub(crate) struct Place<St: Engine> {
    seat: Seat,
    limiter: Shared<Limiter<St>>,
}

/// How a pause has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paused {
    /// The store may be asked.
    ToTheEnd,
    /// The store may be asked at this time, and that is too late.
    TooLate(u64),
    /// Its deadline has come, and not its turn.
    Deadline,
    /// It is in shadow now, where nobody waits.
    ByShadow,
}

impl<St: Engine> Place<St> {
    pub(crate) fn new(seat: Seat, limiter: Shared<Limiter<St>>) -> Self {
        limiter.waits();
        Place { seat, limiter }
    }

    pub(crate) fn is_of(&self, key: &str) -> bool {
        *self.seat.key == *key
    }

    /// Waits until it may ask: in its turn, or when it has waited for as long as it may, for whoever is before it may
    /// wait for an answer that does not come.
    pub(crate) fn poll(
        &self,
        mut timer: Pin<&mut Option<Sleep>>,
        patience: Patience,
        cx: &mut Context<'_>,
    ) -> Poll<Paused> {
        let until = patience.until.0;
        loop {
            let waker = cx.waker().clone();
            let (seen, old) = self.limiter.pausing.lock().look(&self.seat.key, self.seat.number, waker);
            drop(old);
            // The shadow may have come before the waker was there.
            if self.limiter.in_shadow() {
                return Poll::Ready(Paused::ByShadow);
            }
            if seen.at > until {
                return Poll::Ready(Paused::TooLate(seen.at));
            }
            let at = if seen.has_turn { seen.at } else { until };
            if at <= self.limiter.now() {
                // No unit is spent on what nobody waits for.
                let is_late = !seen.has_turn && deadline::has_passed(patience.deadline);
                return Poll::Ready(if is_late { Paused::Deadline } else { Paused::ToTheEnd });
            }
            let Some(instant) = self.limiter.instant(at) else { return Poll::Pending };
            ready!(poll_at(timer.as_mut(), instant, cx));
        }
    }

    /// It has asked, and was told to come back then.
    pub(crate) fn told(&self, at: u64) {
        self.limiter.pausing.change(|lines, wake| lines.told(&self.seat.key, self.seat.number, at, wake));
    }

    /// It has asked and was let in, and so many units are left.
    pub(crate) fn let_in(self, left: u32) {
        let Seat { key, number } = &self.seat;
        let gone = self.limiter.pausing.change(|lines, wake| lines.let_in(key, *number, left, wake));
        drop(gone);
    }
}

impl<St: Engine> Drop for Place<St> {
    fn drop(&mut self) {
        self.limiter.waits_no_more();
        let Seat { key, number } = &self.seat;
        let gone = self.limiter.pausing.change(|lines, wake| lines.leave(key, *number, wake));
        drop(gone);
    }
}
