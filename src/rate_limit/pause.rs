//! The wait of a call that a store has told to come back.

use std::{
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use crate::{
    rate_limit::{Engine, limiter::Limiter},
    stripe::Shared,
    time::{Instant, Sleep, sleep_until},
    wake::{Wakers, wake_all},
};

/// Those who have been told to come back.
#[derive(Debug, Default)]
pub(crate) struct Pausing(Mutex<Wakers>);

impl Pausing {
    /// Each of them looks whether it still has to wait.
    pub(crate) fn call_all(&self) {
        let all = self.lock().take();
        wake_all(all);
    }

    fn lock(&self) -> MutexGuard<'_, Wakers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pin_project! {
    /// One of them, counted as waiting for as long as it is there.
    pub(crate) struct Pause<St: Engine> {
        #[pin]
        timer: Sleep,
        seat: Seat<St>,
    }
}

struct Seat<St: Engine> {
    number: u64,
    limiter: Shared<Limiter<St>>,
}

/// How a pause has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paused {
    /// The store may be asked again.
    ToTheEnd,
    /// It is in shadow now, where nobody waits.
    ByShadow,
}

impl<St: Engine> Pause<St> {
    pub(crate) fn new(until: Instant, limiter: Shared<Limiter<St>>) -> Self {
        let number = limiter.pausing.lock().number();
        limiter.waits();
        // First, for without a timer of tokio's there is a panic.
        let seat = Seat { number, limiter };
        Pause { timer: sleep_until(until), seat }
    }

    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Paused> {
        let this = self.project();
        if this.timer.poll(cx).is_ready() {
            return Poll::Ready(Paused::ToTheEnd);
        }
        let Seat { number, limiter } = this.seat;
        let waker = cx.waker().clone();
        let old = limiter.pausing.lock().wait(*number, waker);
        drop(old);
        // It may have come before the waker was there.
        if limiter.in_shadow() { Poll::Ready(Paused::ByShadow) } else { Poll::Pending }
    }
}

impl<St: Engine> Drop for Seat<St> {
    fn drop(&mut self) {
        self.limiter.waits_no_more();
        let gone = self.limiter.pausing.lock().leave(self.number);
        drop(gone);
    }
}
