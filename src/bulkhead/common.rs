//! What all limiters of a layer have in common: the clock, the settings, the events, the counters.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    bulkhead::{BulkheadConfig, settings::Settings},
    observe::{Kind, Reporter},
    rejection::{Reason, Rejection},
    time::{self, Epoch, Instant},
};

#[cfg(feature = "http")]
pub(crate) type PriorityFn = Box<dyn Fn(&http::request::Parts) -> crate::Priority + Send + Sync>;
#[cfg(not(feature = "http"))]
pub(crate) type PriorityFn = std::convert::Infallible;

/// One per layer.
pub(crate) struct Common {
    /// The time of all limiters counts from here.
    epoch: Epoch,
    pub(crate) settings: Settings,
    priority_fn: Option<PriorityFn>,
    reporter: Reporter,
    shadow: AtomicBool,
    pub(crate) rejected: AtomicU64,
    pub(crate) would_have_rejected: AtomicU64,
    pub(crate) permits_expired: AtomicU64,
}

impl Common {
    pub(crate) fn new(
        reporter: Reporter,
        shadow: bool,
        config: BulkheadConfig,
        priority_fn: Option<PriorityFn>,
    ) -> Self {
        Common {
            epoch: Epoch::new(),
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

    #[inline(always)]
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

    pub(crate) fn set_shadow(&self, on: bool) {
        self.shadow.store(on, Relaxed);
    }

    // === time ===

    pub(crate) fn now(&self) -> u64 {
        self.epoch.now()
    }

    pub(crate) fn at(&self, instant: Instant) -> u64 {
        self.epoch.at(instant)
    }

    /// A year from now, if it is beyond the clock's range.
    pub(crate) fn instant(&self, at: u64) -> Instant {
        self.epoch.instant(at).unwrap_or_else(|| time::now() + time::LONGEST)
    }

    // === events ===

    /// Books a refusal and tells of it.
    #[cold]
    pub(crate) fn refuse(&self, reason: Reason) {
        self.rejected.fetch_add(1, Relaxed);
        self.reporter.report(Kind::Rejected { reason });
    }

    pub(crate) fn would_refuse(&self, reason: Reason) {
        self.would_have_rejected.fetch_add(1, Relaxed);
        self.reporter.report(Kind::WouldHaveRejected { reason });
    }

    pub(crate) fn permit_expired(&self) {
        self.permits_expired.fetch_add(1, Relaxed);
        self.reporter.report(Kind::PermitExpired);
    }

    pub(crate) fn limit_changed(&self, from: usize, to: usize) {
        self.reporter.report(Kind::LimitChanged { from, to });
    }

    pub(crate) fn rejection(&self, reason: Reason) -> Rejection {
        let rejection = self.reporter.rejection(reason);
        // The backend was given no time at all, whatever the policies outside of us think that the call has had.
        if reason == Reason::DeadlineExceeded { rejection.with_time_it_had(Duration::ZERO) } else { rejection }
    }
}

impl fmt::Debug for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Common")
            .field("reporter", &self.reporter)
            .field("config", &self.settings.load())
            .field("shadow", &self.in_shadow())
            .field("priority_fn", &self.priority_fn.is_some())
            .finish_non_exhaustive()
    }
}
