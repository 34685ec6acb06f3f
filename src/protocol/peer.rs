//! What policies of ours on the other side of a wire have refused.

use http::{HeaderMap, StatusCode, response::Parts};

use crate::{
    protocol::{classify, names::REJECTED},
    rejection::Reason,
};

/// For what a policy of ours on the other side has refused the call. `headers`: those that have its gRPC code, if there
/// is one. Somebody between may have copied the header into an answer of his own, so the status has to be the reason's.
#[cold]
pub(crate) fn refused_for(grpc: bool, status: StatusCode, headers: &HeaderMap) -> Option<Reason> {
    let says = headers.get(REJECTED)?.as_bytes();
    let reason = Reason::ALL.into_iter().find(|reason| reason.as_str().as_bytes() == says)?;
    let fits = match classify::grpc_status(headers).filter(|_| grpc) {
        Some(code) => code.map(u32::from) == Some(reason.grpc_code()),
        None => status == reason.http_status(),
    };
    fits.then_some(reason)
}

/// Has one refused it? A timeout there is no refusal, as here.
pub(crate) fn has_refused(grpc: bool, answer: &Parts) -> bool {
    let reason = refused_for(grpc, answer.status, &answer.headers);
    reason.is_some_and(|reason| !matches!(reason, Reason::Timeout | Reason::DeadlineExceeded))
}
