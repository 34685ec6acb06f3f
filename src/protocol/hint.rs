//! When a server asks its callers to come back: `Retry-After` (RFC 9110, 10.2.3), `grpc-retry-pushback-ms` (gRPC A6)
//! and `google.rpc.RetryInfo` in `grpc-status-details-bin`.

use std::time::{Duration, SystemTime};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderValue, header};

use crate::{
    protocol::{
        names::{GRPC_DETAILS, GRPC_PUSHBACK},
        number,
    },
    time,
};

/// What a server says to one who might send the same call again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    None,
    After(Duration),
    /// A pushback that is negative, or can't be read, means: do not.
    Stop,
}

/// The delay, from now. What can't be read is no hint.
pub(crate) fn of(grpc: bool, headers: &HeaderMap) -> Option<Duration> {
    let pushback = || headers.get(GRPC_PUSHBACK).and_then(millis);
    // On gRPC too: it may be a proxy that answers.
    let retry_after = || seconds(headers).map(Duration::from_secs).or_else(|| until_date(headers));
    if grpc { pushback().or_else(|| retry_info(headers)).or_else(retry_after) } else { retry_after() }
}

/// As [`of`], for a retry.
pub(crate) fn for_retry(grpc: bool, headers: &HeaderMap) -> Hint {
    match headers.get(GRPC_PUSHBACK).filter(|_| grpc) {
        Some(pushback) => millis(pushback).map_or(Hint::Stop, Hint::After),
        None => of(grpc, headers).map_or(Hint::None, Hint::After),
    }
}

fn millis(value: &HeaderValue) -> Option<Duration> {
    number::read(value).map(Duration::from_millis)
}

/// As many digits as the server likes: what is too long for a number is a very long time (RFC 9111, 1.2.2).
fn seconds(headers: &HeaderMap) -> Option<u64> {
    let digits = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    number::is_number(digits).then(|| digits.parse().unwrap_or(u64::MAX))
}

/// A date is counted from the server's own clock, where it says what that is.
fn until_date(headers: &HeaderMap) -> Option<Duration> {
    let date = |name| httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok();
    let until: SystemTime = date(header::RETRY_AFTER)?;
    let now = date(header::DATE).unwrap_or_else(time::wall);
    Some(until.duration_since(now).unwrap_or_default())
}

/// `retry_delay` of the first `google.rpc.RetryInfo` among the details of a `google.rpc.Status`.
fn retry_info(headers: &HeaderMap) -> Option<Duration> {
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let status = BASE64.decode(headers.get(GRPC_DETAILS)?).ok()?;
    // Status { code = 1, message = 2, details = 3: Any { type_url = 1, value = 2 } }
    let detail = Fields(&status).filter_map(|(n, v)| v.bytes().filter(|_| n == 3));
    let mut infos = detail.filter_map(|any| {
        let url = Fields(any).find_map(|(n, v)| v.bytes().filter(|_| n == 1))?;
        let value = Fields(any).find_map(|(n, v)| v.bytes().filter(|_| n == 2))?;
        url.ends_with(b"/google.rpc.RetryInfo").then_some(value)
    });
    // RetryInfo { retry_delay = 1: Duration { seconds = 1, nanos = 2 } }
    let delay = Fields(infos.next()?).find_map(|(n, v)| v.bytes().filter(|_| n == 1))?;
    let part = |wanted| Fields(delay).filter_map(|(n, v)| v.number().filter(|_| n == wanted)).last().unwrap_or(0);
    // Both are signed; a negative one is a very large number here, and no delay.
    let nanos = u32::try_from(part(2)).ok().filter(|n| *n < 1_000_000_000)?;
    let seconds = Some(part(1)).filter(|s| *s <= i64::MAX as u64)?;
    Some(Duration::new(seconds, nanos))
}

