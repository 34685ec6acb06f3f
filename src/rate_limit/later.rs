//! What a limiter decides of calls that do not go at once: those that wait, those that ask a store, those that are
//! charged after the fact.

use std::{
    num::NonZeroU32,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use crate::{
    deadline::Deadline,
    key::Whose,
    protocol::Protocol,
    rate_limit::{
        Engine,
        decision::{After, Decision, Patience, Queued, Refusal, Until},
        limiter::Limiter,
        local::Ask,
        store::{Grant, Local},
        taken::{Joined, Taken},
    },
    rejection::Reason,
    time::nanos,
};

#[cfg(feature = "http")]
use crate::rate_limit::{bucket::Bucket, gcra::Left, headers::Shown};

impl<St: Engine> Limiter<St> {
    #[cold]
    pub(super) fn decide_to_wait(
        &self,
        key: Option<&[u8]>,
        ask: Ask,
        deadline: Option<Deadline>,
    ) -> Decision<St::Acquire> {
        let Some(Local(buckets)) = self.store.local() else { return Decision::Go(After::default(), 0) };
        let Ask { units, now, tier, .. } = ask;
        let until = self.until(now, deadline);
        let bucket = match key {
            Some(key) => buckets.bucket(key, ask),
            None => Arc::clone(&buckets.common),
        };
        if self.in_shadow() {
            // It would wait; here it goes at once, and whoever comes next pays for it.
            match bucket.take(units, now) {
                Taken::Yes(left) => {
                    return Decision::Go(self.after(tier, &left, ask.hold.then_some(bucket), units), units);
                }
                Taken::NotBefore(at, _) if at <= until.0 => {
                    bucket.charge(units, now);
                    return Decision::Go(After::default(), units);
                }
                Taken::NotBefore(..) | Taken::Never(_) => {}
            }
        }
        match bucket.join(units, now, until.0) {
            Joined::Now(left) => {
                let held = ask.hold.then_some(bucket);
                Decision::Go(self.after(tier, &left, held, units), units)
            }
            Joined::Never(left) => self.refuse_or_go(Refusal::new(Reason::CostAboveBurst).showing(self, tier, &left)),
            Joined::TooLate(at, left) => {
                self.refuse_or_go(self.too_soon(at, now, key.is_none()).showing(self, tier, &left))
            }
            Joined::Waits(place, left) => {
                self.waits();
                let held = ask.hold.then(|| Arc::clone(&bucket));
                let after = self.after(tier, &left, held, units);
                let patience = Patience { until, deadline };
                Decision::Wait(Queued { bucket, place, units, patience, after })
            }
        }
    }

    /// Until when a call may wait that came `now`.
    pub(super) fn until(&self, now: u64, deadline: Option<Deadline>) -> Until {
        let own = now.saturating_add(nanos(self.rules.wait.unwrap_or_default()));
        Until(deadline.map_or(own, |d| own.min(self.at(d.instant()))))
    }

    pub(crate) fn waits(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    pub(crate) fn waits_no_more(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// What a store's answer means. `Err`: it may be asked again then.
    pub(crate) fn answered(&self, grant: Grant, until: Until) -> Result<Result<After, Refusal>, u64> {
        let now = self.now();
        Ok(match grant {
            Grant::Granted { remaining, reset } => Ok(self.after_grant(remaining, reset)),
            Grant::Never => Err(Refusal::new(Reason::CostAboveBurst)),
            Grant::Denied { retry_after } => {
                let at = now.saturating_add(nanos(retry_after).max(1));
                if self.rules.wait.is_some() && at <= until.0 {
                    // In shadow it would wait; there it goes at once.
                    return if self.in_shadow() { Ok(Ok(After::default())) } else { Err(at) };
                }
                Err(Refusal::new(Reason::RateLimited).after(retry_after, self))
            }
        })
    }

    #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "headers are for HTTP"))]
    fn after_grant(&self, remaining: u32, reset: Duration) -> After {
        After {
            #[cfg(feature = "http")]
            shown: self.rules.http.shows().then(|| Shown::new(self.policy(), remaining.into(), nanos(reset))),
            charged: None,
        }
    }

    #[cfg(feature = "http")]
    pub(super) fn show_denied(&self, retry_after: Duration) -> Option<Shown> {
        self.rules.http.shows().then(|| Shown::new(self.policy(), 0, nanos(retry_after)))
    }

    /// Asks the store once more. `None`: there is nothing to be asked for.
    pub(crate) fn ask_again<P, Req, Res, Err>(
        &self,
        protocol: &P,
        request: &mut Req,
    ) -> Result<Option<St::Acquire>, Refusal>
    where
        P: Protocol<Req, Res, Err>,
    {
        self.rules.look(protocol, request, |whose, units| {
            let Some(cost) = NonZeroU32::new(units) else { return Ok(None) };
            match whose {
                Whose::Keyless => Ok(self.store.ask(None, cost)),
                Whose::Key(key) => Ok(self.store.ask(Some(key), cost)),
                Whose::Nobodys { refuse: true } => Err(Refusal::new(Reason::KeyMissing)),
                Whose::Nobodys { refuse: false } => Ok(None),
            }
        })
    }

    /// What was charged was too little or too much.
    #[cfg(feature = "http")]
    pub(crate) fn charge(&self, bucket: &Bucket, charged: u32, cost: u32) -> Left {
        let now = self.now();
        if cost < charged {
            bucket.refund(charged - cost, now);
        } else if cost > charged {
            bucket.charge(cost - charged, now);
        }
        self.look_again();
        bucket.left(now)
    }
}
