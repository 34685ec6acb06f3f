//! What policies of ours on the other side of a wire have refused.

use http::{HeaderMap, response::Parts};

use crate::{
    protocol::{classify, names::REJECTED},
    rejection::Reason,
};

/// For what a policy of ours on the other side has refused the call.
pub(crate) fn reason(headers: &HeaderMap) -> Option<Reason> {
    let says = headers.get(REJECTED)?.as_bytes();
    Reason::ALL.into_iter().find(|reason| reason.as_str().as_bytes() == says)
}

/// Has one refused it, and is this its answer? Somebody between may have copied the header into one of his own, so the
/// status has to be that of the reason. A timeout there is no refusal, as here.
#[cold]
pub(crate) fn has_refused(grpc: bool, answer: &Parts) -> bool {
    let Some(reason) = reason(&answer.headers) else { return false };
    let fits = match classify::grpc_status(&answer.headers).filter(|_| grpc) {
        Some(code) => code.map(u32::from) == Some(reason.grpc_code()),
        None => answer.status == reason.http_status(),
    };
    fits && !matches!(reason, Reason::Timeout | Reason::DeadlineExceeded)
}
