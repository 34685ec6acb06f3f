//! What a handle can do, whatever the store behind the layer.

use std::sync::{PoisonError, atomic::Ordering::Relaxed};

use crate::{
    observe::{Figure, Reporter, Watched},
    rate_limit::{Engine, Quota, gcra::Meter, limiter::Limiter, store::Local},
    stripe::Striped,
    wake::wake_all,
};

/// What a handle can do, whatever the store.
pub(crate) trait Steer: Send + Sync {
    fn figures(&self) -> Figures;
    fn set_quota(&self, quota: Quota, meter: Meter);
    fn shadow(&self, on: bool);
}

/// The figures of a limiter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) admitted: u64,
    pub(crate) rejected: u64,
    pub(crate) would_have_rejected: u64,
    pub(crate) waiting: usize,
    pub(crate) keys: usize,
    pub(crate) shadow: bool,
    pub(crate) quota: Quota,
}

impl<St: Engine> Steer for Limiter<St> {
    fn figures(&self) -> Figures {
        Figures {
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

impl<T: Steer> Steer for Striped<T> {
    fn figures(&self) -> Figures {
        (**self).figures()
    }

    fn set_quota(&self, quota: Quota, meter: Meter) {
        (**self).set_quota(quota, meter);
    }

    fn shadow(&self, on: bool) {
        (**self).shadow(on);
    }
}

impl<St: Engine> Watched for Striped<Limiter<St>> {
    fn reporter(&self) -> &Reporter {
        Limiter::reporter(self)
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let figures = Steer::figures(self);
        visit("admitted", Figure::Count(figures.admitted));
        visit("rejected", Figure::Count(figures.rejected));
        visit("would_have_rejected", Figure::Count(figures.would_have_rejected));
        visit("waiting", Figure::count(figures.waiting));
        visit("keys", Figure::count(figures.keys));
        visit("shadow", Figure::Flag(figures.shadow));
    }
}
