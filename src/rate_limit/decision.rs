//! What is decided of a call, and what that comes to.

use std::{sync::Arc, time::Duration};

use crate::{
    deadline::Deadline,
    rate_limit::{
        Engine, Quota,
        bucket::{Bucket, Place},
        gcra::Left,
        limiter::Limiter,
    },
    rejection::Reason,
    time::Span,
};

#[cfg(feature = "http")]
use crate::rate_limit::headers::Shown;

/// What was decided of a call.
pub(crate) enum Decision<A> {
    /// It goes, and this is to be done once its answer is there. So many units were taken for it.
    Go(After, u32),
    /// It would be refused, if this were not in shadow: it goes, and is counted already.
    Shadowed,
    /// Its turn comes.
    Wait(Queued),
    /// The store was asked.
    Ask(A, Patience),
    No(Refusal),
}

/// What is to be done once the answer is there.
#[derive(Debug, Default)]
pub(crate) struct After {
    #[cfg(feature = "http")]
    pub(crate) shown: Option<Shown>,
    /// What the call was charged, and where, if it may turn out to have cost something else.
    pub(crate) charged: Option<(Arc<Bucket>, u32)>,
}

impl After {
    #[inline(always)]
    pub(crate) fn is_nothing(&self) -> bool {
        #[cfg(feature = "http")]
        return self.charged.is_none() && self.shown.is_none();
        #[cfg(not(feature = "http"))]
        self.charged.is_none()
    }
}

/// A place in the line.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) place: Place,
    pub(crate) units: u32,
    pub(crate) patience: Patience,
    pub(crate) after: After,
}

/// Until when a call may wait, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until(pub(crate) u64);

/// How long a call waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Until when its turn has to come, or a store may be asked again.
    pub(crate) until: Until,
    /// Until when it waits for the store's answer, and for the inner service.
    pub(crate) deadline: Option<Deadline>,
}

/// A refusal. Made into words when it is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) retry_after: Span,
    #[cfg(feature = "http")]
    pub(crate) shown: Option<Shown>,
}

impl Refusal {
    pub(crate) fn new(reason: Reason) -> Self {
        Refusal {
            reason,
            retry_after: Span::NONE,
            #[cfg(feature = "http")]
            shown: None,
        }
    }

    pub(crate) fn late(at: u64, now: u64) -> Self {
        Refusal { retry_after: Span(at.saturating_sub(now)), ..Refusal::new(Reason::RateLimited) }
    }

    #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "headers are for HTTP"))]
    pub(crate) fn showing<St: Engine>(self, limiter: &Limiter<St>, tier: Option<Quota>, left: &Left) -> Self {
        Refusal {
            #[cfg(feature = "http")]
            shown: limiter.show(tier, left),
            ..self
        }
    }

    #[cfg_attr(not(feature = "http"), allow(unused_variables, reason = "headers are for HTTP"))]
    pub(crate) fn after<St: Engine>(self, retry_after: Duration, limiter: &Limiter<St>) -> Self {
        Refusal {
            retry_after: Some(retry_after).into(),
            #[cfg(feature = "http")]
            shown: limiter.show_denied(retry_after),
            ..self
        }
    }
}
