//! A policy refused a call, or cut it short: who, why, and when to come back.

use std::{error::Error as StdError, fmt, time::Duration};

pub(crate) use self::told::Told;
use crate::{
    origin::Origin,
    stripe::{Shared, Striped},
    time::Span,
};

mod told;

/// Why a policy refused a call or cut it short.
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
    /// The limit is for each key, and the request has none.
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
    /// In the order of their declaration.
    #[cfg(any(feature = "http", feature = "metrics"))]
    pub(crate) const ALL: [Reason; 13] = [
        Self::CircuitOpen,
        Self::ForcedOpen,
        Self::BulkheadFull,
        Self::QueueTimeout,
        Self::ShedByPriority,
        Self::RateLimited,
        Self::CostAboveBurst,
        Self::KeyMissing,
        Self::Overloaded,
        Self::Throttled,
        Self::Timeout,
        Self::DeadlineExceeded,
        Self::Draining,
    ];

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
            Reason::KeyMissing => "the call carries no key, and the limit is for each key",
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
    // One counter for all would bring an overloaded server, which refuses on every core, to a crawl.
    origin: Shared<Origin>,
    told: Told,
}

impl Rejection {
    #[inline]
    pub(crate) fn new(origin: &Striped<Origin>, reason: Reason) -> Self {
        Self { origin: origin.share(), told: Told::new(reason, Span::NONE) }
    }

    /// Only for refusals. (The breaker, which counts its refusals, makes them [`counted`](Self::counted).)
    #[cfg_attr(not(test), allow(dead_code, reason = "for policies whose delay is known later"))]
    #[inline]
    pub(crate) fn with_retry_after(self, retry_after: impl Into<Span>) -> Self {
        let span = retry_after.into();
        debug_assert!(self.is_refusal() || span == Span::NONE, "{} has no time to come back", self.reason());
        self.with_time(span)
    }

    /// Only for what was cut short.
    pub(crate) fn with_time_it_had(self, had: Duration) -> Self {
        debug_assert!(!self.is_refusal(), "{} is a refusal: the call had no time", self.reason());
        self.with_time(Some(had).into())
    }

    #[inline]
    fn with_time(mut self, time: Span) -> Self {
        self.told = self.told.at(time);
        self
    }

    pub(crate) fn had(&self) -> Option<Duration> {
        if self.is_refusal() { None } else { self.told.time() }
    }

    /// A refusal that is counted where its origin counts, see [`Striped::tally`].
    #[inline(always)]
    pub(crate) fn counted(origin: &Striped<Origin>, told: Told) -> Self {
        let origin = origin.share();
        origin.count();
        Self { origin, told }
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
        self.told.reason()
    }

    /// When it is worth coming back, from now; `None` if unknown. Never set for timeouts and deadlines.
    pub fn retry_after(&self) -> Option<Duration> {
        if self.is_refusal() { self.told.time() } else { None }
    }

    /// Was the call refused before it reached the backend? True for every reason but `Timeout` and
    /// `DeadlineExceeded`. Policies further out record nothing against the backend for a refusal.
    pub fn is_refusal(&self) -> bool {
        !matches!(self.reason(), Reason::Timeout | Reason::DeadlineExceeded)
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

    /// As [`of`](Self::of), of an error whose type is known: most have no source, and then there is nothing to be
    /// asked.
    #[inline(always)]
    pub(crate) fn of_a<E: StdError + 'static>(error: &E) -> Option<&Rejection> {
        match (error as &dyn std::any::Any).downcast_ref::<Rejection>() {
            None => Rejection::of(error.source()?),
            own => own,
        }
    }

    /// The rejection behind a response that a policy made, or (feature `tonic`) that a handler has passed on: behind a
    /// status with the rejection's own code, in a response of trailers only.
    #[cfg(feature = "http")]
    pub fn in_response<B>(response: &http::Response<B>) -> Option<&Rejection> {
        Self::in_extensions(response.extensions())
    }

    /// As [`in_response`](Self::in_response), of a head.
    #[cfg(feature = "http")]
    #[inline]
    pub(crate) fn in_extensions(extensions: &http::Extensions) -> Option<&Rejection> {
        let rejection = extensions.get();
        // There tonic leaves the status that its headers were made of. With another code it is what the handler says.
        #[cfg(feature = "tonic")]
        let rejection = rejection.or_else(|| {
            let status = extensions.get::<tonic::Status>()?;
            Rejection::of(status).filter(|r| i32::from(status.code()).unsigned_abs() == r.reason().grpc_code())
        });
        rejection
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
            .field("reason", &self.reason())
            .field("retry_after", &self.retry_after())
            .finish()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name stays out: this text ends up in answers, and there it is the operator's choice (`expose_name`).
        write!(f, "{} ({}: {})", self.reason().detail(), self.policy(), self.reason())
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
