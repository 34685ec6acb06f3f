//! Speaks for one layer: makes its rejections, its events, its counts.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{Event, Kind, Observer, Sight, contain};
#[cfg(feature = "metrics")]
use super::{
    Watched,
    metrics::{Meters, layers::Trace},
};
use crate::{
    origin::Origin,
    outcome::Outcome,
    registry::Seat,
    rejection::{Reason, Rejection, Told},
    stripe::Striped,
};

/// Speaks for one layer. Whatever is told here reaches observers, streams, metrics and `tracing`.
pub(crate) struct Reporter {
    origin: Striped<Origin>,
    observers: Box<[Box<dyn Observer>]>,
    /// Keeps its name in a registry.
    seat: Option<Arc<Seat>>,
    /// Without observers and a registry nobody can ever listen.
    may_have_listeners: bool,
    contained: AtomicU64,
    /// The layer it speaks for.
    speaks_for: OnceLock<Arc<dyn Sight>>,
    #[cfg(feature = "metrics")]
    meters: Meters,
}

/// What forbids a further attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StoppedBy {
    Budget,
    Deadline,
}

#[cfg(feature = "metrics")]
impl StoppedBy {
    pub(crate) const NAMES: [&'static str; 2] = ["budget", "deadline"];
}

impl Reporter {
    /// `reasons` are those the policy can give.
    pub(crate) fn new(
        origin: Origin,
        #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "counted only by metrics"))]
        reasons: &'static [Reason],
        observers: Vec<Box<dyn Observer>>,
        seat: Option<Arc<Seat>>,
    ) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            meters: Meters::new(origin.policy(), Arc::clone(origin.name()), reasons),
            origin: Striped::new(origin),
            may_have_listeners: !observers.is_empty() || seat.is_some(),
            observers: observers.into(),
            seat,
            contained: AtomicU64::new(0),
            speaks_for: OnceLock::new(),
        }
    }

    pub(crate) fn policy(&self) -> &'static str {
        self.origin.policy()
    }

    pub(crate) fn name(&self) -> &str {
        self.origin.name()
    }

    #[inline]
    pub(crate) fn rejection(&self, reason: Reason) -> Rejection {
        Rejection::new(&self.origin, reason)
    }

    /// Refuses a call: counts it, tells of it, and makes what the caller is told.
    #[inline(always)]
    pub(crate) fn refuse(&self, told: Told) -> Rejection {
        if self.is_heard() {
            self.tell_of_a_refusal(told.reason());
        }
        Rejection::counted(&self.origin, told)
    }

    /// Calls [refused](Self::refuse).
    pub(crate) fn refused(&self) -> u64 {
        self.origin.tally()
    }

    /// How many panics of its observers were contained.
    pub(crate) fn contained(&self) -> u64 {
        self.contained.load(Relaxed)
    }

    pub(super) fn speaks_for(&self, layer: Arc<dyn Sight>) {
        if let Some(seat) = &self.seat {
            seat.take(Arc::clone(&layer));
        }
        let _ = self.speaks_for.set(layer);
    }

    // === events ===

    /// Tells whoever listens. Call it with no lock held.
    #[inline]
    pub(crate) fn report(&self, kind: Kind) {
        if self.is_heard() {
            self.tell(kind, None);
        }
    }

    /// As [`report`](Self::report), where making the event would be work for nothing.
    #[inline(always)]
    pub(crate) fn report_with(&self, kind: impl FnOnce() -> Kind) {
        if self.is_heard() {
            self.tell(kind(), None);
        }
    }

    /// As [`report`](Self::report), of this key.
    #[cfg(feature = "http")]
    pub(crate) fn report_of(&self, key: Option<&Arc<str>>, kind: Kind) {
        if self.is_heard() {
            self.tell(kind, key);
        }
    }

    /// May anybody listen?
    #[inline]
    fn is_heard(&self) -> bool {
        cfg!(any(feature = "metrics", feature = "tracing")) || self.may_have_listeners
    }

    /// An attempt ended by a panic.
    #[cold]
    #[inline(never)]
    pub(crate) fn panicked(&self, number: u32) {
        self.report(Kind::Attempt { number, outcome: Outcome::Failure, delay: None });
    }

    /// As [`report`](Self::report), of an attempt that ended well. First ones are nearly all that there are, so they
    /// take the short way to where they are counted.
    #[inline(always)]
    pub(crate) fn succeeded(&self, number: u32) {
        if self.may_have_listeners {
            self.tell_of_a_success(number);
        } else {
            self.succeeded_unheard(number);
        }
    }

    /// Without observers and a registry nobody ever listens to events.
    pub(crate) fn may_have_listeners(&self) -> bool {
        self.may_have_listeners
    }

    /// As [`succeeded`](Self::succeeded), where nobody [can listen](Self::may_have_listeners).
    #[inline(always)]
    #[cfg_attr(not(any(feature = "metrics", feature = "tracing")), allow(unused_variables, reason = "nobody counts"))]
    pub(crate) fn succeeded_unheard(&self, number: u32) {
        if cfg!(any(feature = "metrics", feature = "tracing")) && number > 1 {
            self.tell_of_a_success(number);
        } else {
            #[cfg(feature = "metrics")]
            self.meters.attempted(Outcome::Success, || self.layer());
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_of_a_success(&self, number: u32) {
        self.tell(Kind::Attempt { number, outcome: Outcome::Success, delay: None }, None);
    }

    /// A further attempt was not made.
    #[cold]
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, reason = "nobody counts"))]
    pub(crate) fn stopped(&self, by: StoppedBy) {
        #[cfg(feature = "metrics")]
        self.meters.stopped(by, || self.layer());
    }

    fn has_listeners(&self) -> bool {
        !self.observers.is_empty() || self.seat.as_ref().is_some_and(|seat| seat.hub().has_listeners())
    }

    #[cold]
    #[inline(never)]
    fn tell_of_a_refusal(&self, reason: Reason) {
        self.tell(Kind::Rejected { reason }, None);
    }

    #[cold]
    fn tell(&self, kind: Kind, key: Option<&Arc<str>>) {
        #[cfg(feature = "metrics")]
        self.contain(|| self.meters.event(&kind, || self.layer()));
        #[cfg(feature = "tracing")]
        self.contain(|| super::trace::event(self.policy(), self.name(), key.map(|k| &**k), &kind));
        if !self.has_listeners() {
            return;
        }
        let event = Event { policy: self.policy(), name: Arc::clone(self.origin.name()), kind, key: key.cloned() };
        for observer in &self.observers {
            // An observer that panics must not take the call with it, nor keep the next observer from its event.
            self.contain(|| observer.on_event(&event));
        }
        if let Some(seat) = &self.seat {
            self.contain(|| seat.hub().send(&event));
        }
    }

    fn contain(&self, run: impl FnOnce()) {
        if !contain(run) {
            self.contained.fetch_add(1, Relaxed);
            #[cfg(feature = "metrics")]
            contain(|| self.meters.observer_panicked(|| self.layer()));
        }
    }

    #[cfg(feature = "metrics")]
    fn layer(&self) -> Option<Arc<dyn Watched>> {
        self.speaks_for.get()?.layer()
    }

    // === counts of calls, for metrics alone ===

    /// A call that was let in has ended. For policies that judge.
    #[inline(always)]
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, clippy::unused_self, reason = "nobody counts"))]
    pub(crate) fn ended(&self, outcome: Outcome) {
        #[cfg(feature = "metrics")]
        self.meters.ended(outcome, || self.layer());
    }

    /// A call was let in. For policies that do not judge.
    #[inline(always)]
    #[cfg_attr(not(feature = "metrics"), allow(clippy::unused_self, reason = "nobody counts"))]
    pub(crate) fn admitted(&self) {
        #[cfg(feature = "metrics")]
        self.meters.admitted(|| self.layer());
    }

    /// A call has waited for its turn, for so long, whatever became of it.
    #[cold]
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables, clippy::unused_self, reason = "nobody counts"))]
    pub(crate) fn waited(&self, time: std::time::Duration) {
        #[cfg(feature = "metrics")]
        self.contain(|| self.meters.waited(time, || self.layer()));
    }

    #[cfg(feature = "metrics")]
    pub(super) fn trace(&self, layer: &dyn Watched) -> Trace {
        self.meters.trace(layer)
    }

    /// Shows its gauges as they are now.
    #[cfg(feature = "metrics")]
    pub(super) fn publish(&self, layer: &dyn Watched) {
        self.contain(|| self.meters.publish(layer));
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("origin", &self.origin).field("observers", &self.observers.len()).finish()
    }
}
