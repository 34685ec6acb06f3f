//! A circuit breaker, or all of a layer with keys, at one moment.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use crate::circuit_breaker::{CircuitBreakerConfig, State, breaker::Breaker, machine::Status};

#[cfg(feature = "http")]
use crate::{
    circuit_breaker::{breaker::Role, by_key::ByKey, for_all::badness},
    window::Sums,
};

/// A circuit breaker at one moment. In a layer with keys these are the figures of all of them; see
/// [`CircuitBreakerHandle::for_key`](crate::CircuitBreakerHandle::for_key) for those of one.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CircuitBreakerSnapshot {
    /// The state. Two changes show with the next call only: that an open time is over, and that a trial is won by a
    /// probe whose head was good and whose stream has outlasted its lease. With keys the worst that one is in: forced
    /// open, open, half-open, forced closed, closed.
    pub state: State,
    /// Does it only report what it would refuse?
    pub shadow: bool,
    /// Since the last change of state. With keys of the one that has been longest in the worst state.
    pub in_state: Duration,
    /// What is left of the open time; only in `Open`. With keys of the one that is tried next.
    pub open_left: Option<Duration>,
    /// Successful, failed and throttled calls in the window; in `Open`, in the window that opened it. With keys the
    /// sum.
    pub calls: u64,
    /// Failed and throttled calls among them.
    pub failures: u64,
    /// Slow calls among them.
    pub slow: u64,
    /// `failures` of `calls`; `None` below the minimum of calls.
    pub failure_rate: Option<f64>,
    /// `slow` of `calls`; `None` below the minimum of calls.
    pub slow_call_rate: Option<f64>,
    /// Failures since the last success. With keys the longest run.
    pub consecutive_failures: u32,
    /// Calls refused since `build()`, of all keys.
    pub rejected: u64,
    /// Calls whose caller did not wait for the end, since `build()`, of all keys.
    pub cancelled: u64,
    /// Calls that went on only because of shadow, since `build()`, of all keys.
    pub would_have_rejected: u64,
    /// Probes that are running now. With keys the sum.
    pub probes_out: u32,
    /// Keys that have a breaker of their own now. 0 without keys, and of one key.
    pub keys: usize,
    /// Those of them that are open or forced open.
    pub open_keys: usize,
    /// The configuration in force. Change a number of it and give it to
    /// [`update`](crate::CircuitBreakerHandle::update).
    pub config: CircuitBreakerConfig,
}

/// Of a layer, or of one key.
pub(super) fn of(breaker: &Breaker) -> CircuitBreakerSnapshot {
    let now = breaker.now();
    #[cfg(feature = "http")]
    if let Some(by_key) = breaker.by_key() {
        return of_all(breaker, by_key, now);
    }
    snapshot(breaker, breaker.machine.status(now), breaker.in_shadow(), now)
}

fn snapshot(breaker: &Breaker, status: Status, shadow: bool, now: u64) -> CircuitBreakerSnapshot {
    let sums = status.sums;
    let share = |part: u64| (sums.calls >= status.minimum).then(|| part as f64 / sums.calls as f64);
    CircuitBreakerSnapshot {
        state: status.state,
        shadow,
        in_state: Duration::from_nanos(now.saturating_sub(status.since)),
        open_left: status.open_until.map(|until| Duration::from_nanos(until.saturating_sub(now))),
        calls: sums.calls,
        failures: sums.failures,
        slow: sums.slow,
        failure_rate: share(sums.failures),
        slow_call_rate: share(sums.slow),
        consecutive_failures: status.consecutive,
        rejected: breaker.reporter().refused(),
        cancelled: breaker.common.cancelled.load(Relaxed),
        would_have_rejected: breaker.common.would_have_rejected.load(Relaxed),
        probes_out: status.probes_out,
        keys: 0,
        open_keys: 0,
        config: breaker.common.config(),
    }
}

#[cfg(feature = "http")]
fn of_all(front: &Breaker, by_key: &ByKey, now: u64) -> CircuitBreakerSnapshot {
    let (mut all, mut open_keys) = (by_key.keyless.machine.status(now), 0);
    by_key.look_at_keyed(|breaker| {
        let one = breaker.machine.status(now);
        let is_open = matches!(one.state, State::Open | State::ForcedOpen);
        open_keys += usize::from(is_open && matches!(breaker.role, Role::Key(_)));
        all = both(all, one);
    });
    let shadow = front.common.for_all.in_shadow();
    CircuitBreakerSnapshot { keys: by_key.keys(), open_keys, ..snapshot(front, all, shadow, now) }
}

#[cfg(feature = "http")]
fn both(all: Status, one: Status) -> Status {
    let (state, since) = [all, one]
        .map(|s| (s.state, s.since))
        .into_iter()
        .min_by_key(|(s, t)| (badness(*s), *t))
        .unwrap_or((all.state, all.since));
    Status {
        state,
        since,
        open_until: one.open_until.into_iter().chain(all.open_until).min(),
        sums: Sums {
            calls: all.sums.calls + one.sums.calls,
            failures: all.sums.failures + one.sums.failures,
            slow: all.sums.slow + one.sums.slow,
        },
        consecutive: all.consecutive.max(one.consecutive),
        probes_out: all.probes_out.saturating_add(one.probes_out),
        minimum: all.minimum,
    }
}
