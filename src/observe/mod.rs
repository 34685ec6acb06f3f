//! Events: what the policies did, told to whoever asked.
//!
//! A builder's `observer(..)` takes an [`Observer`] or a closure. It is called outside every lock, on the task that
//! made the call, and nothing is built when nobody listens. An observer that panics is contained: the call goes on as
//! if it had returned. There is no event for an admitted call that ends well, but for the attempts
//! of retries and hedges: each of those is an event, with its number and outcome.
//!
//! ```
//! use buttress::{TimeoutLayer, observe::{Event, Kind}};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), buttress::ConfigError> {
//! let layer = TimeoutLayer::builder()
//!     .name("payments")
//!     .after(Duration::from_millis(300))
//!     .observer(|e: &Event| {
//!         if let Kind::TimedOut = e.kind {
//!             eprintln!("{} {}: too slow", e.policy, e.name);
//!         }
//!     })
//!     .build()?;
//! # drop(layer); Ok(()) }
//! ```
//!
//! Where events are many or work on them is slow, take them from a stream with a bound: [`channel`], or
//! [`Registry::subscribe`](crate::Registry::subscribe) for every policy in a registry. It says how many it dropped.
//!
//! # `tracing` (feature `tracing`)
//!
//! Each event is a `tracing` event too, with the target `buttress::<policy>` and the field `name`. A breaker that opens
//! is a `WARN`, other changes of state and of limits are `INFO`, and in a layer with keys a change of state has the
//! field `key` (a key may be a secret: do not give breakers to those); refusals (with `error.type`, the reason),
//! timeouts, fallbacks and expired permits are `DEBUG`, for under overload they are many. A further attempt makes no
//! event: it sets `http.request.resend_count` of the current span, and a refusal sets `error.type`, where that span has
//! such a field. There is nothing, not even a disabled event, for an admitted call that ends well.
//!
//! # Metrics (feature `metrics`)
//!
//! Their table is in the docs of the module `observe::metrics`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{circuit_breaker::State, outcome::Outcome, rejection::Reason};

#[cfg(feature = "metrics")]
pub mod metrics;
mod reporter;
mod stream;
#[cfg(feature = "tracing")]
mod trace;
mod watched;

pub(crate) use self::{
    reporter::{Reporter, StoppedBy},
    stream::Hub,
    watched::{Sight, Watched, seen_by, watched},
};
pub use self::{
    stream::{EventSender, EventStream, Streamed, channel},
    watched::Figure,
};

/// Something a policy did that is worth telling.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct Event {
    /// The policy's kind: `timeout`, `circuit_breaker`, ...
    pub policy: &'static str,
    /// The name the policy was given, else its kind.
    pub name: Arc<str>,
    /// What happened.
    pub kind: Kind,
    /// Whose breaker it was, in a layer with keys: set in [`Kind::StateChanged`] of a key that has a breaker of its
    /// own, and nowhere else. At most 256 bytes of it; what is no UTF-8 is replaced.
    pub key: Option<Arc<str>>,
}

/// What happened.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A circuit breaker changed its state. Sent once a change. A layer with keys that is moved by hand sends one
    /// without a key for all of them, from the worst state that one of them was in, and one for each key whose own
    /// breaker changed.
    StateChanged {
        /// The state before.
        from: State,
        /// The state from now on.
        to: State,
    },
    /// A call was refused, or ended because its caller's deadline passed.
    Rejected {
        /// Why.
        reason: Reason,
    },
    /// A policy in shadow would have refused the call, or cut it short, and let it go on.
    WouldHaveRejected {
        /// Why.
        reason: Reason,
    },
    /// An operator's timeout ran out. Not sent when the caller left first.
    TimedOut,
    /// A permit stopped counting because its reader stalled for the whole lease.
    PermitExpired,
    /// An attempt ended.
    Attempt {
        /// From 1.
        number: u32,
        /// What it meant.
        outcome: Outcome,
        /// The delay before the next attempt; `None` if there is none.
        delay: Option<Duration>,
    },
    /// An answer was given in the place of the backend's.
    FellBack {
        /// What the backend's own answer meant.
        outcome: Outcome,
    },
    /// A fallback in shadow would have been asked for an answer in the place of the backend's.
    WouldHaveFallenBack {
        /// What the backend's own answer meant.
        outcome: Outcome,
    },
    /// A limit changed.
    LimitChanged {
        /// The limit before.
        from: usize,
        /// The limit from now on.
        to: usize,
    },
}

/// Is told of events. Also implemented by every `Fn(&Event) + Send + Sync + 'static`.
///
/// It runs on the path of the call: be brief, hand the event on where there is much to do.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn on_event(&self, event: &Event);
}

impl<F: Fn(&Event) + Send + Sync + 'static> Observer for F {
    fn on_event(&self, event: &Event) {
        self(event);
    }
}

static CONTAINED: AtomicU64 = AtomicU64::new(0);

/// How many panics of observers, of a `metrics` recorder and of other tasks' wakers were contained in this process:
/// they take nothing from the call that happens to run them. A registry has the figure of each policy's observers, and
/// so has the metric `buttress_observer_panics_total`.
pub fn contained_panics() -> u64 {
    CONTAINED.load(Relaxed)
}

/// Runs code that is not ours. False: it has panicked, and that must take nobody's call with it.
pub(crate) fn contain(run: impl FnOnce()) -> bool {
    let ok = catch_unwind(AssertUnwindSafe(run)).is_ok();
    if !ok {
        CONTAINED.fetch_add(1, Relaxed);
    }
    ok
}
