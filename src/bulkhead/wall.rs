//! The shell around the waiting room: the clock, the settings, the events, the counters. One per layer, shared by all
//! it makes.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    bulkhead::{
        BulkheadConfig,
        door::{Admission, Door, Waits},
        settings::{self, Settings, nanos},
    },
    deadline::{self, Deadline},
    observe::{Kind, Reporter},
    priority::Priority,
    queue::{Entrant, Entry, Room},
    rejection::{Reason, Rejection},
    time::{self, Instant},
};

#[cfg(feature = "http")]
pub(crate) type PriorityFn = Box<dyn Fn(&http::request::Parts) -> Priority + Send + Sync>;
#[cfg(not(feature = "http"))]
pub(crate) type PriorityFn = std::convert::Infallible;

pub(crate) struct Wall {
    pub(crate) room: Room,
    /// The room's time counts from here.
    base: Instant,
    settings: Settings,
    priority_fn: Option<PriorityFn>,
    reporter: Reporter,
    shadow: AtomicBool,
    pub(crate) rejected: AtomicU64,
    pub(crate) would_have_rejected: AtomicU64,
    pub(crate) permits_expired: AtomicU64,
}

impl Wall {
    pub(crate) fn new(
        reporter: Reporter,
        shadow: bool,
        config: BulkheadConfig,
        priority_fn: Option<PriorityFn>,
    ) -> Self {
        Wall {
            room: Room::new(config.limit, settings::patience(config.wait)),
            base: time::now(),
            settings: Settings::new(config),
            priority_fn,
            reporter,
            shadow: AtomicBool::new(shadow),
            rejected: AtomicU64::new(0),
            would_have_rejected: AtomicU64::new(0),
            permits_expired: AtomicU64::new(0),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.reporter.name()
    }

    pub(crate) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    #[cfg(feature = "http")]
    pub(crate) fn priority_fn(&self) -> Option<&PriorityFn> {
        self.priority_fn.as_ref()
    }

    pub(crate) fn in_shadow(&self) -> bool {
        self.shadow.load(Relaxed)
    }

    // === time ===

    pub(crate) fn now(&self) -> u64 {
        self.at(time::now())
    }

    fn at(&self, instant: Instant) -> u64 {
        nanos(instant.saturating_duration_since(self.base))
    }

    /// A year from now, if it is beyond the clock's range.
    pub(crate) fn instant(&self, at: u64) -> Instant {
        self.base.checked_add(Duration::from_nanos(at)).unwrap_or_else(|| time::now() + time::LONGEST)
    }

    /// When somebody who waits has to look again by itself: at its own end, or when a stalled reader may lose its permit.
    pub(crate) fn next_look(&self, now: u64, expires: u64) -> Instant {
        let lease = self.room.next_look(now, self.settings.lease());
        self.instant(expires.min(lease))
    }

    // === calls ===

    /// May the next call go in? Asked before the inner service is, so that a closed door does not touch the house.
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        Deadline::current().is_none() && self.room.view().lets_pass()
    }

    /// What a call would find that has a deadline or finds no room.
    #[cold]
    pub(crate) fn look(&self) -> Door {
        if self.in_shadow() {
            return Door::Open;
        }
        if deadline::current_passed() {
            return Door::Refuses(Reason::DeadlineExceeded);
        }
        if self.room.view().lets_pass() {
            return Door::Open;
        }
        if self.room.has_streams() {
            self.put_out_stalled(self.now());
        }
        match self.settings.queue() {
            _ if self.room.view().lets_pass() => Door::Open,
            0 => Door::Refuses(Reason::BulkheadFull),
            _ => Door::Shut,
        }
    }

    /// Admits a call that has a deadline or finds no room.
    #[cold]
    pub(crate) fn admit(&self, deadline: Option<Deadline>, priority: impl FnOnce() -> Priority) -> Admission {
        let now = self.now();
        let deadline = deadline.map(|d| self.at(d.instant()));
        let shadow = self.in_shadow();
        if deadline.is_some_and(|d| d <= now) {
            if !shadow {
                return Admission::Refused(Reason::DeadlineExceeded);
            }
            self.would_refuse(Reason::DeadlineExceeded);
            self.room.push_in();
            return Admission::In;
        }
        if self.room.pass() {
            return Admission::In;
        }
        self.put_out_stalled(now);
        if shadow {
            self.push_in();
            return Admission::In;
        }
        match self.settings.queue() {
            0 if self.room.pass() => Admission::In,
            0 => Admission::Refused(Reason::BulkheadFull),
            most => self.enter(now, deadline, priority(), most),
        }
    }

