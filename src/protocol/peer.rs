//! What policies of ours on the other side of a wire have refused.

use http::{HeaderMap, Method, response::Parts};

use crate::{
    outcome::Outcome,
    protocol::{HttpClassify, default_head, names::REJECTED},
    rejection::Reason,
};

/// A classification for a client whose server has policies of this crate too: what those refuse is no failure of the
/// server.
///
/// Within one process a breaker sees that a policy further in has refused a call, and counts nothing. Over a wire a
/// bulkhead that sheds, one tenant's full quota, a breaker further down, an instance that drains and a call without a
/// key look like a server that is broken or wants less: 503 or 429, UNAVAILABLE or RESOURCE_EXHAUSTED. A breaker in
/// front of a server that is asked for three times of what it can do then opens, and lets a tenth of that through. But
/// each refusal says its reason, in the header `x-rejected`; with this classification a breaker and an adaptive rate go
/// by it:
///
/// | `x-rejected` | outcome |
/// |---|---|
/// | `rate_limited`, `throttled` | `Throttled` |
/// | `timeout`, `deadline_exceeded` | as without the header |
/// | any other reason | `Ignored` |
/// | none, or no reason | the default tables of [`HttpClassify`] |
///
/// ```
/// use buttress::{AdaptiveRateLayer, CircuitBreakerLayer, PeerRefusals};
///
/// # fn main() -> Result<(), buttress::ConfigError> {
/// let breaker = CircuitBreakerLayer::builder().build()?.classify(PeerRefusals);
/// let rate = AdaptiveRateLayer::builder().build()?.classify(PeerRefusals);
/// # drop((breaker, rate)); Ok(()) }
/// ```
///
/// It is not for retries, hedges and fallbacks: those have something to do with such an answer. It believes the header
/// whoever wrote it, so it is for servers that are trusted with that.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerRefusals;

impl HttpClassify for PeerRefusals {
    fn head(&self, _: &Method, grpc: bool, res: &Parts) -> Option<Outcome> {
        match reason(&res.headers) {
            None | Some(Reason::Timeout | Reason::DeadlineExceeded) => default_head(grpc, res),
            Some(Reason::RateLimited | Reason::Throttled) => Some(Outcome::Throttled),
            Some(_) => Some(Outcome::Ignored),
        }
    }
}

/// For what a policy of ours on the other side has refused the call.
pub(crate) fn reason(headers: &HeaderMap) -> Option<Reason> {
    let says = headers.get(REJECTED)?.as_bytes();
    Reason::ALL.into_iter().find(|reason| reason.as_str().as_bytes() == says)
}
