//! Reading and steering a circuit breaker.

use std::{
    error::Error as StdError,
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::{
    circuit_breaker::{CircuitBreakerConfig, State, breaker::Breaker},
    config::ConfigError,
    observe::{Figure, Reporter, Watched},
    stripe::Striped,
};

/// Reads and steers a [`CircuitBreakerLayer`](crate::CircuitBreakerLayer) and everything it wraps.
#[derive(Debug, Clone)]
pub struct CircuitBreakerHandle {
    shared: Arc<Striped<Breaker>>,
}

/// A circuit breaker at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CircuitBreakerSnapshot {
    /// The state. An open time that is over does not show before the next call.
    pub state: State,
    /// Does it only report what it would refuse?
    pub shadow: bool,
    /// Since the last change of state.
    pub in_state: Duration,
    /// What is left of the open time; only in `Open`.
    pub open_left: Option<Duration>,
    /// Successful, failed and throttled calls in the window; in `Open`, in the window that opened it.
    pub calls: u64,
    /// Failed and throttled calls among them.
    pub failures: u64,
    /// Slow calls among them.
    pub slow: u64,
    /// `failures` of `calls`; `None` below the minimum of calls.
    pub failure_rate: Option<f64>,
    /// `slow` of `calls`; `None` below the minimum of calls.
    pub slow_call_rate: Option<f64>,
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// Calls refused since `build()`.
    pub rejected: u64,
    /// Calls whose caller did not wait for the end, since `build()`.
    pub cancelled: u64,
    /// Calls that went on only because of shadow, since `build()`.
    pub would_have_rejected: u64,
    /// Probes that are running now.
    pub probes_out: u32,
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
        CircuitBreakerHandle { shared }
    }

    /// The breaker as it is now. While other threads make calls the figures may be of slightly different moments.
    pub fn snapshot(&self) -> CircuitBreakerSnapshot {
        snapshot(&self.shared)
    }

    /// Takes new numbers and keeps what the window knows, as far as the new window has room for it. The state stays; an
    /// open time that runs, runs on. What the builder set beside the configuration stays too.
    ///
    /// # Errors
    ///
    /// As `build()`; then nothing is changed.
    pub fn update(&self, config: CircuitBreakerConfig) -> Result<(), ConfigError> {
        config.checked()?;
        self.shared.update(config);
        Ok(())
    }

    /// Refuses every call until it is moved by hand again. From every state; a second time it does nothing.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn force_open(&self) -> Result<(), IllegalMove> {
        self.move_to(State::ForcedOpen)
    }

    /// Admits and records every call until it is moved by hand again. From every state; a second time it does nothing.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn force_closed(&self) -> Result<(), IllegalMove> {
        self.move_to(State::ForcedClosed)
    }

    /// Tries the backend now, without waiting for the end of the open time.
    ///
    /// # Errors
    ///
    /// Only an open breaker can be half-opened (and one that is half-open stays so).
    pub fn half_open(&self) -> Result<(), IllegalMove> {
        self.move_to(State::HalfOpen)
    }

    /// Shadow: decides and reports, but refuses nothing.
    pub fn shadow(&self, on: bool) {
        self.shared.shadow(on);
    }

    /// Closed, from every state: the window is emptied and the growth of open times starts anew.
    pub fn reset(&self) {
        let change = self.shared.machine.reset(self.shared.now());
        self.shared.changed(change, None);
    }

    fn move_to(&self, to: State) -> Result<(), IllegalMove> {
        let moved = self.shared.machine.move_by_hand(to, self.shared.now());
        let change = moved.map_err(|from| IllegalMove { from, to })?;
        self.shared.changed(change, None);
        Ok(())
    }
}

fn snapshot(breaker: &Breaker) -> CircuitBreakerSnapshot {
    let now = breaker.now();
    let status = breaker.machine.status(now);
    let sums = status.sums;
    let share = |part: u64| (sums.calls >= status.minimum).then(|| part as f64 / sums.calls as f64);
    CircuitBreakerSnapshot {
        state: status.state,
        shadow: breaker.in_shadow(),
        in_state: Duration::from_nanos(now.saturating_sub(status.since)),
        open_left: status.open_until.map(|until| Duration::from_nanos(until.saturating_sub(now))),
        calls: sums.calls,
        failures: sums.failures,
        slow: sums.slow,
        failure_rate: share(sums.failures),
        slow_call_rate: share(sums.slow),
        consecutive_failures: status.consecutive,
        rejected: breaker.rejected(),
        cancelled: breaker.cancelled.load(Relaxed),
        would_have_rejected: breaker.would_have_rejected.load(Relaxed),
        probes_out: status.probes_out,
    }
}

impl Watched for Striped<Breaker> {
    fn reporter(&self) -> &Reporter {
        Breaker::reporter(self)
    }

    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure)) {
        let seen = snapshot(self);
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
        visit("shadow", Figure::Flag(seen.shadow));
    }

    /// An open one admits a probe once its time is over.
    fn admits(&self) -> bool {
        self.is_shut().is_none()
    }

    fn state(&self) -> Option<State> {
        Some(self.machine.state())
    }
}

impl fmt::Display for IllegalMove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a circuit breaker can't go from {} to {}", self.from, self.to)
    }
}

impl StdError for IllegalMove {}
