//! What is decided without a look at the rules: a call that goes at once, and one that is refused because it is known
//! that nothing is left.

use std::sync::atomic::Ordering::Relaxed;

use crate::{
    deadline::{self, Deadline},
    protocol::Protocol,
    rate_limit::{Engine, decision::Refusal, gcra::Left, limiter::Limiter, store::Local},
    rejection::Reason,
    time::Span,
};

#[cfg(feature = "http")]
use crate::{key::Way, protocol::Head, rate_limit::local::Buckets};

/// The short way of a layer that was told little: what a call takes if nothing else has to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShortWay {
    /// One unit of the common quota.
    Common,
    /// One unit of its key's quota.
    #[cfg(feature = "http")]
    Key,
    /// One unit of the quota of the key that the form knows.
    #[cfg(feature = "http")]
    Form,
    /// There is none.
    #[cfg(feature = "http")]
    Rules,
}

impl<St: Engine> Limiter<St> {
    /// Is it known that a call would have to wait or be refused, whatever it is?
    #[inline(always)]
    pub(crate) fn is_shut(&self) -> bool {
        self.shut_until.load(Relaxed) != 0 && self.is_still_shut()
            || Deadline::current().is_some() && self.is_too_late()
    }

    #[cold]
    #[inline(never)]
    fn is_too_late(&self) -> bool {
        deadline::has_passed(Deadline::current()) && !self.in_shadow()
    }

    #[cold]
    #[inline(never)]
    fn is_still_shut(&self) -> bool {
        if self.now() < self.shut_until.load(Relaxed) {
            return !self.in_shadow();
        }
        self.shut_until.store(0, Relaxed);
        false
    }

    /// The short way of a refusal, where it was known that nothing is left: there is nothing still, and nobody waits or
    /// is told more. Booked.
    #[cold]
    pub(crate) fn refuses_at_once(&self) -> Option<Refusal> {
        if self.rules.wait.is_some() || self.rules.shows() || self.in_shadow() {
            return None;
        }
        let Local(buckets) = self.store.local()?;
        let now = self.now();
        // Asked anew: what is known may be of an older quota.
        let left = buckets.common.next_unit(now)?.saturating_sub(now);
        let refusal = Refusal { retry_after: Span(left), ..Refusal::new(Reason::RateLimited) };
        self.book_refusal(refusal.reason).then_some(refusal)
    }

    /// The short way: takes what the call costs, if it is there and nothing else has to be asked.
    #[cfg_attr(
        not(feature = "http"),
        allow(unused_variables, clippy::extra_unused_type_parameters, reason = "no head to look at")
    )]
    #[inline(always)]
    pub(crate) fn goes_at_once<P, Req, Res, Err>(&self, protocol: &P, request: &Req) -> bool
    where
        P: Protocol<Req, Res, Err>,
    {
        let Some(Local(buckets)) = self.store.local() else { return false };
        let goes = match self.short_way {
            ShortWay::Common => match buckets.common.try_take(self.now()) {
                None => false,
                Some(0) => true,
                Some(at) => {
                    self.shut(at);
                    true
                }
            },
            #[cfg(feature = "http")]
            ShortWay::Form if P::KNOWS_KEYS => {
                protocol.key(request).is_some_and(|key| buckets.try_take(key.as_bytes(), self.now()))
            }
            // A form without heads has none of these.
            #[cfg(feature = "http")]
            ShortWay::Key if P::IS_HTTP => self.has_key_that_goes(buckets, P::head(request)),
            #[cfg(feature = "http")]
            ShortWay::Key | ShortWay::Form | ShortWay::Rules => false,
        };
        if goes {
            self.goes();
        }
        goes
    }

    #[cfg(feature = "http")]
    #[inline(never)]
    fn has_key_that_goes(&self, buckets: &Buckets, head: Option<Head<'_>>) -> bool {
        let Way::Key(key) = &self.rules.http.keys.way else { return false };
        head.and_then(|head| key.of(head, None)).is_some_and(|key| buckets.try_take(key.as_bytes(), self.now()))
    }

    /// With one quota for all, the next call need not come to know that nothing is left.
    pub(super) fn note_if_used_up(&self, left: &Left) {
        if self.rules.all_cost_one()
            && let Some(at) = left.nothing_until()
        {
            self.shut(at);
        }
    }

    /// Units may be there before it was said: some came back, or there is another quota.
    #[cold]
    pub(super) fn look_again(&self) {
        if let Some(Local(buckets)) = self.store.local().filter(|_| self.rules.all_cost_one()) {
            // What others have learnt meanwhile is newer.
            let before = self.shut_until.load(Relaxed);
            let until = buckets.common.left(self.now()).nothing_until().unwrap_or(0);
            let _ = self.shut_until.compare_exchange(before, until, Relaxed, Relaxed);
        }
    }

    /// Nothing is left until then, for whatever call.
    #[cold]
    pub(super) fn shut(&self, at: u64) {
        // Written only where it changes: under a flood of refusals all threads read it.
        if self.shut_until.load(Relaxed) != at {
            self.shut_until.store(at, Relaxed);
        }
    }
}
