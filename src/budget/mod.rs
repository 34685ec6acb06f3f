//! How many attempts more than calls there may be.
//!
//! Three attempts a call are three times the load, and they come when the backend has the least to give: that is how a
//! small outage is kept up for an hour. A budget bounds what retries and hedges add, whatever each single call would
//! like. The law: **in every window, further attempts are at most a share of the recent calls and a minimum.**
//!
//! ```
//! use buttress::{Budget, RetryLayer};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), buttress::ConfigError> {
//! // At most 10 % more calls than there are, and three a second; of the last ten seconds.
//! let budget = Budget::new(0.1, 3, Duration::from_secs(10))?;
//! // One backend, one budget: what the reads have used the writes can't use again.
//! let reads = RetryLayer::builder().name("reads").budget(budget.clone()).build()?;
//! let writes = RetryLayer::builder().name("writes").attempts(2).budget(budget).build()?;
//! # drop((reads, writes)); Ok(()) }
//! ```
//!
//! A client that calls many hosts gives each its own: [`Budget::per_key`]. Else one that is down uses up what calls to
//! the others may add.
//!
//! An attempt is taken from the budget before the wait for it begins, and counts for as long as it waits and then for
//! one window more, so that a crowd of sleepers can't exceed it, whenever they went to sleep. It is given back if it is
//! not made after all: the caller left, or the backend did not become ready.
//!
//! How large? What further attempts add makes calls slow, and slow calls make further attempts, where the backend goes
//! on with what its caller has left. So a budget with a ratio of `r` can hold a backend down, long after what began it,
//! that is asked for more than `1 / (1 + r)` of what it can do: 83 % with 0.2, 95 % with 0.05. A breaker outside of the
//! retry ends that; else choose `r` by how busy the backend may be.
//!
//! What it does not bound is how fast the budget is used. In the first second of an outage the allowance of a whole
//! window may be used at once, and again when those have left the window. A small `ratio` and a short window make that
//! small. And what waits for readiness without a deadline holds its share for as long as it hangs: put a timeout around
//! it. The minimum is for each budget: a fleet of a thousand clients that call seldom may add a thousand a second.
//!
//! A call pays in once: a retry does so before its first attempt, a hedge too, but not for the calls of a retry around
//! it that has the same budget ([within a retry](crate::hedge#within-a-retry)). (The other way round, a retry inside a
//! hedge pays for each of the hedge's attempts as for a call: another reason not to put it there.)
//!
//! A deposit is one atomic addition, in a stripe of the thread's own, and mostly without a look at the clock; a
//! withdrawal is one compare-and-swap. An attempt that may have to wait, each of a hedge, and one under a deadline take
//! a lock twice, for a few instructions each.
//!
//! The windowed form is that of finagle's and tower's budgets; [`Budget::tokens`] is the retry throttling of gRPC (gRFC
//! A6).

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    config::{Checks, ConfigError},
    protocol::{Head, Protocol},
    stripe::thread_number,
    time::{self, Epoch},
    window::time::tick_length,
};

#[cfg(feature = "http")]
mod by_key;
mod deposits;
mod paid;
pub(crate) mod share;
mod taken;
mod tokens;

#[cfg(feature = "http")]
use self::by_key::{ByKey, Numbers};
pub(crate) use self::{
    paid::Payment,
    taken::{Reservation, Taken},
};
use self::{share::Share, tokens::Tokens};

/// What retries and hedges may add to the calls. Clones share it. See the [module](crate::budget).
#[derive(Clone)]
pub struct Budget(Arc<Kind>);

#[allow(clippy::large_enum_variant, reason = "there is one a budget, on the heap")]
enum Kind {
    Share {
        epoch: Epoch,
        share: Share,
    },
    Tokens(Tokens),
    Unlimited,
    #[cfg(feature = "http")]
    ByKey(ByKey),
}

