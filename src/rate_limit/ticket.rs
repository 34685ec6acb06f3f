//! What a call has that waits: a place in a line, and then its units.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use crate::{
    rate_limit::{
        Engine,
        bucket::{Bucket, Place},
        decision::{Refusal, Until},
        limiter::Limiter,
        taken::Turn,
    },
    rejection::Reason,
    stripe::Shared,
    time::{Sleep, poll_at},
};

/// How a call that may go is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Booked {
    /// As admitted, once it is made.
    WhenMade,
    /// As one that would have been refused, already: it goes only because of the shadow.
    Already,
}

/// A place in a line, given up when it is dropped; once its turn has come, units that are given back.
pub(crate) struct Ticket<St: Engine> {
    pub(crate) limiter: Shared<Limiter<St>>,
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) units: u32,
    pub(crate) place: Option<Place>,
}

impl<St: Engine> Ticket<St> {
    /// Its turn has come.
    fn goes(&mut self) {
        if self.place.take().is_some() {
            self.limiter.waits_no_more();
        }
    }

    /// It goes before its turn; whoever comes next pays for it.
    pub(crate) fn goes_early(&mut self) {
        if let Some(place) = self.place {
            self.bucket.go(place);
            self.goes();
        }
    }

    /// The call is made: nothing goes back.
    pub(crate) fn used(mut self) {
        self.units = 0;
    }

    /// Waits for its turn. `Err`: it would come too late, because of a smaller quota or a charge after the fact.
    pub(crate) fn poll(
        &mut self,
        mut timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
        until: Until,
    ) -> Poll<Result<Booked, Refusal>> {
        let Some(place) = self.place else { return Poll::Ready(Ok(Booked::WhenMade)) };
        loop {
            let now = self.limiter.now();
            match self.bucket.turn(place, now, cx.waker()) {
                Turn::Now => {
                    self.goes();
                    return Poll::Ready(Ok(Booked::WhenMade));
                }
                Turn::At(at) if at > until.0 => {
                    let refused = self.limiter.book_refusal(Reason::RateLimited);
                    return Poll::Ready(if refused { Err(Refusal::late(at, now)) } else { Ok(Booked::Already) });
                }
                Turn::At(at) => {
                    let Some(at) = self.limiter.instant(at) else { return Poll::Pending };
                    ready!(poll_at(timer.as_mut(), at, cx));
                }
            }
        }
    }
}

impl<St: Engine> Drop for Ticket<St> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.bucket.leave(place, self.limiter.now());
            self.limiter.waits_no_more();
        } else if self.units > 0 {
            self.bucket.refund(self.units, self.limiter.now());
        } else {
            return;
        }
        self.limiter.look_again();
    }
}
