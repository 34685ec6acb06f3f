//! The shell around a waiting room. One per layer, shared by all it makes, or one per key.

use std::{fmt, sync::Arc};

use crate::{
    bulkhead::{
        BulkheadConfig,
        common::Common,
        door::{Admission, Shut, Waits},
        settings,
    },
    deadline::{self, Deadline},
    observe::Reporter,
    priority::Priority,
    queue::{Entrant, Entry, Room},
    rejection::Reason,
    time::{Instant, nanos},
};

#[cfg(feature = "http")]
use crate::bulkhead::by_key::ByKey;

pub(crate) struct Limiter {
    pub(crate) room: Room,
    pub(crate) common: Arc<Common>,
    /// Of a layer with keys. Then nobody passes here, so that calls of other layers need not look for it.
    #[cfg(feature = "http")]
    pub(crate) by_key: Option<Box<ByKey>>,
}

impl Limiter {
    pub(crate) fn new(common: Arc<Common>) -> Self {
        Limiter::of(common.settings.limit(), common)
    }

    pub(crate) fn of(limit: usize, common: Arc<Common>) -> Self {
        Limiter {
            room: Room::new(limit, settings::patience(&common.settings)),
            common,
            #[cfg(feature = "http")]
            by_key: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.common.name()
    }

    pub(crate) fn reporter(&self) -> &Reporter {
        self.common.reporter()
    }

    pub(crate) fn now(&self) -> u64 {
        self.common.now()
    }

    /// When somebody who waits has to look again by itself: at its own end, or when a stalled reader may lose its
    /// permit.
    pub(crate) fn next_look(&self, now: u64, expires: u64) -> Instant {
        let lease = self.room.next_look(now, self.common.settings.lease());
        self.common.instant(expires.min(lease))
    }

    // === calls ===

    /// May the next call go in? Asked before the inner service is, so that a closed door does not touch the house.
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        Deadline::current().is_none() && self.room.view().lets_pass()
    }

    /// What a call would find that has a deadline or finds no room.
    #[cold]
    pub(crate) fn look(&self) -> Option<Shut> {
        if self.common.in_shadow() {
            return None;
        }
        if deadline::has_passed(Deadline::current()) {
            return Some(Shut::Refuses(Reason::DeadlineExceeded));
        }
        #[cfg(feature = "http")]
        if self.by_key.is_some() {
            // What it finds behind that of its key the call finds out for itself.
            return None;
        }
        if self.room.view().lets_pass() {
            return None;
        }
        if self.room.has_streams() {
            self.put_out_stalled(self.now());
        }
        match self.common.settings.queue() {
            _ if self.room.view().lets_pass() => None,
            0 => Some(Shut::Refuses(Reason::BulkheadFull)),
            _ => Some(Shut::Waits),
        }
    }

