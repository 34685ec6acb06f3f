//! The machine of the circuit breaker, the waiting room and the drain, for `tests/loom.rs` alone: it is compiled only
//! under `--cfg loom`.
#![allow(missing_docs, missing_debug_implementations, clippy::missing_errors_doc, reason = "not for users")]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::{
    budget::share::{self, Share},
    circuit_breaker::{
        CircuitBreakerConfig, State,
        machine::{Change, Machine, Pass, Ticket},
    },
    drain,
    observe::Reporter,
    origin::Origin,
    outcome::Outcome,
    priority::Priority,
    queue::{self, Entrant, Entry, Left, Patience},
    rate_limit::{
        Quota,
        bucket::{Bucket, Place},
        gcra::Meter,
        taken::{Joined, Taken, Turn},
    },
    rejection::Reason,
    window::{
        Sample,
        time::{ANEW, STRIPES, Tick, TimeRing},
    },
};

/// And how many of its changes were told.
pub struct Breaker(Machine, AtomicUsize);

#[derive(Clone, Copy)]
pub struct Admitted(Ticket, Option<Pass>);

impl Breaker {
    pub fn new(config: &CircuitBreakerConfig) -> Self {
        Breaker(Machine::new(config, 0), AtomicUsize::new(0))
    }

    pub fn admit(&self, now: u64) -> Option<Admitted> {
        if let Some(pass) = self.0.admit_plain() {
            return Some(Admitted(Ticket::plain(pass.generation()), Some(pass)));
        }
        let ticket = self.0.admit_closed().or_else(|| {
            let (answer, change) = self.0.admit(now, 0.5);
            self.told(change);
            answer.ok()
        })?;
        Some(Admitted(ticket, None))
    }

    /// Gives back whether this result changed the state.
    pub fn settle(&self, call: Admitted, outcome: Outcome, now: u64, stripe: usize) -> bool {
        let change = match (outcome, call.1) {
            (Outcome::Success, Some(pass)) => self.0.succeed(pass, now, stripe),
            _ => self.0.settle(call.0, outcome, false, now, stripe),
        };
        if let Some(change) = change.filter(|c| c.to == State::Open) {
            self.0.stay_open(change.generation, now + 10);
        }
        self.told(change);
        change.is_some()
    }

    pub fn release(&self, call: Admitted, now: u64) {
        self.told(self.0.release(call.0, now));
    }

    fn told(&self, change: Option<Change>) {
        // Not one of the model checker's, for it is no part of what is checked.
        self.1.fetch_add(usize::from(change.is_some()), Relaxed);
    }

    pub fn changes(&self) -> usize {
        self.1.load(Relaxed)
    }

    pub fn force_closed(&self, now: u64) {
        let _ = self.0.move_by_hand(State::ForcedClosed, now);
    }

    pub fn update(&self, config: &CircuitBreakerConfig, now: u64) {
        self.0.update(config, now);
    }

    pub fn reset(&self, now: u64) {
        self.0.reset(now);
    }

    pub fn state(&self, now: u64) -> State {
        self.0.status(now).state
    }

    pub fn calls(&self, now: u64) -> (u64, u64) {
        self.0.check_gate();
        let sums = self.0.status(now).sums;
        (sums.calls, sums.failures)
    }

    pub fn probes_out(&self, now: u64) -> u32 {
        self.0.status(now).probes_out
    }
}

pub struct Ring(TimeRing);

impl Ring {
    #[allow(clippy::new_without_default, reason = "not for users")]
    pub fn new() -> Self {
        Ring(TimeRing::new(STRIPES))
    }

    /// A tick is one unit of time.
    pub fn record(&self, epoch: u32, now: u64, stripe: usize, failed: bool) {
        self.0.record(Tick::new(epoch * ANEW, 1, now), stripe, Sample { failed, slow: false }, 1);
    }

    pub fn sums(&self, epoch: u32, now: u64) -> (u64, u64) {
        let sums = self.0.sums(Tick::new(epoch * ANEW, 1, now));
        (sums.calls, sums.failures)
    }
}

pub struct Budget(Share);

#[derive(Clone, Copy)]
pub struct Withdrawal(share::Withdrawal);

impl Budget {
    /// `ratio` and `minimum` are in millionths; a tick is one unit of time.
    pub fn new(ratio: u64, minimum: u64) -> Self {
        Budget(Share::new(ratio, minimum, 1))
    }

    pub fn deposit(&self, now: u64, stripe: usize) {
        self.0.deposit(|| now, stripe);
    }

    pub fn withdraw(&self, now: u64) -> Option<Withdrawal> {
        self.0.withdraw(now).map(Withdrawal)
    }

    pub fn give_back(&self, withdrawal: Withdrawal) {
        self.0.give_back(withdrawal.0);
    }

