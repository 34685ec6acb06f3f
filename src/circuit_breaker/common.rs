//! What all breakers of a layer have in common: the reporter, the configuration, the counters. One per layer.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    Until,
    circuit_breaker::CircuitBreakerConfig,
    observe::{Kind, Reporter},
    rejection::Reason,
    rng,
    time::{self, Clock},
};

#[cfg(feature = "http")]
use crate::{circuit_breaker::for_all::ForAll, key::Keys};

pub(crate) struct Common {
    pub(crate) reporter: Reporter,
    pub(crate) fixed: Fixed,
    /// The time of all machines counts from its beginning.
    pub(super) clock: Clock,
    /// Asked for at openings, at updates, and by new keys.
    config: Mutex<CircuitBreakerConfig>,
    pub(crate) cancelled: AtomicU64,
    pub(crate) would_have_rejected: AtomicU64,
    #[cfg(feature = "http")]
    pub(super) for_all: ForAll,
}

/// What stays as `build()` made it.
#[derive(Debug)]
pub(crate) struct Fixed {
    pub(crate) open_fn: Option<OpenFn>,
    pub(crate) until: Until,
    pub(crate) blame_after: Duration,
    pub(crate) spares_peers: bool,
    #[cfg(feature = "http")]
    pub(crate) keys: Keys,
}

impl Default for Fixed {
    fn default() -> Self {
        Fixed {
            open_fn: None,
            until: Until::Head,
            blame_after: Duration::from_secs(1),
            spares_peers: false,
            #[cfg(feature = "http")]
            keys: Keys::default(),
        }
    }
}

impl Fixed {
    /// Is there a breaker for each key?
    pub(crate) fn has_keys(&self) -> bool {
        #[cfg(feature = "http")]
        return self.keys.are_asked();
        #[cfg(not(feature = "http"))]
        false
    }
}

pub(crate) struct OpenFn(pub(crate) Box<dyn Fn(u32) -> Duration + Send + Sync>);

impl Common {
    pub(crate) fn new(
        reporter: Reporter,
        #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "it stands in the only machine"))]
        shadow: bool,
        config: CircuitBreakerConfig,
        fixed: Fixed,
    ) -> Self {
        Common {
            reporter,
            fixed,
            clock: Clock::new(),
            config: Mutex::new(config),
            cancelled: AtomicU64::new(0),
            would_have_rejected: AtomicU64::new(0),
            #[cfg(feature = "http")]
            for_all: ForAll::new(shadow),
        }
    }

    pub(crate) fn config(&self) -> CircuitBreakerConfig {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a new configuration, together with what `take` does with it: of two updates at once one is the last
    /// everywhere.
    pub(crate) fn configure(&self, config: CircuitBreakerConfig, take: impl FnOnce(&CircuitBreakerConfig)) {
        let mut current = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        take(&config);
        *current = config;
    }

    /// In shadow a call goes on that would be refused.
    pub(crate) fn would_refuse(&self, reason: Reason) {
        self.would_have_rejected.fetch_add(1, Relaxed);
        self.reporter.report(Kind::WouldHaveRejected { reason });
    }

    /// How long a breaker stays open that has re-opened so often.
    pub(crate) fn open_time(&self, opening: u32, hint: Option<Duration>) -> Duration {
        let open = self.config.lock().unwrap_or_else(PoisonError::into_inner).open;
        // It may run in a drop, and a panic there would end the process.
        let asked = self.fixed.open_fn.as_ref().and_then(|f| catch_unwind(AssertUnwindSafe(|| (f.0)(opening))).ok());
        let own = asked.unwrap_or_else(|| open.draw(opening, rng::unit())).min(time::LONGEST);
        let server = hint.map_or(Duration::ZERO, |h| h.min(open.longest()));
        own.max(server)
    }
}

impl fmt::Debug for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Common")
            .field("reporter", &self.reporter)
            .field("fixed", &self.fixed)
            .field("config", &self.config())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OpenFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenFn")
    }
}
