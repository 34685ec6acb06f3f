//! What a call holds: a permit while it is in flight, a place in the line before that.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use crate::{
    bulkhead::{door::Waits, limiter::Limiter},
    deadline::{self, Deadline},
    protocol::{Watch, sealed::Sealed},
    queue::{Lease, Left},
    rejection::{Reason, Rejection},
    stripe::Shared,
    time::{Sleep, poll_at, sleep_until},
};

/// What a call holds of a bulkhead: its permit, or before that its place in the queue. Given back when this is dropped.
///
/// In a response body the permit lasts until the response is over, or stops counting when its reader stalls.
pub struct Held {
    limiter: Shared<Limiter>,
    has: Has,
}

enum Has {
    /// It was refused.
    Nothing,
    Place(Waits),
    /// A permit, after its turn; the call waits for the inner service.
    Granted(Waits),
    Permit,
    /// A permit that can expire.
    Stream(Lease),
}

impl Held {
    #[inline(always)]
    pub(crate) fn nothing(limiter: Shared<Limiter>) -> Self {
        Held { limiter, has: Has::Nothing }
    }

    #[inline(always)]
    pub(crate) fn place(limiter: Shared<Limiter>, waits: Waits) -> Self {
        Held { limiter, has: Has::Place(waits) }
    }

    /// Of a call that is in and waits for the inner service.
    pub(crate) fn granted(limiter: Shared<Limiter>, waits: Waits) -> Self {
        Held { limiter, has: Has::Granted(waits) }
    }

    /// Of a call that is in.
    #[inline(always)]
    pub(crate) fn permit(limiter: Shared<Limiter>) -> Self {
        limiter.reporter().admitted();
        Held { limiter, has: Has::Permit }
    }

    /// Gives a plain permit back in its place: what is left has next to nothing to do when it is dropped.
    #[inline(always)]
    pub(crate) fn leave(held: &mut Option<Held>) {
        if let Some(Held { limiter, has: has @ Has::Permit }) = held {
            *has = Has::Nothing;
            limiter.leave();
        }
    }

    pub(crate) fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// Waits for the turn of a call that has a place in the line. Then it holds a permit, or nothing.
    #[cold]
    pub(crate) fn poll_turn(
        &mut self,
        mut timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Reason>> {
        while let Has::Place(waits) = self.has {
            if let Some(left) = self.limiter.room.poll(waits.place, cx.waker()) {
                timer.set(None);
                self.settle(left, waits)?;
                break;
            }
            // It may have been told of a longer lease.
            let look = self.limiter.next_look(self.limiter.now(), waits.ends());
            if timer.as_ref().as_pin_ref().is_none_or(|sleep| sleep.deadline() > look) {
                timer.set(Some(sleep_until(look)));
            }
            if let Some(sleep) = timer.as_mut().as_pin_mut() {
                ready!(sleep.poll(cx));
            }
            timer.set(None);
            let now = self.limiter.now();
            if now >= waits.ends() {
                self.settle(self.limiter.room.give_up(waits.place), waits)?;
                break;
            }
            self.limiter.put_out_stalled(now);
        }
        Poll::Ready(Ok(()))
    }

    /// It has had its turn, and may be polled long after that: nothing is begun past its deadline. `deadline` is the
    /// one it has now, for what it waits with knows of one that ends the wait only.
    pub(crate) fn is_in_time(&mut self, deadline: impl FnOnce() -> Option<Deadline>) -> Result<(), Reason> {
        match self.has {
            Has::Granted(waits) if waits.is_too_late(&self.limiter) || deadline::has_passed(deadline()) => {
                self.run_out(Reason::DeadlineExceeded)
            }
            _ => Ok(()),
        }
    }

    fn settle(&mut self, left: Left, waits: Waits) -> Result<(), Reason> {
        self.has = Has::Nothing;
        self.limiter.has_waited(waits);
        let refused = match left {
            Left::In => None,
            Left::Waiting => Some(waits.why()),
            Left::Refused(reason) => Some(reason),
        };
        if let Some(reason) = refused {
            self.limiter.refuse_waiter(reason)?;
        }
        self.has = Has::Granted(waits);
        if refused.is_some() {
            // In shadow it goes, and was reported.
            self.begin_call();
        }
        Ok(())
    }

    /// Its turn has come, but the inner service is not ready. Ready: it has waited as long as it may, and gave its
    /// permit back.
    #[cold]
    pub(crate) fn poll_patience(&mut self, timer: Pin<&mut Option<Sleep>>, cx: &mut Context<'_>) -> Poll<Reason> {
        let Has::Granted(waits) = self.has else { return Poll::Pending };
        ready!(poll_at(timer, self.limiter.common.instant(waits.ends()), cx));
        // In shadow it goes on, however long that takes.
        self.run_out(waits.why()).map_or_else(Poll::Ready, |()| Poll::Pending)
    }

    /// A call that has its permit can't be made in time. `Ok`: in shadow it goes on.
    fn run_out(&mut self, why: Reason) -> Result<(), Reason> {
        let common = &self.limiter.common;
        if common.in_shadow() {
            common.would_refuse(why);
            self.begin_call();
            return Ok(());
        }
        common.refuse(why);
        self.give_back();
        Err(why)
    }

    /// The call is made, or bounded no more.
    pub(crate) fn begin_call(&mut self) {
        if let Has::Granted(_) = self.has {
            self.has = Has::Permit;
            self.limiter.reporter().admitted();
        }
    }

    #[inline(never)]
    fn give_back(&mut self) {
        match mem::replace(&mut self.has, Has::Nothing) {
            Has::Nothing => {}
            Has::Permit | Has::Granted(_) => self.limiter.leave(),
            Has::Stream(lease) => {
                if self.limiter.room.leave_stream(lease) {
                    self.limiter.let_in();
                }
            }
            Has::Place(waits) => self.give_up(waits),
        }
    }

    /// Out of line, or those who hold a permit would save registers for it.
    #[cold]
    #[inline(never)]
    fn give_up(&self, waits: Waits) {
        // Called, and has not noticed: the next one is.
        if self.limiter.room.give_up(waits.place) == Left::In {
            self.limiter.leave();
        }
        self.limiter.has_waited(waits);
    }
}

/// Of tokio's timers, in nanoseconds.
const TICK: u64 = 1_000_000;

impl Waits {
    /// From when on it is given up. A timer rounds up to its next tick, and a deadline is not to be overrun by that: it
    /// ends at the last tick before, which is the deadline itself where that is one.
    fn ends(self) -> u64 {
        if self.why() == Reason::DeadlineExceeded { self.expires.saturating_sub(TICK - 1) } else { self.expires }
    }

    /// Has its caller's deadline passed? (A longest wait is over with the turn.)
    fn is_too_late(self, limiter: &Limiter) -> bool {
        self.why() == Reason::DeadlineExceeded && self.expires <= limiter.now()
    }
}

impl Drop for Held {
    #[inline(always)]
    fn drop(&mut self) {
        if !matches!(self.has, Has::Nothing) {
            self.give_back();
        }
    }
}

impl Sealed for Held {}

/// What the response says does not matter, only when it is over.
impl Watch for Held {
    type Timer = ();

    const JUDGES: bool = false;

    fn goes_on(&mut self) {
        if let Some(lease) = self.limiter.room.begin_stream(self.limiter.now()) {
            self.has = Has::Stream(lease);
        }
    }

    fn frame(&mut self) -> Option<Rejection> {
        if let Has::Stream(lease) = &mut self.has {
            self.limiter.room.note_frame(lease, self.limiter.now());
        }
        None
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}