    /// For an attempt that waits, and then is made.
    pub fn put_off(&self, withdrawal: Withdrawal) {
        self.0.put_off(withdrawal.0);
    }

    pub fn make(&self, now: u64) {
        self.0.make(now);
    }

    pub fn balance(&self, now: u64) -> u64 {
        self.0.balance(now)
    }
}

/// A waiting room at time 0, with calls that go in as a bulkhead's do.
pub struct Room(queue::Room);

pub struct Lease(queue::Lease);

impl Room {
    pub fn new(limit: usize) -> Self {
        Room(queue::Room::new(limit, Patience { fifo: 100, newest_after: 100, tight: None }))
    }

    /// `Ok`: is in. `Err`: has this place in the line, which is never full.
    pub fn enter(&self) -> Result<(), u32> {
        if self.0.pass() {
            return Ok(());
        }
        let entrant = Entrant { priority: Priority::Default, expires: u64::MAX, why: Reason::QueueTimeout };
        match self.0.enter(0, entrant, usize::MAX) {
            Entry::In => Ok(()),
            Entry::Waits(place) => Err(place),
            Entry::Refused(_) => unreachable!("the line is never full"),
        }
    }

    pub fn leave(&self) {
        if self.0.leave() {
            self.0.let_in(0);
        }
    }

    /// Is it in now? If not, this waker will be called.
    pub fn is_in(&self, place: u32, waker: &std::task::Waker) -> bool {
        self.0.poll(place, waker) == Some(Left::In)
    }

    /// Does not wait any more. Had it been called in, it leaves.
    pub fn give_up(&self, place: u32) {
        if self.0.give_up(place) == Left::In {
            self.leave();
        }
    }

    pub fn resize(&self, limit: usize) {
        self.0.set_limit(limit, 0);
    }

    pub fn in_flight(&self) -> usize {
        self.0.view().in_flight()
    }

    pub fn somebody_waits(&self) -> bool {
        self.0.view().somebody_waits()
    }

    pub fn begin_stream(&self, now: u64) -> Lease {
        Lease(self.0.begin_stream(now).expect("there are not so many"))
    }

    pub fn note_frame(&self, lease: &mut Lease, now: u64) {
        self.0.note_frame(&mut lease.0, now);
    }

    pub fn leave_stream(&self, lease: Lease) {
        if self.0.leave_stream(lease.0) {
            self.0.let_in(0);
        }
    }

    pub fn look_anew(&self) {
        self.0.look_anew();
    }

    pub fn put_out_stalled(&self, now: u64, lease: impl FnOnce() -> u64) -> usize {
        self.0.put_out_stalled(now, lease)
    }
}

pub struct Limit(Bucket);

#[derive(Clone, Copy)]
pub struct InLine(Place);

impl Limit {
    pub fn new(quota: Quota) -> Self {
        Limit(Bucket::new(meter(quota), 0))
    }

    pub fn take(&self, now: u64) -> bool {
        let short = self.0.try_take(now).is_some();
        short || matches!(self.0.take(1, now), Taken::Yes(_))
    }

    /// The place, if it has to wait.
    pub fn join(&self, now: u64) -> Option<InLine> {
        match self.0.join(1, now, u64::MAX) {
            Joined::Waits(place, _) => Some(InLine(place)),
            _ => None,
        }
    }

    pub fn is_its_turn(&self, place: InLine, now: u64) -> bool {
        self.0.turn(place.0, now, std::task::Waker::noop()) == Turn::Now
    }

    pub fn leave(&self, place: InLine, now: u64) {
        self.0.leave(place.0, now);
    }

    pub fn refund(&self, units: u32, now: u64) {
        self.0.refund(units, now);
    }

    pub fn set(&self, quota: Quota, now: u64) {
        self.0.set(meter(quota), now, &mut Vec::new());
    }

    pub fn left(&self, now: u64) -> u64 {
        self.0.left(now).units()
    }
}

fn meter(quota: Quota) -> Meter {
    Meter::new(quota).expect("a valid quota")
}

/// The door of a drain, and who is inside. Two threads come in by two stripes.
pub struct Gate(drain::Gate);

impl Gate {
    #[allow(clippy::new_without_default, reason = "as the others here")]
    pub fn new() -> Self {
        let origin = Origin::new("drain", "drain".into(), false, &[]);
        Gate(drain::Gate::new(Reporter::new(origin, &[], Vec::new(), None)))
    }

    pub fn enter(&self, stripe: usize) -> bool {
        self.0.enter(stripe)
    }

    pub fn leave(&self, stripe: usize) {
        self.0.leave(stripe);
    }

    pub fn shut(&self) {
        self.0.shut();
    }

    /// Is nobody inside? If somebody is, this waker will be called.
    pub fn is_empty(&self, waker: &std::task::Waker) -> bool {
        self.0.poll_empty(1, &mut std::task::Context::from_waker(waker)).is_ready()
    }
}
