//! When a server asks its callers to come back: `Retry-After` (RFC 9110, 10.2.3) and `grpc-retry-pushback-ms` (gRPC A6).

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, header};

use crate::time;

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The delay, from now. What can't be read is no hint.
pub(crate) fn of(grpc: bool, headers: &HeaderMap) -> Option<Duration> {
    let pushback = || number(headers, &PUSHBACK).map(Duration::from_millis);
    let seconds = || number(headers, &header::RETRY_AFTER).map(Duration::from_secs);
    if grpc { pushback().or_else(seconds) } else { seconds().or_else(|| until_date(headers)) }
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let digits = headers.get(name)?.to_str().ok()?;
    // `parse` alone would take a sign too.
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// A date is counted from the server's own clock, where it says what that is.
fn until_date(headers: &HeaderMap) -> Option<Duration> {
    let date = |name| httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok();
    let until: SystemTime = date(header::RETRY_AFTER)?;
    let now = date(header::DATE).unwrap_or_else(time::wall);
    Some(until.duration_since(now).unwrap_or_default())
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
        assert_eq!(hint(false, &[("retry-after", later), ("date", date)]), Some(s(60)));
        assert_eq!(hint(false, &[("retry-after", date), ("date", later)]), Some(s(0)));
        assert_eq!(hint(false, &[("retry-after", date)]), Some(s(0)));
    }

    #[test]
    fn garbage_is_no_hint() {
        for v in ["", "-1", "+1", "1.5", "soon", "99999999999999999999999", "Tue, 15 Nov"] {
            assert_eq!(hint(false, &[("retry-after", v)]), None, "{v}");
            assert_eq!(hint(true, &[("grpc-retry-pushback-ms", v)]), None, "{v}");
        }
    }
}
