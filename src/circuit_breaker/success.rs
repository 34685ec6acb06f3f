//! The way of nearly all results: a success of a plain call.

use crate::{
    circuit_breaker::{
        breaker::Breaker,
        machine::{Pass, Ticket, results::Booked},
    },
    outcome::Outcome,
    stripe::{Shared, thread_number},
    time::{self, Instant},
};

impl Breaker {
    /// A success of a plain call. It takes the breaker, so that whoever calls it has nothing to drop.
    #[inline(always)]
    pub(crate) fn succeeded(this: Shared<Breaker>, pass: Pass) {
        if pass.has_ticks() {
            let now = time::now();
            match this.book_in_tick(pass, this.stripe(), now) {
                Booked::Done => {
                    this.reporter().ended(Outcome::Success);
                    drop(this);
                }
                booked => Self::succeeded_after_all(this, pass, booked, Some(now)),
            }
        } else {
            match this.machine.succeeded_in_turn(pass) {
                Booked::Done => {
                    this.reporter().ended(Outcome::Success);
                    drop(this);
                }
                booked => Self::succeeded_after_all(this, pass, booked, None),
            }
        }
    }

    /// As [`succeeded`](Self::succeeded), where the breaker is held for longer than that.
    #[inline]
    pub(crate) fn succeeded_and_goes_on(this: &Shared<Breaker>, pass: Pass) {
        this.book_success(pass, this.stripe(), None);
    }

    /// A success of a call of this generation, at a time that is at hand.
    pub(crate) fn succeeded_at(&self, generation: u32, now: Instant) {
        let Some(pass) = self.machine.pass_of(generation) else {
            self.reporter().ended(Outcome::Success);
            return self.settle(Ticket::plain(generation), Outcome::Success, false, self.at(now), None);
        };
        self.book_success(pass, thread_number(), Some(now));
    }

    /// Books it and tells of it. The clock is asked only by a window of time, and where the time is not at hand.
    #[inline(always)]
    fn book_success(&self, pass: Pass, stripe: usize, now: Option<Instant>) {
        let (booked, now) = if pass.has_ticks() {
            let now = now.unwrap_or_else(time::now);
            (self.book_in_tick(pass, stripe, now), Some(now))
        } else {
            (self.machine.succeeded_in_turn(pass), now)
        };
        if booked != Booked::Done {
            self.booked(pass, booked, now);
        }
        self.reporter().ended(Outcome::Success);
    }

    #[inline(always)]
    fn book_in_tick(&self, pass: Pass, stripe: usize, now: Instant) -> Booked {
        self.machine.succeeded_in_tick(pass, stripe, || self.clock.tick(pass.number(), now))
    }

    #[cold]
    #[inline(never)]
    fn succeeded_after_all(this: Shared<Breaker>, pass: Pass, booked: Booked, now: Option<Instant>) {
        this.booked(pass, booked, now);
        this.reporter().ended(Outcome::Success);
    }

    #[inline(never)]
    fn booked(&self, pass: Pass, booked: Booked, now: Option<Instant>) {
        let (now, generation) = (|| now.unwrap_or_else(time::now), pass.generation());
        let trips = match booked {
            Booked::Done => false,
            Booked::AmongOthers(turn) => self.machine.among_others(generation, turn),
            Booked::ToBeJudged => self.machine.judge(generation, self.at(now())),
            Booked::NotYet => match self.machine.succeeded_among_others(pass) {
                Some(trips) => trips,
                None => {
                    let now = now();
                    self.remember_tick(generation, now);
                    return self.settle(Ticket::plain(generation), Outcome::Success, false, self.at(now), None);
                }
            },
        };
        if trips {
            self.changed(self.machine.trip(Ticket::plain(generation), self.at(now())), None);
        }
    }

    /// So that the next one finds it at hand.
    fn remember_tick(&self, generation: u32, now: Instant) {
        if let Some((pass, shape)) = self.machine.shape_of(generation)
            && let Some(length) = shape.tick_length()
            && self.clock.tick(pass.number(), now).is_none()
        {
            self.clock.work_out_tick(pass.number(), length, now, |number| shape.tick(number).stamp());
        }
    }
}
