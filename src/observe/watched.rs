//! What can be seen of a policy from outside, in one form for all of them.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use super::Reporter;
use crate::{
    circuit_breaker::State,
    stripe::{Core, Striped},
};

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

/// Finds a layer as long as it or one of its calls lives, and keeps nothing of it alive.
pub(crate) trait Sight: Send + Sync + 'static {
    /// It may be the last reference: no lock is held where it is dropped.
    fn layer(&self) -> Option<Arc<dyn Watched>>;

    /// Is there something to be found?
    #[cfg_attr(not(feature = "metrics"), allow(dead_code, reason = "asked by those who look at all of them"))]
    fn is_there(&self) -> bool;
}

/// Calls keep the whole of it.
impl<T: Watched> Sight for Weak<T> {
    fn layer(&self) -> Option<Arc<dyn Watched>> {
        self.upgrade().map(|layer| layer as Arc<dyn Watched>)
    }

    fn is_there(&self) -> bool {
        self.strong_count() > 0
    }
}

/// Calls keep only the stripe that they count on.
struct OfStripes<T>(Weak<Core<T>>);

impl<T: Send + Sync + 'static> Sight for OfStripes<T>
where
    Striped<T>: Watched,
{
    fn layer(&self) -> Option<Arc<dyn Watched>> {
        self.0.upgrade().map(|core| Arc::new(Striped::of(core)) as Arc<dyn Watched>)
    }

    fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// The state of a new layer, known from here on to its registry and to metrics.
pub(crate) fn watched<T: Send + Sync + 'static>(state: Striped<T>) -> Arc<Striped<T>>
where
    Striped<T>: Watched,
{
    seen_by(state.reporter(), OfStripes(state.core()));
    Arc::new(state)
}

/// As [`watched`], of whatever the layer is found by.
pub(crate) fn seen_by(reporter: &Reporter, sight: impl Sight) {
    let sight: Arc<dyn Sight> = Arc::new(sight);
    #[cfg(feature = "metrics")]
    super::metrics::layers::add(Arc::clone(&sight));
    reporter.speaks_for(sight);
}