impl Budget {
    /// `ratio` (0 to 1) further attempts for each call, and `min_per_second` (from 0) of them in any case, counted over
    /// a window of `over` (1 µs to 365 days) that slides in tenths.
    ///
    /// At the start `min_per_second` x `over` withdrawals are there. Fractions add up: half of one from the minimum and
    /// half from deposits are one withdrawal, and half of one alone is none. Each counts for up to 1.1 x `over`. The
    /// ratio is kept in millionths, rounded up. The default of a retry is 0.2, 1, 10 s.
    ///
    /// # Errors
    ///
    /// Names every bad field: `ratio`, `over`.
    pub fn new(ratio: f64, min_per_second: u32, over: Duration) -> Result<Self, ConfigError> {
        let mut checks = Checks::default();
        checks.require((0.0..=1.0).contains(&ratio), "ratio", ratio, "a share from 0 to 1");
        let ok = over >= Duration::from_micros(1) && over <= time::LONGEST;
        checks.require(ok, "over", over, "a duration from 1us to 365 days");
        checks.finish()?;
        Ok(Self::share(ratio, min_per_second, over))
    }

    /// The retry throttling of gRPC: `max` (1 to 1,000) tokens. A failed attempt takes one if it may be made again or
    /// the server said "do not"; a success gives back `ratio` (0.001 to 1,000). There are further attempts only while
    /// more than half of them are left.
    ///
    /// [`withdraw`](Self::withdraw) is a failed attempt, [`deposit`](Self::deposit) a success. Nothing is given back
    /// here: the failure has happened, whatever became of the attempt after it.
    ///
    /// # Errors
    ///
    /// Names every bad field: `max`, `ratio`.
    pub fn tokens(max: u32, ratio: f64) -> Result<Self, ConfigError> {
        let mut checks = Checks::default();
        checks.require((1..=1_000).contains(&max), "max", max, "1 to 1000");
        checks.require((0.001..=1_000.0).contains(&ratio), "ratio", ratio, "0.001 to 1000");
        checks.finish()?;
        // Of three digits, as the specification has it.
        let ratio = (ratio * tokens::THOUSAND as f64).round() as u64;
        Ok(Budget(Arc::new(Kind::Tokens(Tokens::new(max, ratio)))))
    }

    /// No bound at all. In an outage every call then becomes as many as its attempts: only for backends that can take
    /// it.
    pub fn unlimited() -> Self {
        Budget(Arc::new(Kind::Unlimited))
    }

    /// One with the same numbers for each key: [`Key::Authority`](crate::Key::Authority) for each host that a client
    /// calls, so that a host that is down does not use up what calls to the others may add.
    ///
    /// Requests without a key, and plain services, share this one, which is also the one that
    /// [`deposit`](Self::deposit) and [`withdraw`](Self::withdraw) use. 10,000 keys have a budget of their own, of some
    /// 2.5 KB; more share 128 others until one of those has not been used for a window. A key's budget begins as this
    /// one did. A call takes a shared lock to find it, and a look at the clock; so does each end of an attempt that
    /// failed.
    ///
    /// ```
    /// use buttress::{Budget, Key, RetryLayer};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), buttress::ConfigError> {
    /// let each = Budget::new(0.1, 3, Duration::from_secs(10))?.per_key(Key::Authority)?;
    /// let layer = RetryLayer::builder().budget(each).build()?;
    /// # drop(layer); Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// On `per_key`: a key that no request has, and a budget of [`tokens`](Self::tokens): those are of one server.
    #[cfg(feature = "http")]
    pub fn per_key(self, key: crate::Key) -> Result<Self, ConfigError> {
        let mut checks = Checks::default();
        key.check(&mut checks);
        let has_tokens = matches!(&*self.0, Kind::Tokens(_));
        checks.require(!has_tokens, "per_key", "tokens", "a budget that is a share: tokens are of one server");
        checks.finish()?;
        let (ratio, minimum, tick) = match &*self.0 {
            Kind::Share { share, .. } => share.numbers(),
            Kind::ByKey(by_key) => return by_key.keyless.clone().per_key(key),
            // Without a bound there is nothing to be told apart.
            Kind::Unlimited | Kind::Tokens(_) => return Ok(self),
        };
        Ok(Budget(Arc::new(Kind::ByKey(ByKey::new(key, self, Numbers { ratio, minimum, tick })))))
    }

    /// The default of a hedge: as many as are slow where nothing is wrong. A retry's share would keep a busy backend
    /// down.
    pub(crate) fn of_a_hedge() -> Self {
        Self::share(0.05, 1, Duration::from_secs(10))
    }