    /// Admits a call that has a deadline or finds no room.
    #[cold]
    pub(crate) fn admit(&self, deadline: Option<Deadline>, priority: impl FnOnce() -> Priority) -> Admission {
        let now = self.now();
        let deadline = deadline.map(|d| self.common.at(d.instant()));
        let shadow = self.common.in_shadow();
        if deadline.is_some_and(|d| d <= now) {
            if !shadow {
                return Admission::Refused(Reason::DeadlineExceeded);
            }
            self.common.would_refuse(Reason::DeadlineExceeded);
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
        match self.common.settings.queue() {
            0 if self.room.pass() => Admission::In,
            0 => Admission::Refused(Reason::BulkheadFull),
            most => self.enter(now, deadline, priority(), most),
        }
    }

    fn enter(&self, now: u64, deadline: Option<u64>, priority: Priority, most: usize) -> Admission {
        let (expires, why) = self.until(now, deadline);
        match self.room.enter(now, Entrant { priority, expires, why }, most) {
            Entry::In => Admission::In,
            Entry::Waits(place) => Admission::Waits(Waits::new(place, now, expires, why)),
            Entry::Refused(reason) => Admission::Refused(reason),
        }
    }

    /// Until when a call may wait that came `now`, and why no longer.
    fn until(&self, now: u64, deadline: Option<u64>) -> (u64, Reason) {
        let own = now.saturating_add(self.common.settings.wait());
        match deadline {
            Some(deadline) if deadline < own => (deadline, Reason::DeadlineExceeded),
            _ => (own, Reason::QueueTimeout),
        }
    }

    /// How long a call that is in may wait for the inner service; in shadow as long as that takes.
    pub(crate) fn grants(&self, deadline: Option<Deadline>) -> Option<Waits> {
        if self.common.in_shadow() {
            return None;
        }
        let now = self.now();
        let (expires, why) = self.until(now, deadline.map(|d| self.common.at(d.instant())));
        Some(Waits::new(0, now, expires, why))
    }

    /// In shadow: goes in whatever the limit says. What is above it stands for the queue, so a call would have been
    /// refused where that were full.
    fn push_in(&self) {
        let before = self.room.push_in();
        if before >= self.room.view().limit().saturating_add(self.common.settings.queue()) {
            self.common.would_refuse(Reason::BulkheadFull);
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
        if !self.common.in_shadow() {
            self.common.refuse(reason);
            return Err(reason);
        }
        self.common.would_refuse(reason);
        self.room.push_in();
        Ok(())
    }

    /// Somebody has waited, whatever has become of it.
    #[cold]
    pub(crate) fn has_waited(&self, waits: Waits) {
        self.reporter().waited(waits.so_far(self.now()));
    }

    /// Takes their permits from readers that have stalled.
    pub(crate) fn put_out_stalled(&self, now: u64) {
        for _ in 0..self.room.put_out_stalled(now, || self.common.settings.lease()) {
            self.common.permit_expired();
        }
    }

    // === by hand ===

    pub(crate) fn shadow(&self, on: bool) {
        self.common.set_shadow(on);
        if on {
            self.for_all(|limiter| limiter.room.let_all_in());
        }
    }

    pub(crate) fn resize(&self, limit: usize) {
        self.was_resized(self.common.settings.set_limit(limit), limit);
    }

    fn was_resized(&self, from: usize, to: usize) {
        self.for_all(Limiter::fit);
        if from != to {
            self.common.limit_changed(from, to);
        }
    }

    pub(crate) fn update(&self, config: BulkheadConfig) {
        let before = self.common.settings.store(config);
        self.for_all(|limiter| {
            limiter.room.set_patience(settings::patience(&self.common.settings));
            limiter.room.look_anew();
        });
        self.was_resized(before.limit, config.limit);
        // Who waits has been told of the old lease, and may be all there is.
        let is_shorter = nanos(config.permit_lease) < before.lease;
        self.for_all(|limiter| {
            limiter.put_out_stalled(limiter.now());
            if is_shorter {
                limiter.room.call_waiters();
            }
        });
    }

    /// Gives the room the limit of the settings.
    fn fit(&self) {
        loop {
            let limit = self.common.settings.limit();
            self.room.set_limit(limit, self.now());
            // Somebody else may have set it meanwhile, and have been here before us.
            if self.common.settings.limit() == limit {
                break;
            }
        }
    }

    /// Does something with every room in which calls are, which may wake those who wait: no lock is held.
    fn for_all(&self, act: impl Fn(&Limiter)) {
        #[cfg(feature = "http")]
        if let Some(by_key) = &self.by_key {
            return by_key.all().iter().for_each(|limiter| act(limiter));
        }
        act(self);
    }

    /// Looks at every room, with locks held.
    pub(crate) fn look_at_all(&self, mut look: impl FnMut(&Limiter)) {
        look(self);
        #[cfg(feature = "http")]
        if let Some(by_key) = &self.by_key {
            by_key.look_at_each(look);
        }
    }

    pub(crate) fn is_per_key(&self) -> bool {
        #[cfg(feature = "http")]
        return self.by_key.is_some();
        #[cfg(not(feature = "http"))]
        false
    }

    pub(crate) fn keys(&self) -> usize {
        #[cfg(feature = "http")]
        return self.by_key.as_ref().map_or(0, |by_key| by_key.keys());
        #[cfg(not(feature = "http"))]
        0
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut limiter = f.debug_struct("Limiter");
        limiter.field("common", &self.common);
        #[cfg(feature = "http")]
        limiter.field("by_key", &self.by_key);
        limiter.finish_non_exhaustive()
    }
}
