//! A rejection as a response: `application/problem+json` (RFC 9457) for HTTP, trailers-only with `RetryInfo` for gRPC.
//!
//! This is the path that runs hottest under overload. Names are constants and texts are encoded once, so that an HTTP
//! or gRPC refusal allocates 5 times (the header map, the extensions), with a delay 7 times. To HEAD it has no document
//! but its length, which is 6 and 7 times.

use std::{io::Write, time::Duration};

use base64::{engine::general_purpose::STANDARD_NO_PAD, write::EncoderStringWriter};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};

use crate::{
    protocol::{
        names::{GRPC_DETAILS, GRPC_MESSAGE, GRPC_PUSHBACK, GRPC_STATUS, REJECTED},
        number,
        text::Text,
    },
    rejection::Rejection,
};

/// In which words a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Grpc,
    Http {
        /// It was a HEAD request: whoever sends a body then breaks HTTP/2, and over HTTP/1.1 relies on the server to
        /// drop it (RFC 9110, 9.3.2).
        is_head: bool,
    },
}

/// The whole response, the rejection in its extensions. The bytes are the body; empty for gRPC and to HEAD.
#[cold]
pub(crate) fn response(form: Form, rejection: Rejection) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    with_text(&rejection, |text| match form {
        Form::Grpc => in_grpc(&mut response, &rejection, text),
        Form::Http { is_head } => in_http(&mut response, &rejection, text, is_head),
    });
    let reason = HeaderValue::from_static(rejection.reason().as_str());
    response.headers_mut().insert(REJECTED, reason);
    response.extensions_mut().insert(rejection);
    response
}

fn in_grpc(response: &mut Response<Bytes>, rejection: &Rejection, text: &Text) {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    grpc_status(headers, rejection, text);
    if let Some(after) = rejection.retry_after() {
        headers.insert(GRPC_PUSHBACK, number::header_value(millis_up(after), None));
        headers.insert(GRPC_DETAILS, details(text, after));
    }
}

fn in_http(response: &mut Response<Bytes>, rejection: &Rejection, text: &Text, is_head: bool) {
    *response.status_mut() = rejection.reason().http_status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    let mut buffer = [0; 64];
    let delay = rejection.retry_after().map(|after| {
        let seconds = millis_up(after).div_ceil(1000).max(1);
        headers.insert(header::RETRY_AFTER, number::header_value(seconds, None));
        delay(&mut buffer, after)
    });
    if is_head {
        // As long as the document would be.
        let length = text.problem.len() + delay.map_or(0, |delay| delay.len() - 1);
        headers.insert(header::CONTENT_LENGTH, number::header_value(length as u64, None));
    } else {
        *response.body_mut() = delay.map_or_else(|| text.problem.clone(), |delay| problem(text, delay));
    }
}

/// The trailers that end a gRPC stream which was cut short.
#[cold]
pub(crate) fn trailers(rejection: &Rejection) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    with_text(rejection, |text| grpc_status(&mut trailers, rejection, text));
    trailers
}

/// `google.rpc.Status { code = 1, message = 2 }`. The details follow, if there are any.
pub(crate) fn status_head(code: u32, message: &str) -> Vec<u8> {
    let mut out = vec![0x08];
    varint(&mut out, u64::from(code));
    put(&mut out, &[0x12]);
    varint(&mut out, message.len() as u64);
    put(&mut out, message.as_bytes());
    out
}

fn with_text<T>(rejection: &Rejection, run: impl FnOnce(&Text) -> T) -> T {
    match rejection.origin().texts().of(rejection.reason()) {
        Some(text) => run(text),
        // A reason the policy did not announce: right, only slower.
        None => run(&Text::encode(rejection.policy(), None, rejection.reason())),
    }
}

fn grpc_status(headers: &mut HeaderMap, rejection: &Rejection, text: &Text) {
    let code = match rejection.reason().grpc_code() {
        4 => HeaderValue::from_static("4"),
        8 => HeaderValue::from_static("8"),
        14 => HeaderValue::from_static("14"),
        other => number::header_value(other.into(), None),
    };
    headers.insert(GRPC_STATUS, code);
    headers.insert(GRPC_MESSAGE, text.message.clone());
}

/// The delay in seconds, and the end of the problem document.
fn delay(buffer: &mut [u8; 64], after: Duration) -> &[u8] {
    let room = buffer.len();
    let mut rest = &mut buffer[..];
    let millis = millis_up(after);
    // Decimal by hand: a float would print 0.1 + 0.2 like one.
    let _ = write!(rest, ",\"retry_after\":{}", millis / 1000);
    let fraction = millis % 1000;
    let _ = match fraction {
        0 => Ok(()),
        _ if fraction.is_multiple_of(100) => write!(rest, ".{}", fraction / 100),
        _ if fraction.is_multiple_of(10) => write!(rest, ".{:02}", fraction / 10),
        _ => write!(rest, ".{fraction:03}"),
    };
    put(&mut rest, b"}");
    let used = room - rest.len();
    &buffer[..used]
}

/// The problem document with this for its end. It gets a buffer of exactly its size; else `Bytes` would make another
/// for it.
fn problem(text: &Text, delay: &[u8]) -> Bytes {
    let head = &text.problem[..text.problem.len() - 1];
    let mut json = Vec::with_capacity(head.len() + delay.len());
    json.extend_from_slice(head);
    json.extend_from_slice(delay);
    Bytes::from(json)
}

