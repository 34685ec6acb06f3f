//! The shell around the rule: the clock, the counters, the events. One per layer, shared by all it makes.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    adaptive_rate::{
        cubic::Cubic,
        line::Place,
        pacer::{Asked, Pacer, Unit},
    },
    deadline::Deadline,
    observe::{Kind, Reporter},
    rejection::{Reason, Rejection},
    stripe::Count,
    time::{Epoch, Instant, Span, nanos},
};

#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) pacer: Pacer,
    cubic: Mutex<Cubic>,
    /// Calls that were made; those of them that did not get to the backend after all; and of how many sent ones the
    /// rule knows.
    made: Count,
    held_back: AtomicU64,
    told: AtomicU64,
    /// When the rule is told next of what is sent, in nanoseconds: often enough for it, seldom enough for a lock.
    tell_at: AtomicU64,
    /// When next of an answer.
    raise_at: AtomicU64,
    /// Nanoseconds count from here.
    epoch: Epoch,
    pub(crate) wait: Option<Duration>,
    reporter: Reporter,
    shadow: AtomicBool,
    /// How often the rate was lowered.
    cuts: AtomicU32,
    pub(crate) throttled: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) would_have_rejected: AtomicU64,
}

/// What was decided of a call.
#[derive(Debug)]
pub(crate) enum Admission {
    /// With this unit, where there is a rate.
    Goes(Option<Unit>),
    /// Until then at the latest.
    Waits(Place, u64),
    /// Its turn would come after so long.
    Refused(Span),
}

/// Between two looks of the rule.
const EVERY: u64 = 10_000_000;
/// However long a server wants nothing, it is asked again after this.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

