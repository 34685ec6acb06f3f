//! What an HTTP or gRPC response means.

use http::{HeaderMap, Method, StatusCode, response::Parts};

use crate::{outcome::Outcome, protocol::names::GRPC_STATUS};

/// Decides what an HTTP or gRPC response means. The provided methods are the default tables; override what differs.
///
/// HTTP: 5xx `Failure`, 429 `Throttled`, all else `Success`. gRPC: code 0 `Success`; 1 `Cancelled`; 2, 4, 13, 14 and 15
/// `Failure`; 8 `Throttled`; the rest (the caller's own mistakes) `Success`; no readable code at the end `Failure`. The
/// answer to a gRPC request is gRPC if its status is 200 and its content type, where there is one, says so, or if it
/// has a `grpc-status` (so one of 200 with neither is a gRPC answer that was cut off, and a `Failure`). Any other is
/// HTTP: it comes from a proxy, or from a handler to which somebody sent a content type that does not belong there.
///
/// Without being asked about, a transport error, and a body that breaks off, is a `Failure`, but `Cancelled` where it
/// is the request's own body that failed: whoever sent it has gone (seen with the features `hyper` and `tonic`). A body
/// that is dropped before its end is `Cancelled`; but one of HTTP with an announced length of which nothing was read is
/// a `Success` where the head was good, for then the caller wanted the status only (not with an own classification,
/// which may want to see the end).
///
/// On gRPC a CANCELLED or DEADLINE_EXCEEDED that a call gets in its head once a timeout of ours around it has run out
/// is that timeout's, and a `Failure`; a DEADLINE_EXCEEDED within 5 ms before the ambient deadline is the caller's, and
/// `Cancelled` as any deadline that passes: a peer with a timer on `grpc-timeout` may be faster than ours.
///
/// An own classification costs a call one allocation, for the method that is kept for [`head`](HttpClassify::head).
///
/// ```
/// use buttress::{HttpClassify, Outcome};
///
/// /// This backend answers 404 when its database is away.
/// struct Moody;
///
/// impl HttpClassify for Moody {
///     fn head(&self, _: &http::Method, grpc: bool, res: &http::response::Parts) -> Option<Outcome> {
///         if res.status == 404 { Some(Outcome::Failure) } else { buttress::default_head(grpc, res) }
///     }
/// }
/// ```
pub trait HttpClassify: Send + Sync + 'static {
    /// Judges the head of a response, which is gRPC or not. `None`: wait for the end of the body.
    fn head(&self, req: &Method, grpc: bool, res: &Parts) -> Option<Outcome> {
        let _ = req;
        default_head(grpc, res)
    }

    /// Judges a body that came to its end. Trailers are `None` where there were none, or were not waited for because
    /// every announced byte was there.
    fn end(&self, grpc: bool, trailers: Option<&HeaderMap>) -> Outcome {
        default_end(grpc, trailers)
    }
}

/// The default verdict on the head of a response; `None` where the end of the body decides.
pub fn default_head(grpc: bool, res: &Parts) -> Option<Outcome> {
    judge_head(grpc, res.status, &res.headers)
}

/// The default verdict on a body that came to its end.
pub fn default_end(grpc: bool, trailers: Option<&HeaderMap>) -> Outcome {
    if !grpc {
        return Outcome::Success;
    }
    // A gRPC response that ends without saying how it went was cut off.
    trailers.and_then(grpc_status).map_or(Outcome::Failure, of_grpc_code)
}

#[inline]
pub(crate) fn judge_head(grpc: bool, status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
    // A trailers-only response has its status in the head.
    if grpc && let Some(code) = grpc_status(headers) {
        return Some(of_grpc_code(code));
    }
    if status.is_server_error() {
        Some(Outcome::Failure)
    } else if status == StatusCode::TOO_MANY_REQUESTS {
        Some(Outcome::Throttled)
    } else {
        None
    }
}

/// The code in `grpc-status`, if the header is there; `None` inside if it is no code.
#[inline]
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<Option<u8>> {
    let digits = match *headers.get(GRPC_STATUS)?.as_bytes() {
        [a] => [b'0', a],
        [a, b] => [a, b],
        _ => return Some(None),
    };
    let code = digits.iter().all(u8::is_ascii_digit).then(|| (digits[0] - b'0') * 10 + (digits[1] - b'0'));
    Some(code.filter(|c| *c <= 16))
}

fn of_grpc_code(code: Option<u8>) -> Outcome {
    match code {
        Some(1) => Outcome::Cancelled,
        Some(8) => Outcome::Throttled,
        Some(2 | 4 | 13 | 14 | 15) | None => Outcome::Failure,
        Some(_) => Outcome::Success,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn with_status(v: &[u8]) -> HeaderMap {
        let mut h = HeaderMap::new();
        h.insert(GRPC_STATUS, HeaderValue::from_bytes(v).unwrap());
        h
    }

    #[test]
    fn the_table_of_grpc_codes() {
        use Outcome::*;
        let table = [
            Success, Cancelled, Failure, Success, Failure, Success, Success, Success, Throttled, Success, Success,
            Success, Success, Failure, Failure, Failure, Success,
        ];
        for (code, outcome) in table.into_iter().enumerate() {
            let headers = with_status(code.to_string().as_bytes());
            assert_eq!(default_end(true, Some(&headers)), outcome, "{code}");
            assert_eq!(judge_head(true, StatusCode::OK, &headers), Some(outcome), "{code}");
        }
        for garbage in [&b"17"[..], b"99", b"-1", b"", b"OK", b"014", b"\xff", b"1 "] {
            assert_eq!(default_end(true, Some(&with_status(garbage))), Failure, "{garbage:?}");
        }
        assert_eq!(default_end(true, None), Failure);
        assert_eq!(default_end(true, Some(&HeaderMap::new())), Failure);
    }

    #[test]
    fn the_table_of_http_statuses() {
        let head = |grpc, status: u16| judge_head(grpc, StatusCode::from_u16(status).unwrap(), &HeaderMap::new());
        for grpc in [false, true] {
            assert_eq!(head(grpc, 500), Some(Outcome::Failure));
            assert_eq!(head(grpc, 503), Some(Outcome::Failure));
            assert_eq!(head(grpc, 429), Some(Outcome::Throttled));
            for status in [200, 204, 304, 404, 499] {
                assert_eq!(head(grpc, status), None);
            }
        }
        assert_eq!(default_end(false, None), Outcome::Success);
        // A plain HTTP response may carry such a header; it means nothing there.
        assert_eq!(judge_head(false, StatusCode::OK, &with_status(b"14")), None);
    }
}
