//! The shell around the quotas: the clock, the rules, the events, the counters. One per layer, shared by all it makes.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    deadline::{self, Deadline},
    key::Whose,
    observe::{Kind, Reporter},
    protocol::Protocol,
    rate_limit::{
        Engine, Quota,
        bucket::Bucket,
        decision::{After, Decision, Patience, Refusal},
        gcra::Left,
        local::Ask,
        pause::Pausing,
        rules::Rules,
        short_way::ShortWay,
        store::Local,
        taken::Taken,
    },
    rejection::{Reason, Rejection},
    stripe::Count,
    time::{Epoch, Instant, Span},
};

#[cfg(feature = "http")]
use crate::rate_limit::headers::{Policy, Shown};

/// Everything of one layer.
pub(crate) struct Limiter<St> {
    pub(crate) store: St,
    pub(crate) rules: Rules,
    pub(super) short_way: ShortWay,
    epoch: Epoch,
    reporter: Reporter,
    pub(super) shadow: AtomicBool,
    /// The common quota as it was given, and as headers have it.
    pub(super) quota: Mutex<Quota>,
    #[cfg(feature = "http")]
    pub(super) policy: AtomicU64,
    /// Without keys: nothing was there, and nothing will be before. In nanoseconds; 0: not known.
    pub(super) shut_until: AtomicU64,
    pub(super) admitted: Count,
    pub(super) rejected: Count,
    pub(super) would_have_rejected: AtomicU64,
    pub(super) waiting: AtomicUsize,
    /// For a store.
    pub(super) pausing: Pausing,
}