    fn enter(&self, now: u64, deadline: Option<u64>, priority: Priority, most: usize) -> Admission {
        let own = now.saturating_add(self.settings.wait());
        let (expires, why) = match deadline {
            Some(deadline) if deadline < own => (deadline, Reason::DeadlineExceeded),
            _ => (own, Reason::QueueTimeout),
        };
        match self.room.enter(now, Entrant { priority, expires, why }, most) {
            Entry::In => Admission::In,
            Entry::Waits(place) => Admission::Waits(Waits::new(place, now, expires, why)),
            Entry::Refused(reason) => Admission::Refused(reason),
        }
    }

    /// In shadow: goes in whatever the limit says. What is above it stands for the queue, so a call would have been
    /// refused where that were full.
    fn push_in(&self) {
        let before = self.room.push_in();
        if before >= self.room.view().limit().saturating_add(self.settings.queue()) {
            self.would_refuse(Reason::BulkheadFull);
        }
    }

    /// A call that was in has ended.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        if self.room.leave() {
            self.let_in();
        }
    }

    #[cold]
    pub(crate) fn let_in(&self) {
        self.room.let_in(self.now());
    }

    /// Somebody has waited in vain. In shadow it goes in all the same, and is reported.
    #[cold]
    pub(crate) fn refuse_waiter(&self, reason: Reason) -> Result<(), Reason> {
        if !self.in_shadow() {
            self.refuse(reason);
            return Err(reason);
        }
        self.would_refuse(reason);
        self.room.push_in();
        Ok(())
    }

    /// Somebody has waited, whatever has become of it.
    #[cold]
    pub(crate) fn has_waited(&self, waits: Waits) {
        self.reporter.waited(waits.so_far(self.now()));
    }

    /// Books a refusal and tells of it.
    #[cold]
    pub(crate) fn refuse(&self, reason: Reason) {
        self.rejected.fetch_add(1, Relaxed);
        self.reporter.report(Kind::Rejected { reason });
    }

    fn would_refuse(&self, reason: Reason) {
        self.would_have_rejected.fetch_add(1, Relaxed);
        self.reporter.report(Kind::WouldHaveRejected { reason });
    }

    pub(crate) fn rejection(&self, reason: Reason) -> Rejection {
        let rejection = self.reporter.rejection(reason);
        // The backend was given no time at all, whatever the policies outside of us think that the call has had.
        if reason == Reason::DeadlineExceeded { rejection.with_time_it_had(Duration::ZERO) } else { rejection }
    }

    /// Takes their permits from readers that have stalled.
    pub(crate) fn put_out_stalled(&self, now: u64) {
        for _ in 0..self.room.put_out_stalled(now, self.settings.lease()) {
            self.permits_expired.fetch_add(1, Relaxed);
            self.reporter.report(Kind::PermitExpired);
        }
    }

    // === by hand ===

    pub(crate) fn shadow(&self, on: bool) {
        self.shadow.store(on, Relaxed);
        if on {
            self.room.let_all_in();
        }
    }

    pub(crate) fn resize(&self, limit: usize) {
        let from = self.room.set_limit(limit, self.now());
        if from != limit {
            self.reporter.report(Kind::LimitChanged { from, to: limit });
        }
    }

    pub(crate) fn update(&self, config: BulkheadConfig) {
        self.settings.store(config);
        self.room.set_patience(settings::patience(config.wait));
        self.room.look_anew();
        self.resize(config.limit);
    }

    pub(crate) fn config(&self) -> BulkheadConfig {
        self.settings.load(self.room.view().limit())
    }
}

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wall")
            .field("reporter", &self.reporter)
            .field("config", &self.config())
            .field("shadow", &self.in_shadow())
            .field("priority_fn", &self.priority_fn.is_some())
            .finish_non_exhaustive()
    }
}
