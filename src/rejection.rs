//! A policy refused a call, or cut it short: who, why, and when to come back.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use crate::{origin::Origin, time::Span};

/// Why a policy refused a call or cut it short.
// As wide as a word: results carry it by way of `Rejection`, and are moved by whole words then.
#[repr(u64)]
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The circuit breaker is open, or has no probe to give.
    CircuitOpen,
    /// The circuit breaker was opened by hand.
    ForcedOpen,
    /// The bulkhead and its queue are full.
    BulkheadFull,
    /// The call waited in a queue for as long as it may.
    QueueTimeout,
    /// A queue made room for a call of higher priority.
    ShedByPriority,
    /// The quota is used up.
    RateLimited,
    /// The call costs more than the quota can ever give.
    CostAboveBurst,
    /// The quota is per key, and the request has no key.
    KeyMissing,
    /// The service is overloaded.
    Overloaded,
    /// The backend asked for less.
    Throttled,
    /// The operator's timeout ran out.
    Timeout,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// The service is shutting down.
    Draining,
}

impl Reason {
    /// The stable name, as it stands in answers, events and metrics: `circuit_open`, ...
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::CircuitOpen => "circuit_open",
            Reason::ForcedOpen => "forced_open",
            Reason::BulkheadFull => "bulkhead_full",
            Reason::QueueTimeout => "queue_timeout",
            Reason::ShedByPriority => "shed_by_priority",
            Reason::RateLimited => "rate_limited",
            Reason::CostAboveBurst => "cost_above_burst",
            Reason::KeyMissing => "key_missing",
            Reason::Overloaded => "overloaded",
            Reason::Throttled => "throttled",
            Reason::Timeout => "timeout",
            Reason::DeadlineExceeded => "deadline_exceeded",
            Reason::Draining => "draining",
        }
    }

    /// The status of an HTTP answer: 429, 503 or 504.
    #[cfg(feature = "http")]
    pub fn http_status(self) -> http::StatusCode {
        match self {
            Reason::RateLimited | Reason::CostAboveBurst | Reason::KeyMissing => http::StatusCode::TOO_MANY_REQUESTS,
            Reason::Timeout | Reason::DeadlineExceeded => http::StatusCode::GATEWAY_TIMEOUT,
            _ => http::StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The code of a gRPC answer: 4 DEADLINE_EXCEEDED, 8 RESOURCE_EXHAUSTED or 14 UNAVAILABLE.
    #[cfg(feature = "http")]
    pub fn grpc_code(self) -> u32 {
        match self {
            Reason::Timeout | Reason::DeadlineExceeded => 4,
            Reason::CircuitOpen | Reason::ForcedOpen | Reason::Draining => 14,
            _ => 8,
        }
    }

    /// One sentence for the caller. Nothing of the request is in it.
    pub(crate) fn detail(self) -> &'static str {
        match self {
            Reason::CircuitOpen => "the circuit breaker is open",
            Reason::ForcedOpen => "the circuit breaker was opened by hand",
            Reason::BulkheadFull => "too many calls are in flight",
            Reason::QueueTimeout => "the call waited too long for its turn",
            Reason::ShedByPriority => "the call gave way to a more important one",
            Reason::RateLimited => "the rate limit is reached",
            Reason::CostAboveBurst => "the call costs more than the rate limit can ever give",
            Reason::KeyMissing => "the call carries no key for its rate limit",
            Reason::Overloaded => "the service is overloaded",
            Reason::Throttled => "the backend asked for less",
            Reason::Timeout => "the call took too long",
            Reason::DeadlineExceeded => "the deadline passed",
            Reason::Draining => "the service is shutting down",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which policy refused the call (or cut it short), why, and when to come back.
///
/// On HTTP and gRPC it rides in the extensions of the response ([`Rejection::in_response`]); elsewhere it is the
/// error or one of its sources ([`Rejection::of`]).
#[derive(Clone)]
pub struct Rejection {
    origin: Arc<Origin>,
    reason: Reason,
    /// When to come back; of a call that was cut short, how long it had. (That is for policies further out, which may not
    /// have looked at the clock.) Never both, so one word will do.
    time: Span,
}

impl Rejection {
    pub(crate) fn new(origin: &Arc<Origin>, reason: Reason) -> Self {
        Self { origin: Arc::clone(origin), reason, time: Span::NONE }
    }

    pub(crate) fn with_retry_after(self, retry_after: Option<Duration>) -> Self {
        if self.is_refusal() { Self { time: retry_after.into(), ..self } } else { self }
    }

    pub(crate) fn with_time_it_had(self, had: Duration) -> Self {
        if self.is_refusal() { self } else { Self { time: Some(had).into(), ..self } }
    }

    pub(crate) fn had(&self) -> Option<Duration> {
        self.time.duration().filter(|_| !self.is_refusal())
    }

    /// The policy's kind: `timeout`, `circuit_breaker`, ...
    pub fn policy(&self) -> &'static str {
        self.origin.policy()
    }

    /// The name the policy was given, else its kind.
    pub fn name(&self) -> &str {
        self.origin.name()
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// When it is worth coming back, from now; `None` if unknown. Never set for timeouts and deadlines.
    pub fn retry_after(&self) -> Option<Duration> {
        self.time.duration().filter(|_| self.is_refusal())
    }

    /// Was the call refused before it reached the backend? True for every reason but `Timeout` and
    /// `DeadlineExceeded`. Policies further out record nothing against the backend for a refusal.
    pub fn is_refusal(&self) -> bool {
        !matches!(self.reason, Reason::Timeout | Reason::DeadlineExceeded)
    }

    /// Looks for a rejection: the error itself, then along its `source()`s.
    pub fn of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Rejection> {
        let mut next = Some(error);
        while let Some(e) = next {
            if let Some(r) = e.downcast_ref::<Rejection>() {
                return Some(r);
            }
            next = e.source();
        }
        None
    }

    /// The rejection behind a response that a policy made.
    #[cfg(feature = "http")]
    pub fn in_response<B>(response: &http::Response<B>) -> Option<&Rejection> {
        response.extensions().get()
    }

    #[cfg(feature = "http")]
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("policy", &self.policy())
            .field("name", &self.name())
            .field("reason", &self.reason)
            .field("retry_after", &self.retry_after())
            .finish()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name stays out: this text ends up in answers, and there it is the operator's choice (`expose_name`).
        write!(f, "{} ({}: {})", self.reason.detail(), self.policy(), self.reason)
    }
}

impl StdError for Rejection {}

/// The error of a plain service under a policy: the policy's rejection or the service's own error, unchanged.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error<E> {
    /// A policy refused the call or cut it short.
    Rejected(Rejection),
    /// The service failed by itself.
    Inner(E),
}

impl<E> From<Rejection> for Error<E> {
    fn from(r: Rejection) -> Self {
        Error::Rejected(r)
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Rejected(r) => r.fmt(f),
            Error::Inner(e) => e.fmt(f),
        }
    }
}

impl<E: StdError + 'static> StdError for Error<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Rejected(r) => Some(r),
            Error::Inner(e) => Some(e),
        }
    }
}