impl<St: Engine> Limiter<St> {
    pub(crate) fn new(reporter: Reporter, shadow: bool, quota: Quota, rules: Rules, store: St) -> Self {
        Limiter {
            store,
            short_way: rules.short_way(),
            rules,
            epoch: Epoch::new(),
            reporter,
            shadow: AtomicBool::new(shadow),
            quota: Mutex::new(quota),
            #[cfg(feature = "http")]
            policy: AtomicU64::new(Policy::of(quota).pack()),
            shut_until: AtomicU64::new(0),
            admitted: Count::default(),
            rejected: Count::default(),
            would_have_rejected: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            pausing: Pausing::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.reporter.name()
    }

    #[inline(always)]
    pub(crate) fn now(&self) -> u64 {
        self.epoch.now()
    }

    #[inline(always)]
    pub(super) fn at(&self, instant: Instant) -> u64 {
        self.epoch.at(instant)
    }

    /// When that is. `None` beyond the clock's range.
    pub(crate) fn instant(&self, nanos: u64) -> Option<Instant> {
        self.epoch.instant(nanos)
    }

    pub(crate) fn in_shadow(&self) -> bool {
        self.shadow.load(Relaxed)
    }

    /// Counts a call that is made.
    #[inline(always)]
    pub(crate) fn goes(&self) {
        self.admitted.add();
        self.reporter.admitted();
    }

    /// Decides about one call, and takes what it costs.
    #[inline(never)]
    pub(crate) fn decide<P, Req, Res, Err>(&self, protocol: &P, request: &mut Req) -> Decision<St::Acquire>
    where
        P: Protocol<Req, Res, Err>,
    {
        let deadline = deadline::earliest(P::deadline(request), Deadline::current());
        // A unit is not spent on what nobody waits for.
        if deadline::has_passed(deadline) {
            return self.refuse_or_go(Refusal::new(Reason::DeadlineExceeded));
        }
        self.rules.look(protocol, request, |whose, units| {
            let Some(cost) = NonZeroU32::new(units) else { return Decision::Go(self.free(whose), 0) };
            match whose {
                Whose::Keyless => self.decide_of(None, cost, deadline),
                Whose::Key(key) => self.decide_of(Some(key), cost, deadline),
                Whose::Nobodys { refuse: true } => self.refuse_or_go(Refusal::new(Reason::KeyMissing)),
                Whose::Nobodys { refuse: false } => Decision::Go(After::default(), 0),
            }
        })
    }

    fn decide_of(&self, key: Option<&[u8]>, cost: NonZeroU32, deadline: Option<Deadline>) -> Decision<St::Acquire> {
        let Some(Local(buckets)) = self.store.local() else {
            return match self.store.ask(key, cost) {
                Some(acquire) => Decision::Ask(acquire, Patience { until: self.until(self.now(), deadline), deadline }),
                None => Decision::Go(After::default(), 0),
            };
        };
        let tier = key.and_then(|key| self.tier(key));
        let now = self.now();
        let ask = Ask { units: cost.get(), now, tier, hold: self.rules.charges() };
        let (taken, held) = match key {
            Some(key) => buckets.take(key, ask),
            None => (buckets.common.take(ask.units, now), ask.hold.then(|| Arc::clone(&buckets.common))),
        };
        match taken {
            Taken::Yes(left) => {
                self.note_if_used_up(&left);
                Decision::Go(self.after(tier, &left, held, ask.units), ask.units)
            }
            Taken::Never(left) => self.refuse_or_go(Refusal::new(Reason::CostAboveBurst).showing(self, tier, &left)),
            Taken::NotBefore(at, left) if self.rules.wait.is_none() => {
                self.refuse_or_go(self.too_soon(at, now, key.is_none()).showing(self, tier, &left))
            }
            Taken::NotBefore(..) => self.decide_to_wait(key, ask, deadline),
        }
    }

    /// A call that costs nothing at the door goes, and may be charged by its response.
    #[cold]
    fn free(&self, whose: Whose<'_>) -> After {
        let Some(Local(buckets)) = self.store.local().filter(|_| self.rules.charges()) else { return After::default() };
        let now = self.now();
        let (tier, bucket) = match whose {
            Whose::Keyless => (None, Arc::clone(&buckets.common)),
            Whose::Key(key) => {
                let tier = self.tier(key);
                (tier, buckets.bucket(key, Ask { units: 0, now, tier, hold: true }))
            }
            Whose::Nobodys { .. } => return After::default(),
        };
        let left = bucket.left(now);
        self.after(tier, &left, Some(bucket), 0)
    }

    /// The quota of a key that has one of its own.
    #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "tiers are for HTTP"))]
    fn tier(&self, key: &[u8]) -> Option<Quota> {
        #[cfg(feature = "http")]
        return self.rules.http.tier(key);
        #[cfg(not(feature = "http"))]
        None
    }

    pub(super) fn too_soon(&self, at: u64, now: u64, of_all: bool) -> Refusal {
        if of_all && self.rules.all_cost_one() {
            self.shut(at);
        }
        Refusal { retry_after: Span(at.saturating_sub(now)), ..Refusal::new(Reason::RateLimited) }
    }

    #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "headers are for HTTP"))]
    pub(super) fn after(&self, tier: Option<Quota>, left: &Left, held: Option<Arc<Bucket>>, units: u32) -> After {
        After {
            #[cfg(feature = "http")]
            shown: self.show(tier, left),
            charged: held.map(|bucket| (bucket, units)),
        }
    }

    #[cfg(feature = "http")]
    pub(super) fn show(&self, tier: Option<Quota>, left: &Left) -> Option<Shown> {
        self.rules.http.shows().then(|| Shown::of(tier.map_or_else(|| self.policy(), Policy::of), left))
    }

    pub(super) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Books a refusal and tells of it; in shadow the call goes all the same.
    #[cold]
    pub(super) fn refuse_or_go<A>(&self, refusal: Refusal) -> Decision<A> {
        if self.book_refusal(refusal.reason) { Decision::No(refusal) } else { Decision::Shadowed }
    }

    /// As [`refuse_or_go`](Self::refuse_or_go), of a call that has begun to wait.
    #[cold]
    pub(crate) fn book_refusal(&self, reason: Reason) -> bool {
        if self.in_shadow() {
            self.would_have_rejected.fetch_add(1, Relaxed);
            self.reporter.report(Kind::WouldHaveRejected { reason });
            return false;
        }
        self.rejected.add();
        self.reporter.report(Kind::Rejected { reason });
        true
    }

    #[cold]
    pub(crate) fn rejection(&self, refusal: &Refusal) -> Rejection {
        let rejection = self.reporter.rejection(refusal.reason);
        // The backend was given no time at all, whatever the policies outside of us think that the call has had.
        if refusal.reason == Reason::DeadlineExceeded {
            return rejection.with_time_it_had(Duration::ZERO);
        }
        rejection.with_retry_after(refusal.retry_after.duration())
    }

    /// The common quota, as headers have it.
    #[cfg(feature = "http")]
    pub(super) fn policy(&self) -> Policy {
        Policy::unpack(self.policy.load(Relaxed))
    }

    // === the handle ===

    pub(crate) fn quota(&self) -> Quota {
        *self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<St: fmt::Debug> fmt::Debug for Limiter<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("store", &self.store)
            .field("rules", &self.rules)
            .field("reporter", &self.reporter)
            .finish_non_exhaustive()
    }
}
