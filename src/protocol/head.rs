//! What the head of an answer says: what it means, and whether there will be more.

use bytes::Bytes;
use http::{Extensions, HeaderMap, header, response::Parts};
use http_body::Body;

use crate::{
    outcome::{End, Outcome},
    protocol::{Degraded, Http, HttpClassify, HttpContext, Watch, classify, cut, hint, judge::Judge, number, peer},
    rejection::Rejection,
};

impl Http {
    /// The verdict on a body that came to its end.
    pub(super) fn judge_end(&self, grpc: bool, trailers: Option<&HeaderMap>) -> End {
        end_of_body(self.classify.as_deref(), grpc, trailers)
    }

    /// Judges the head. `None`: the response is over with it, and the watch is gone. Then there was no [`Judge`], which
    /// is large.
    #[inline(never)]
    pub(super) fn judge<RB, W>(&self, context: &HttpContext, parts: &Parts, body: &RB, mut watch: W) -> Option<Judge<W>>
    where
        RB: Body<Data = Bytes>,
        W: Watch,
    {
        let grpc = context.is_answered_in_grpc(parts);
        let has_ended = body.is_end_stream() || context.has_no_body(parts.status);
        // Looked for only where it makes a difference.
        let length = if has_ended && !W::COUNTS_MALFORMED { Header::Absent } else { content_length(&parts.headers) };
        if W::COUNTS_MALFORMED && (length == Header::Malformed || grpc_status_is_malformed(grpc, &parts.headers)) {
            watch.malformed();
        }
        let end = if !W::JUDGES {
            None
        } else if watch.spares_peers() && !is_of_a_policy(&parts.extensions) && peer::has_refused(grpc, parts) {
            // As a refusal of our own, it is nothing for a classification.
            Some(End::Refused)
        } else {
            self.judge_head_in_line(context, grpc, parts)
        };
        if let Some(end) = end {
            if matches!(end, End::Outcome(Outcome::Failure | Outcome::Throttled))
                && watch.wants_hint()
                && let Some(after) = hint::of(grpc, &parts.headers)
            {
                watch.hint(after);
            }
            watch.settle(end);
        }
        // The length of a gRPC response says nothing: its end is in the trailers.
        let bytes = match length {
            _ if grpc || has_ended => None,
            Header::Is(n) => Some(n),
            _ => body.size_hint().exact(),
        };
        if has_ended || bytes == Some(0) {
            if W::JUDGES && end.is_none() {
                watch.settle(self.judge_end(grpc, None));
            }
            watch.over();
            return None;
        }
        let mut judge = Judge::new(watch, !W::JUDGES || end.is_some(), grpc, self.classify.clone());
        judge.head(&parts.headers);
        judge.expect(bytes);
        judge.goes_on();
        Some(judge)
    }

    /// What the head means, where that is known by it. Out of line, for policies that hold an answer are large.
    #[inline(never)]
    pub(super) fn judge_head(&self, context: &HttpContext, grpc: bool, parts: &Parts) -> Option<End> {
        self.judge_head_in_line(context, grpc, parts)
    }

    // For the judge, which is out of line itself.
    #[inline(always)]
    fn judge_head_in_line(&self, context: &HttpContext, grpc: bool, parts: &Parts) -> Option<End> {
        if !parts.extensions.is_empty()
            && let Some(end) = said_by_a_policy(&parts.extensions)
        {
            return Some(end);
        }
        let outcome = match (&self.classify, &context.method) {
            (Some(own), Some(method)) => own.head(method, grpc, parts),
            _ => classify::judge_head(grpc, parts.status, &parts.headers),
        };
        if grpc
            && matches!(outcome, Some(Outcome::Failure | Outcome::Cancelled))
            && let Some(end) = cut::at_the_peer(&parts.headers)
        {
            return Some(end);
        }
        outcome.map(End::Outcome)
    }
}

/// The verdict on a body that came to its end, by the user's own classification if there is one.
pub(super) fn end_of_body(own: Option<&dyn HttpClassify>, grpc: bool, trailers: Option<&HeaderMap>) -> End {
    End::Outcome(match own {
        Some(own) => own.end(grpc, trailers),
        None => classify::default_end(grpc, trailers),
    })
}

/// What a policy of ours further in has said of its answer. Out of line, for most answers are not of a policy.
#[inline(never)]
fn said_by_a_policy(extensions: &Extensions) -> Option<End> {
    // First, for it covers a refusal up, or a failure.
    match extensions.get::<Degraded>() {
        Some(degraded) => Some(degraded.end()),
        None => Rejection::in_extensions(extensions).map(End::of_rejection),
    }
}

/// Has a policy of ours made this answer?
pub(super) fn is_of_a_policy(extensions: &Extensions) -> bool {
    !extensions.is_empty() && said_by_a_policy(extensions).is_some()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header {
    Absent,
    Malformed,
    Is(u64),
}

fn content_length(headers: &HeaderMap) -> Header {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else { return Header::Absent };
    number::read(value).map_or(Header::Malformed, Header::Is)
}

fn grpc_status_is_malformed(grpc: bool, headers: &HeaderMap) -> bool {
    grpc && matches!(classify::grpc_status(headers), Some(None))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn content_lengths() {
        let headers = |v: &[u8]| HeaderMap::from_iter([(header::CONTENT_LENGTH, HeaderValue::from_bytes(v).unwrap())]);
        let read = |v: &[u8]| content_length(&headers(v));
        assert_eq!(read(b"0"), Header::Is(0));
        assert_eq!(read(b"18446744073709551615"), Header::Is(u64::MAX));
        for garbage in [&b""[..], b"-1", b"+1", b"1, 1", b"18446744073709551616", b"\xff"] {
            assert_eq!(read(garbage), Header::Malformed, "{garbage:?}");
        }
        assert_eq!(content_length(&HeaderMap::new()), Header::Absent);
    }
}