    fn share(ratio: f64, min_per_second: u32, over: Duration) -> Self {
        let million = 1_000_000.0;
        let minimum = (f64::from(min_per_second) * over.as_secs_f64() * million).round() as u64;
        // Up, so that three calls at a third are one whole attempt; but not for what floats add to a tenth.
        let ratio = ((ratio * million - 1e-3).ceil() as u64).max(u64::from(ratio > 0.0));
        // Rounded up to whole nanoseconds: a window a little too long only counts for longer what was used.
        let share = Share::new(ratio, minimum, tick_length(over).max(1));
        Budget(Arc::new(Kind::Share { epoch: Epoch::new(), share }))
    }

    /// A call was made (or, of tokens, a success).
    pub fn deposit(&self) {
        match &*self.0 {
            Kind::Share { .. } => self.began(thread_number()),
            Kind::Tokens(tokens) => tokens.succeeded(),
            Kind::Unlimited => {}
            #[cfg(feature = "http")]
            Kind::ByKey(by_key) => by_key.keyless.deposit(),
        }
    }

    /// Takes one further attempt. `false`: there is none. (Of tokens: an attempt failed. `false`: do not retry it.)
    pub fn withdraw(&self) -> bool {
        self.take(time::now).is_some()
    }

    /// A call begins.
    #[inline(always)]
    pub(crate) fn began(&self, stripe: usize) {
        if let Kind::Share { epoch, share } = &*self.0 {
            share.deposit(|| epoch.now(), stripe);
        } else {
            self.began_otherwise();
        }
    }

    #[cold]
    #[inline(never)]
    fn began_otherwise(&self) {
        match &*self.0 {
            #[cfg(feature = "http")]
            Kind::ByKey(by_key) => by_key.keyless.deposit(),
            // Tokens are not for calls.
            _ => {}
        }
    }

    /// The budget of a call with this head, where each key has one.
    #[cfg_attr(
        not(feature = "http"),
        allow(unused_variables, clippy::extra_unused_type_parameters, reason = "keys are for HTTP")
    )]
    #[inline(always)]
    pub(crate) fn own<'a, P, Req, Res, Err>(&self, head: impl FnOnce() -> Option<Head<'a>>) -> Option<Budget>
    where
        P: Protocol<Req, Res, Err>,
    {
        match &*self.0 {
            #[cfg(feature = "http")]
            Kind::ByKey(by_key) if P::IS_HTTP => Some(by_key.find(head())),
            _ => None,
        }
    }

    /// Does it have to be told that a call [ended well](Self::succeeded)?
    pub(crate) fn counts_successes(&self) -> bool {
        match &*self.0 {
            Kind::Tokens(_) => true,
            Kind::Share { .. } | Kind::Unlimited => false,
            #[cfg(feature = "http")]
            Kind::ByKey(_) => false,
        }
    }

    /// A call ended well.
    pub(crate) fn succeeded(&self) {
        if let Kind::Tokens(tokens) = &*self.0 {
            tokens.succeeded();
        }
    }

    /// An attempt failed, and there will be no further one for another reason.
    #[inline]
    pub(crate) fn failed(&self) {
        if let Kind::Tokens(tokens) = &*self.0 {
            tokens.failed();
        }
    }

    /// How many further attempts it would give right now, or how many tokens it has; `None` where it has no end.
    pub(crate) fn left(&self) -> Option<f64> {
        match &*self.0 {
            Kind::Share { epoch, share } => Some(share.balance(epoch.now()) as f64),
            Kind::Tokens(tokens) => Some(tokens.left() as f64 / 1_000.0),
            Kind::Unlimited => None,
            #[cfg(feature = "http")]
            Kind::ByKey(by_key) => by_key.left(),
        }
    }
}

/// The default of a retry.
impl Default for Budget {
    fn default() -> Self {
        Self::share(0.2, 1, Duration::from_secs(10))
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut budget = f.debug_struct("Budget");
        match &*self.0 {
            Kind::Share { epoch, share } => budget.field("left", &share.balance(epoch.now())),
            Kind::Tokens(tokens) => budget.field("thousandths", &tokens.left()),
            Kind::Unlimited => budget.field("unlimited", &true),
            #[cfg(feature = "http")]
            Kind::ByKey(by_key) => budget.field("by_key", by_key),
        };
        budget.finish_non_exhaustive()
    }
}
