//! Where quotas are kept: here, or in a store that a fleet shares.

use std::{fmt, future::Future, num::NonZeroU32, sync::Arc, time::Duration};

/// A store of quotas outside of this layer: a database that many instances share, for one.
///
/// [`RateLimitBuilder::store`](crate::RateLimitBuilder::store) puts it in the place of the layer's own. It has to
/// decide by itself what happens when it can't be reached, and within how long: the layer waits for
/// [`Acquire`](Store::Acquire) until the call's [`Deadline`](crate::Deadline), and where there is none as long as the
/// call does.
///
/// ```
/// use buttress::{Grant, Store};
/// use std::{future::{Ready, ready}, num::NonZeroU32, sync::Arc, time::Duration};
///
/// /// Lets everybody in.
/// struct Generous;
///
/// impl Store<Arc<str>> for Generous {
///     type Acquire = Ready<Grant>;
///
///     fn acquire(&self, _key: &Arc<str>, _cost: NonZeroU32) -> Ready<Grant> {
///         ready(Grant::Granted { remaining: 1, reset: Duration::from_secs(1) })
///     }
/// }
/// ```
pub trait Store<K>: Send + Sync + 'static {
    /// The answer, when it is there. It lives in the future of the call and is dropped with it.
    type Acquire: Future<Output = Grant> + Send;

    /// Takes so many units of the quota of this key, if they are there.
    ///
    /// It is asked within the layer's `call`, so it must not block; a panic in it reaches the caller. A call that was
    /// told to come back, and may [`wait`](crate::RateLimitBuilder::wait), asks again, with what `key_fn` and `cost_fn`
    /// say then.
    fn acquire(&self, key: &K, cost: NonZeroU32) -> Self::Acquire;
}

/// A store's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The units are taken.
    Granted {
        /// Whole units that are left.
        remaining: u32,
        /// Until the whole quota is there again.
        reset: Duration,
    },
    /// They are not there, and none was taken.
    Denied {
        /// When they will be there, from now.
        retry_after: Duration,
    },
    /// There are never so many.
    Never,
}

/// The layer's own store, in memory.
///
/// A layer has it unless it was given another; it has no methods of its own.
pub struct Local(pub(crate) super::local::Buckets);

/// A store that the layer was given.
pub struct Remote<St> {
    pub(crate) store: St,
    /// The key of requests that have none of their own: the layer's name.
    pub(crate) common: Arc<str>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<St> fmt::Debug for Remote<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("common", &self.common).finish_non_exhaustive()
    }
}