/// `google.rpc.Status` with one detail, `google.rpc.RetryInfo { retry_delay = 1: Duration }`, in base64 without
/// padding.
fn details(text: &Text, after: Duration) -> HeaderValue {
    const TYPE: &[u8] = b"type.googleapis.com/google.rpc.RetryInfo";
    let (seconds, nanos) = (after.as_secs(), u64::from(after.subsec_nanos()));
    // Every length here is below 128, so it takes one byte.
    let duration = 2 + varint_len(seconds) + varint_len(nanos);
    let info = 2 + duration;
    let any = 2 + TYPE.len() + 2 + info;
    let whole = text.status.len() + 2 + any;

    // Of exactly the size that it will have, or the header value would make another buffer of it.
    let base64 = String::with_capacity((whole * 4).div_ceil(3));
    let mut out = EncoderStringWriter::from_consumer(base64, &STANDARD_NO_PAD);
    put(&mut out, &text.status);
    put(&mut out, &[0x1a, any as u8, 0x0a, TYPE.len() as u8]);
    put(&mut out, TYPE);
    put(&mut out, &[0x12, info as u8, 0x0a, duration as u8, 0x08]);
    varint(&mut out, seconds);
    put(&mut out, &[0x10]);
    varint(&mut out, nanos);
    HeaderValue::try_from(out.into_inner()).unwrap_or(HeaderValue::from_static(""))
}

fn put(out: &mut impl Write, bytes: &[u8]) {
    // Every writer here is memory, and does not fail.
    let _ = out.write_all(bytes);
}

fn varint(out: &mut impl Write, mut v: u64) {
    while v >= 0x80 {
        put(out, &[v as u8 | 0x80]);
        v >>= 7;
    }
    put(out, &[v as u8]);
}

fn varint_len(v: u64) -> usize {
    (64 - (v | 1).leading_zeros() as usize).div_ceil(7)
}

/// Whole milliseconds, rounded up: nobody is told to come back too early.
fn millis_up(d: Duration) -> u64 {
    u64::try_from(d.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{origin::Origin, rejection::Reason, stripe::Striped};

    fn rejection(name: &str, expose: bool, reason: Reason, after: Option<Duration>) -> Rejection {
        let origin = Origin::new("circuit_breaker", name.into(), expose, &[reason]);
        Rejection::new(&Striped::new(origin), reason).with_retry_after(after)
    }

    const GET: Form = Form::Http { is_head: false };
    const HEAD: Form = Form::Http { is_head: true };

    fn http(after: Option<Duration>) -> (Response<Bytes>, String) {
        let r = response(GET, rejection("db", false, Reason::CircuitOpen, after));
        let body = String::from_utf8(r.body().to_vec()).unwrap();
        (r, body)
    }

    #[test]
    fn http_without_a_delay() {
        let (r, body) = http(None);
        assert_eq!(r.status(), 503);
        assert_eq!(r.headers()["content-type"], "application/problem+json");
        assert_eq!(r.headers()["x-rejected"], "circuit_open");
        assert!(!r.headers().contains_key("retry-after"));
        assert_eq!(
            body,
            r#"{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the circuit breaker is open","policy":"circuit_breaker","reason":"circuit_open"}"#
        );
        assert_eq!(Rejection::in_response(&r).map(Rejection::name), Some("db"));
    }

    #[test]
    fn http_with_a_delay() {
        for (delay, header, number) in [
            (Duration::from_millis(1500), "2", "1.5"),
            (Duration::from_secs(20), "20", "20"),
            (Duration::from_nanos(1), "1", "0.001"),
            (Duration::ZERO, "1", "0"),
            (Duration::from_millis(100), "1", "0.1"),
            (Duration::from_micros(4_999_001), "5", "5"),
        ] {
            let (r, body) = http(Some(delay));
            assert_eq!(r.headers()["retry-after"], header, "{delay:?}");
            let end = format!(r#","reason":"circuit_open","retry_after":{number}}}"#);
            assert!(body.ends_with(&end), "{body}");
            serde_json::from_str::<serde_json::Value>(&body).unwrap();
        }
    }

    #[test]
    fn head_is_refused_as_get_but_for_the_body() {
        for delay in [None, Some(Duration::from_millis(1_230)), Some(Duration::from_secs(7))] {
            let refuse = |form| response(form, rejection("db", true, Reason::CircuitOpen, delay));
            let (get, mut head) = (refuse(GET), refuse(HEAD));
            assert!(head.body().is_empty());
            assert_eq!(head.headers_mut().remove("content-length").unwrap(), get.body().len().to_string());
            assert_eq!((head.status(), head.headers()), (get.status(), get.headers()));
            assert!(Rejection::in_response(&head).is_some());
        }
    }

    #[test]
    fn grpc_is_trailers_only() {
        let r = response(Form::Grpc, rejection("db", false, Reason::CircuitOpen, None));
        assert_eq!(r.status(), 200);
        assert!(r.body().is_empty());
        let mut headers: Vec<_> = r.headers().iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap())).collect();
        headers.sort_unstable();
        assert_eq!(
            headers,
            [
                ("content-type", "application/grpc"),
                ("grpc-message", "the circuit breaker is open"),
                ("grpc-status", "14"),
                ("x-rejected", "circuit_open")
            ]
        );
    }

    #[test]
    fn a_name_is_escaped_in_both_forms() {
        let name = r#"a"b\c%d"#;
        let r = response(GET, rejection(name, true, Reason::RateLimited, None));
        let json: serde_json::Value = serde_json::from_slice(r.body()).unwrap();
        assert_eq!(json["detail"], format!("the rate limit is reached ({name})"));
        assert_eq!(json["status"], 429);
        let r = response(Form::Grpc, rejection(name, true, Reason::RateLimited, None));
        assert_eq!(r.headers()["grpc-message"], r#"the rate limit is reached (a"b\c%25d)"#);
    }

    #[test]
    fn varints_know_their_length() {
        for v in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            varint(&mut out, v);
            assert_eq!(out.len(), varint_len(v), "{v}");
        }
    }
}