/// The fields of a protobuf message, up to the first that can't be read.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn bytes(self) -> Option<&'a [u8]> {
        if let Value::Bytes(b) = self { Some(b) } else { None }
    }

    fn number(self) -> Option<u64> {
        if let Value::Number(n) = self { Some(n) } else { None }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<(u64, Value<'a>)> {
        let key = varint(&mut self.0)?;
        let length = match key & 7 {
            0 => return Some((key >> 3, Value::Number(varint(&mut self.0)?))),
            1 => 8,
            2 => usize::try_from(varint(&mut self.0)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some((key >> 3, Value::Bytes(field)))
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(first & 0x7f) << shift;
        if *first < 0x80 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(grpc: bool, headers: &[(&'static str, &'static str)]) -> Option<Duration> {
        of(grpc, &headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect())
    }

    #[test]
    fn seconds_milliseconds_and_dates() {
        let s = Duration::from_secs;
        assert_eq!(hint(false, &[("retry-after", "120")]), Some(s(120)));
        assert_eq!(hint(true, &[("retry-after", "2"), ("grpc-retry-pushback-ms", "1500")]), Some(s(3) / 2));
        assert_eq!(hint(false, &[("grpc-retry-pushback-ms", "1500")]), None);
        let (date, later) = ("Tue, 15 Nov 1994 08:12:31 GMT", "Tue, 15 Nov 1994 08:13:31 GMT");
        for grpc in [false, true] {
            assert_eq!(hint(grpc, &[("retry-after", later), ("date", date)]), Some(s(60)));
        }
        assert_eq!(hint(false, &[("retry-after", date), ("date", later)]), Some(s(0)));
        assert_eq!(hint(false, &[("retry-after", date)]), Some(s(0)));
    }

    #[test]
    fn garbage_is_no_hint() {
        for v in ["", "-1", "+1", "1.5", "soon", "Tue, 15 Nov"] {
            assert_eq!(hint(false, &[("retry-after", v)]), None, "{v}");
            assert_eq!(hint(true, &[("grpc-retry-pushback-ms", v)]), None, "{v}");
        }
        // Of digits alone: a very long time, but a pushback is a number of a bounded type.
        let long = "99999999999999999999999";
        assert_eq!(hint(false, &[("retry-after", long)]), Some(Duration::from_secs(u64::MAX)));
        assert_eq!(hint(true, &[("grpc-retry-pushback-ms", long)]), None);
    }

    fn for_one_that_retries(grpc: bool, headers: &[(&'static str, &str)]) -> Hint {
        for_retry(grpc, &headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect())
    }

    #[test]
    fn a_pushback_can_say_no() {
        let ms = |n| Hint::After(Duration::from_millis(n));
        assert_eq!(for_one_that_retries(true, &[("grpc-retry-pushback-ms", "25")]), ms(25));
        assert_eq!(for_one_that_retries(true, &[("grpc-retry-pushback-ms", "0")]), ms(0));
        for v in ["-1", "", "soon", "1.5", "99999999999999999999999"] {
            assert_eq!(
                for_one_that_retries(true, &[("grpc-retry-pushback-ms", v), ("retry-after", "1")]),
                Hint::Stop,
                "{v}"
            );
            assert_eq!(for_one_that_retries(false, &[("grpc-retry-pushback-ms", v)]), Hint::None, "{v}");
        }
    }

    /// What our own refusals say, and what other encoders make of it.
    #[test]
    fn retry_info_is_found_among_other_details() {
        use tonic_types::{ErrorDetails, StatusExt};

        let details = |delay| {
            let mut details = ErrorDetails::new();
            details.set_retry_info(delay).set_request_info("id", "data").add_help_link("text", "url");
            let status = tonic::Status::with_error_details(tonic::Code::Unavailable, "away", details);
            base64::engine::general_purpose::STANDARD.encode(status.details())
        };
        for millis in [0, 1, 1_500, 90_000] {
            let delay = Duration::from_millis(millis);
            let padded = details(Some(delay));
            for text in [padded.trim_end_matches('='), &padded] {
                assert_eq!(for_one_that_retries(true, &[("grpc-status-details-bin", text)]), Hint::After(delay));
                assert_eq!(for_one_that_retries(false, &[("grpc-status-details-bin", text)]), Hint::None);
            }
        }
        assert_eq!(for_one_that_retries(true, &[("grpc-status-details-bin", "AAAA")]), Hint::None);
    }

    proptest::proptest! {
        #[test]
        fn garbage_in_details_is_no_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            let _ = for_one_that_retries(true, &[("grpc-status-details-bin", &text)]);
        }
    }
}
