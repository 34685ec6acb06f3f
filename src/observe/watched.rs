//! What can be seen of a policy from outside, in one form for all of them.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use super::Reporter;
use crate::circuit_breaker::State;

/// A policy's shared state, seen from outside. One `impl` a policy, and [`watched`] in its layer, put it into
/// registries and metrics.
pub(crate) trait Watched: Send + Sync + 'static {
    fn reporter(&self) -> &Reporter;

    /// Its figures, under the names that they have in its snapshot.
    fn figures(&self, visit: &mut dyn FnMut(&'static str, Figure));

    /// Could the next call be let in?
    fn admits(&self) -> bool {
        true
    }

    /// Of a circuit breaker.
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "it has a gauge of its own"))]
    fn state(&self) -> Option<State> {
        None
    }
}

/// One figure of a policy.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Figure {
    /// How many.
    Count(u64),
    /// A share or a rate.
    Number(f64),
    /// How long. Serialized in seconds.
    Time(Duration),
    /// Yes or no.
    Flag(bool),
    /// One of a few words.
    Word(&'static str),
    /// Nobody can tell now: a share of too few calls, the age of what is not there.
    Unknown,
}

impl Figure {
    pub(crate) fn count(n: usize) -> Figure {
        Figure::Count(n as u64)
    }
}

impl From<Option<f64>> for Figure {
    fn from(share: Option<f64>) -> Self {
        share.map_or(Figure::Unknown, Figure::Number)
    }
}

impl From<Option<Duration>> for Figure {
    fn from(time: Option<Duration>) -> Self {
        time.map_or(Figure::Unknown, Figure::Time)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Figure::Count(n) => n.fmt(f),
            Figure::Number(n) => n.fmt(f),
            Figure::Time(d) => write!(f, "{d:?}"),
            Figure::Flag(on) => on.fmt(f),
            Figure::Word(word) => f.write_str(word),
            Figure::Unknown => f.write_str("-"),
        }
    }
}

/// The state of a new layer, known from here on to its registry and to metrics.
pub(crate) fn watched<T: Watched>(state: T) -> Arc<T> {
    let state = Arc::new(state);
    let weak: Weak<T> = Arc::downgrade(&state);
    #[cfg(feature = "metrics")]
    super::metrics::layers::add(weak.clone());
    state.reporter().speaks_for(weak);
    state
}
