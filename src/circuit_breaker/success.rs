//! The way of nearly all results: a success of a plain call.

use crate::{
    circuit_breaker::{
        breaker::Breaker,
        machine::{Ticket, results::Booked},
    },
    outcome::Outcome,
    stripe::{Shared, thread_number},
    time::{self, Instant},
};

impl Breaker {
    /// A success of a plain call. It takes the breaker, so that whoever calls it has nothing to drop.
    #[inline(always)]
    pub(crate) fn succeeded(this: Shared<Breaker>, generation: u32) {
        if this.machine.has_ticks() {
            Self::succeeded_in_tick(this, generation);
        } else {
            Self::succeeded_in_turn(this, generation);
        }
    }

    #[inline(never)]
    fn succeeded_in_tick(this: Shared<Breaker>, generation: u32) {
        // Read before all else, so that nothing has to be kept while that is done.
        let now = time::now();
        match this.book_in_tick(generation, this.stripe(), now) {
            Booked::Done => {
                this.reporter().ended(Outcome::Success);
                drop(this);
            }
            booked => Self::succeeded_after_all(this, generation, booked, Some(now)),
        }
    }

    #[inline(never)]
    fn succeeded_in_turn(this: Shared<Breaker>, generation: u32) {
        match this.machine.succeeded_in_turn(generation) {
            Booked::Done => {
                this.reporter().ended(Outcome::Success);
                drop(this);
            }
            booked => Self::succeeded_after_all(this, generation, booked, None),
        }
    }

    /// The same, where the time is at hand.
    pub(crate) fn succeeded_at(&self, generation: u32, now: Instant) {
        let booked = match self.machine.has_ticks() {
            true => self.book_in_tick(generation, thread_number(), now),
            false => self.machine.succeeded_in_turn(generation),
        };
        if booked != Booked::Done {
            self.booked(generation, booked, Some(now));
        }
        self.reporter().ended(Outcome::Success);
    }

    #[inline(always)]
    fn book_in_tick(&self, generation: u32, stripe: usize, now: Instant) -> Booked {
        self.machine.succeeded_in_tick(generation, stripe, |length| self.clock.tick(length, now))
    }

    #[inline(never)]
    fn succeeded_after_all(this: Shared<Breaker>, generation: u32, booked: Booked, now: Option<Instant>) {
        this.booked(generation, booked, now);
        this.reporter().ended(Outcome::Success);
    }

    #[inline(never)]
    fn booked(&self, generation: u32, booked: Booked, now: Option<Instant>) {
        let now = || now.unwrap_or_else(time::now);
        let trips = match booked {
            Booked::Done => false,
            Booked::AmongOthers { epoch, n, head } => self.machine.among_others(generation, epoch, n, head),
            Booked::ToBeJudged => self.machine.judge(generation, self.at(now())),
            Booked::NotYet => {
                let now = now();
                if let Some(length) = self.machine.tick_length() {
                    // So that the next one finds it at hand.
                    self.clock.work_out_tick(length, now);
                }
                return self.settle(Ticket::plain(generation), Outcome::Success, false, self.at(now), None);
            }
        };
        if trips {
            self.changed(self.machine.trip(Ticket::plain(generation), self.at(now())), None);
        }
    }
}
