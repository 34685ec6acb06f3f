//! Events: what the policies did, told to whoever asked.
//!
//! A builder's `observer(..)` takes an [`Observer`] or a closure. It is called outside every lock, on the task that
//! made the call, and nothing is built when nobody listens. An observer that panics is contained: the call goes on as
//! if it had returned. There is no event for an admitted call that ends well.
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

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use crate::{
    circuit_breaker::State,
    origin::Origin,
    outcome::Outcome,
    rejection::{Reason, Rejection},
    stripe::Striped,
    time::Span,
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
}

/// What happened.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A circuit breaker changed its state. Sent once a change.
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

/// Speaks for one layer: makes its rejections and its events.
pub(crate) struct Reporter {
    origin: Striped<Origin>,
    observers: Box<[Box<dyn Observer>]>,
}

impl Reporter {
    pub(crate) fn new(origin: Origin, observers: Vec<Box<dyn Observer>>) -> Self {
        Self { origin: Striped::new(origin), observers: observers.into() }
    }

    pub(crate) fn name(&self) -> &str {
        self.origin.name()
    }

    #[inline]
    pub(crate) fn rejection(&self, reason: Reason) -> Rejection {
        Rejection::new(&self.origin, reason)
    }

    /// Does anybody listen?
    #[inline]
    pub(crate) fn is_heard(&self) -> bool {
        !self.observers.is_empty()
    }

    /// Refuses a call: counts it, tells of it, and makes what the caller is told.
    #[inline(always)]
    pub(crate) fn refuse(&self, reason: Reason, retry_after: impl Into<Span>) -> Rejection {
        if !self.observers.is_empty() {
            self.tell_of_a_refusal(reason);
        }
        Rejection::counted(&self.origin, reason, retry_after.into())
    }

    /// Calls [refused](Self::refuse).
    pub(crate) fn refused(&self) -> u64 {
        self.origin.tally()
    }

    /// Tells every observer. Call it with no lock held.
    #[inline]
    pub(crate) fn report(&self, kind: Kind) {
        if !self.observers.is_empty() {
            self.tell(kind);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_of_a_refusal(&self, reason: Reason) {
        self.tell(Kind::Rejected { reason });
    }

    #[cold]
    fn tell(&self, kind: Kind) {
        let event = Event { policy: self.origin.policy(), name: Arc::clone(self.origin.name()), kind };
        for observer in &self.observers {
            // An observer that panics must not take the call with it, nor keep the next observer from its event.
            let _ = catch_unwind(AssertUnwindSafe(|| observer.on_event(&event)));
        }
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("origin", &self.origin).field("observers", &self.observers.len()).finish()
    }
}
