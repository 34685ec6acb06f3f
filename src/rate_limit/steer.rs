//! What a handle can do, whatever the store behind the layer.

use std::sync::{PoisonError, atomic::Ordering::Relaxed};

use crate::{
    observe::{Figure, Reporter, Watched},
    rate_limit::{Engine, Quota, RateLimitSnapshot, gcra::Meter, limiter::Limiter, store::Local},
    stripe::Striped,
    wake::wake_all,
};

/// What a handle can do, whatever the store.
pub(crate) trait Steer: Send + Sync {
    fn snapshot(&self) -> RateLimitSnapshot;
    fn set_quota(&self, quota: Quota, meter: Meter);
    fn shadow(&self, on: bool);
}

impl<St: Engine> Steer for Striped<Limiter<St>> {
    fn snapshot(&self) -> RateLimitSnapshot {
        RateLimitSnapshot {
            admitted: self.admitted.sum(),
            rejected: self.rejected.sum(),
            would_have_rejected: self.would_have_rejected.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            keys: self.store.local().map_or(0, |Local(buckets)| buckets.keys()),
            shadow: self.in_shadow(),
            quota: self.quota(),
        }
    }

    fn set_quota(&self, quota: Quota, meter: Meter) {
        // Held to the end, so that two at once leave quotas and headers of the same.
        let mut current = self.quota.lock().unwrap_or_else(PoisonError::into_inner);
        *current = quota;
        #[cfg(feature = "http")]
        self.policy.store(crate::rate_limit::headers::Policy::of(quota).pack(), Relaxed);
        let mut wake = Vec::new();
        if let Some(Local(buckets)) = self.store.local() {
            buckets.set(meter, || self.now(), &mut wake);
        }
        self.look_again();
        drop(current);
        wake_all(wake);
    }

    fn shadow(&self, on: bool) {
        self.shadow.store(on, Relaxed);
        if !on {
            return;
        }
        self.pausing.call_all();
        if let Some(Local(buckets)) = self.store.local() {
            let mut wake = Vec::new();
            buckets.call_all(&mut wake);
            wake_all(wake);
        }
    }
}

impl<St: Engine> Watched for Striped<Limiter<St>> {
    fn reporter(&self) -> &Reporter {
        Limiter::reporter(self)
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let figures = self.snapshot();
        visit("admitted", Figure::Count(figures.admitted));
        visit("rejected", Figure::Count(figures.rejected));
        visit("would_have_rejected", Figure::Count(figures.would_have_rejected));
        visit("waiting", Figure::count(figures.waiting));
        visit("keys", Figure::count(figures.keys));
        visit("shadow", Figure::Flag(figures.shadow));
    }
}