impl Controller {
    pub(crate) fn new(reporter: Reporter, shadow: bool, wait: Option<Duration>) -> Self {
        Controller {
            pacer: Pacer::default(),
            cubic: Mutex::new(Cubic::new(0.0)),
            made: Count::default(),
            held_back: AtomicU64::new(0),
            told: AtomicU64::new(0),
            tell_at: AtomicU64::new(EVERY),
            raise_at: AtomicU64::new(EVERY),
            epoch: Epoch::new(),
            wait,
            reporter,
            shadow: AtomicBool::new(shadow),
            cuts: AtomicU32::new(0),
            throttled: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            would_have_rejected: AtomicU64::new(0),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.reporter.name()
    }

    pub(crate) fn now(&self) -> u64 {
        self.epoch.now()
    }

    fn at(&self, instant: Instant) -> u64 {
        self.epoch.at(instant)
    }

    pub(crate) fn instant(&self, at: u64) -> Option<Instant> {
        self.epoch.instant(at)
    }

    pub(crate) fn shadow(&self, on: bool) {
        self.shadow.store(on, Relaxed);
        if on {
            self.pacer.call_all();
        }
    }

    pub(crate) fn in_shadow(&self) -> bool {
        self.shadow.load(Relaxed)
    }

    // === before the call ===

    /// Would a call not go at once? Asked before the inner service is, so that a closed door does not touch the house.
    #[inline]
    pub(crate) fn is_shut(&self) -> bool {
        !self.pacer.is_free() && self.is_shut_now()
    }

    #[cold]
    fn is_shut_now(&self) -> bool {
        let now = self.now();
        self.pacer.peek(now) > now && !self.in_shadow()
    }

    /// May this call be made? `deadline` is asked for only where there is a rate.
    #[inline]
    pub(crate) fn admit(&self, deadline: impl FnOnce() -> Option<Deadline>) -> Admission {
        if self.pacer.is_free() { Admission::Goes(None) } else { self.admit_at_a_rate(deadline()) }
    }

    #[cold]
    fn admit_at_a_rate(&self, deadline: Option<Deadline>) -> Admission {
        let now = self.now();
        let own = now.saturating_add(nanos(self.wait.unwrap_or_default()));
        let latest = deadline.map_or(own, |d| own.min(self.at(d.instant())));
        if self.in_shadow() {
            match self.pacer.peek(now) {
                turn if turn > latest.max(now) => _ = self.book_refusal(Reason::Throttled),
                _ => self.pacer.charge(now),
            }
            return Admission::Goes(None);
        }
        match self.pacer.ask(now, latest) {
            Asked::Goes(unit) => Admission::Goes(Some(unit)),
            Asked::Waits(place) => Admission::Waits(place, latest),
            Asked::Late(turn) => self.too_early(turn, now).map_or(Admission::Goes(None), Admission::Refused),
        }
    }

    /// It would be made too early, and its turn comes then. `None` in shadow, where it goes all the same.
    #[cold]
    pub(crate) fn too_early(&self, turn: u64, now: u64) -> Option<Span> {
        self.book_refusal(Reason::Throttled).then_some(Span(turn.saturating_sub(now)))
    }

    /// Books a refusal and tells of it. Not in shadow, where the call goes all the same.
    #[cold]
    fn book_refusal(&self, reason: Reason) -> bool {
        let shadow = self.in_shadow();
        let (count, kind) = if shadow {
            (&self.would_have_rejected, Kind::WouldHaveRejected { reason })
        } else {
            (&self.rejected, Kind::Rejected { reason })
        };
        count.fetch_add(1, Relaxed);
        self.reporter.report(kind);
        !shadow
    }

    /// A call that had its turn, or had none to wait for, and for which the inner service did not get ready by its
    /// deadline.
    #[cold]
    pub(crate) fn late(&self) -> Option<Rejection> {
        let reason = Reason::DeadlineExceeded;
        // The backend was given no time at all.
        self.book_refusal(reason).then(|| self.reporter.rejection(reason).with_time_it_had(Duration::ZERO))
    }

    #[cold]
    pub(crate) fn rejection(&self, retry_after: Span) -> Rejection {
        self.reporter.rejection(Reason::Throttled).with_retry_after(retry_after.duration())
    }

    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    // === after the call ===

    /// A call is made. How often has the rate been lowered so far?
    #[inline]
    pub(super) fn sends(&self) -> u32 {
        let cuts = self.cuts.load(Relaxed);
        self.made.add();
        let now = self.now();
        if now >= self.tell_at.load(Relaxed) {
            self.tell(now, |_, _| None);
        }
        cuts
    }

    /// The server asks its callers to come back after so long.
    #[cold]
    pub(crate) fn hold(&self, after: Duration) {
        self.pacer.hold(self.now().saturating_add(nanos(after.min(LONGEST_HOLD))));
    }

    /// An answer has come, and does not ask for less. Without a rate there is nothing to be raised.
    #[inline]
    pub(super) fn answered(&self) {
        if self.pacer.has_rate() {
            self.answered_at_a_rate();
        }
    }

    #[cold]
    fn answered_at_a_rate(&self) {
        let now = self.now();
        if now >= self.raise_at.load(Relaxed) {
            self.tell(now, |cubic, seconds| {
                self.raise_at.store(now.saturating_add(EVERY), Relaxed);
                cubic.succeeded(seconds)
            });
        }
    }

    /// Of a call that was made after so many cuts.
    #[cold]
    pub(super) fn throttled(&self, cuts: u32) {
        self.throttled.fetch_add(1, Relaxed);
        let lock = self.cubic.lock().unwrap_or_else(PoisonError::into_inner);
        self.learn(lock, self.now(), |cubic, now| {
            // All that was under way then was sent at the rate that was too much, and says no more than the first of
            // it.
            let is_first = cuts == self.cuts.load(Relaxed);
            is_first.then(|| {
                self.cuts.fetch_add(1, Relaxed);
                cubic.throttled(now)
            })
        });
    }

    /// A policy further in refused it, or found its time over: it was not sent.
    #[cold]
    pub(super) fn was_held_back(&self) {
        self.held_back.fetch_add(1, Relaxed);
    }

    /// Tells the rule how much was sent and what came of it; unless somebody else does just now: the next one does
    /// then.
    #[cold]
    fn tell(&self, now: u64, what: impl FnOnce(&mut Cubic, f64) -> Option<f64>) {
        match self.cubic.try_lock() {
            Ok(lock) => self.learn(lock, now, what),
            Err(TryLockError::Poisoned(lock)) => self.learn(lock.into_inner(), now, what),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn learn(&self, mut cubic: MutexGuard<'_, Cubic>, now: u64, what: impl FnOnce(&mut Cubic, f64) -> Option<f64>) {
        self.tell_at.store(now.saturating_add(EVERY), Relaxed);
        // Those that were held back were made before. More of them than were made since the last time are for the next.
        let sent = self.made.sum().saturating_sub(self.held_back.load(Relaxed));
        let new = sent.saturating_sub(self.told.fetch_max(sent, Relaxed));
        let seconds = now as f64 / 1e9;
        cubic.measure(seconds, new);
        if let Some(rate) = what(&mut cubic, seconds) {
            self.pacer.set_rate(rate, now);
            // A waker is somebody else's code.
            drop(cubic);
            self.pacer.call_first();
        }
    }
}
