//! Reading and steering a circuit breaker.

use std::{error::Error as StdError, fmt, sync::Arc};

use crate::{
    circuit_breaker::{CircuitBreakerConfig, CircuitBreakerSnapshot, State, breaker::Breaker, machine::Look, snapshot},
    config::ConfigError,
    observe::{Figure, Reporter, Watched},
    stripe::Striped,
};

#[cfg(feature = "http")]
use crate::stripe::Shared;

/// Reads and steers a [`CircuitBreakerLayer`](crate::CircuitBreakerLayer) and everything it wraps. With keys that is
/// the breaker of each, and [`for_key`](Self::for_key) gives a handle to one.
#[derive(Debug, Clone)]
pub struct CircuitBreakerHandle {
    shared: Arc<Striped<Breaker>>,
    /// The one that it is for.
    #[cfg(feature = "http")]
    key: Option<Shared<Breaker>>,
}

/// A move that the breaker can't make from the state it is in.
#[derive(Debug)]
pub struct IllegalMove {
    /// The state it is in.
    pub from: State,
    /// The state that was asked for.
    pub to: State,
}

impl CircuitBreakerHandle {
    pub(crate) fn new(shared: Arc<Striped<Breaker>>) -> Self {
        CircuitBreakerHandle {
            shared,
            #[cfg(feature = "http")]
            key: None,
        }
    }

    /// A handle to the breaker of this key alone. `None` in a layer without keys, and for a key that has none of its
    /// own: nobody has called with it, or not for long, or there was no room for it.
    ///
    /// Its `snapshot`, `force_open`, `force_closed`, `half_open` and `reset` are of that key; `update` and `shadow` are
    /// of the whole layer, as on any handle. As long as there is such a handle, the key keeps its breaker.
    #[cfg(feature = "http")]
    pub fn for_key(&self, key: impl AsRef<[u8]>) -> Option<CircuitBreakerHandle> {
        let own = self.shared.by_key()?.of(key.as_ref())?;
        Some(CircuitBreakerHandle { shared: Arc::clone(&self.shared), key: Some(own) })
    }

    /// The breaker as it is now. While other threads make calls the figures may be of slightly different moments.
    pub fn snapshot(&self) -> CircuitBreakerSnapshot {
        snapshot::of(self.steered())
    }

    /// Takes new numbers and keeps what the window knows, as far as the new window has room for it. The state stays; an
    /// open time that runs, runs on. What the builder set beside the configuration stays too. It holds for all keys,
    /// and for those to come.
    ///
    /// # Errors
    ///
    /// As `build()`; then nothing is changed.
    pub fn update(&self, config: CircuitBreakerConfig) -> Result<(), ConfigError> {
        config.checked()?;
        self.shared.update(config);
        Ok(())
    }

    /// Refuses every call until it is moved by hand again. From every state; a second time it does nothing. With keys:
    /// of all keys, and of those to come, until [`reset`](Self::reset).
    ///
    /// # Errors
    ///
    /// None today.
    pub fn force_open(&self) -> Result<(), IllegalMove> {
        self.steered().move_to(State::ForcedOpen)
    }

    /// Admits and records every call until it is moved by hand again. From every state; a second time it does nothing.
    /// With keys as [`force_open`](Self::force_open).
    ///
    /// # Errors
    ///
    /// None today.
    pub fn force_closed(&self) -> Result<(), IllegalMove> {
        self.steered().move_to(State::ForcedClosed)
    }

    /// Tries the backend now, without waiting for the end of the open time. With keys those that are open.
    ///
    /// # Errors
    ///
    /// Only an open breaker can be half-opened (and one that is half-open stays so). With keys: none is either.
    pub fn half_open(&self) -> Result<(), IllegalMove> {
        self.steered().move_to(State::HalfOpen)
    }

    /// Shadow: decides and reports, but refuses nothing, of whatever key.
    pub fn shadow(&self, on: bool) {
        self.shared.shadow(on);
    }

    /// Closed, from every state: the window is emptied and the growth of open times starts anew. With keys: all of
    /// them, also those that were moved by hand alone.
    pub fn reset(&self) {
        self.steered().reset();
    }

    fn steered(&self) -> &Breaker {
        #[cfg(feature = "http")]
        if let Some(key) = &self.key {
            return key;
        }
        &self.shared
    }
}

impl Watched for Striped<Breaker> {
    fn reporter(&self) -> &Reporter {
        Breaker::reporter(self)
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let seen = snapshot::of(self);
        visit("state", Figure::Word(seen.state.as_str()));
        visit("in_state", Figure::Time(seen.in_state));
        visit("open_left", seen.open_left.into());
        visit("calls", Figure::Count(seen.calls));
        visit("failures", Figure::Count(seen.failures));
        visit("slow", Figure::Count(seen.slow));
        visit("failure_rate", seen.failure_rate.into());
        visit("slow_call_rate", seen.slow_call_rate.into());
        visit("consecutive_failures", Figure::Count(seen.consecutive_failures.into()));
        visit("rejected", Figure::Count(seen.rejected));
        visit("cancelled", Figure::Count(seen.cancelled));
        visit("would_have_rejected", Figure::Count(seen.would_have_rejected));
        visit("probes_out", Figure::Count(seen.probes_out.into()));
        visit("keys", Figure::count(seen.keys));
        visit("open_keys", Figure::count(seen.open_keys));
        visit("shadow", Figure::Flag(seen.shadow));
    }

    /// An open one admits a probe once its time is over. With keys some key may always pass, unless all are forced
    /// open.
    fn admits(&self) -> bool {
        match self.look() {
            Look::Passes => true,
            Look::Refuses(_) => false,
            Look::Unclear => self.is_shut().is_none(),
        }
    }

    /// With keys it is counted and not looked for: it is asked at each change.
    fn state(&self) -> Option<State> {
        #[cfg(feature = "http")]
        if self.by_key().is_some() {
            return Some(self.common.for_all.worst());
        }
        Some(self.machine.state())
    }
}

impl fmt::Display for IllegalMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a circuit breaker can't go from {} to {}", self.from, self.to)
    }
}

impl StdError for IllegalMove {}
