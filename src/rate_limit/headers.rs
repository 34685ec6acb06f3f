//! What a response tells of the quota.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    protocol::{
        names::{RATE_LIMIT, RATE_LIMIT_POLICY, X_RATE_LIMIT_REMAINING, X_RATE_LIMIT_RESET},
        number,
    },
    rate_limit::{Quota, gcra::Left},
};

/// Which headers tell of the quota, on admitted and on refused responses (none where no quota was looked at: a call
/// that cost nothing or had no key, and what a store can never grant).
///
/// `r`, `t` and their legacy twins are whole units that are left, and seconds, rounded up, until the whole quota is
/// there again. The limit (`q`) is what the quota gives per period; with a [`burst`](crate::Quota::burst) above that
/// there may be more left than it. Where several limits stand around one service, the outermost is the one that is told
/// of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LimitHeaders {
    /// None. The default.
    #[default]
    Off,
    /// `RateLimit-Policy: "default";q=10;w=1` and `RateLimit: "default";r=9;t=1`, as
    /// draft-ietf-httpapi-ratelimit-headers-10 has them. Never the partition key: it is the client's secret.
    Draft10,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` (seconds from now).
    Legacy,
    /// All of them.
    Both,
}

const X_RATE_LIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");

const NANOS: u64 = 1_000_000_000;

/// A quota as headers have it: units per a whole number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy(u32, u32);

impl Policy {
    pub(crate) fn of(quota: Quota) -> Self {
        let (units, seconds) = whole_seconds(quota);
        Policy(units, seconds)
    }

    /// In one word, so that it can be read without a lock.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.0) << 32 | u64::from(self.1)
    }

    pub(crate) fn unpack(word: u64) -> Self {
        Policy((word >> 32) as u32, word as u32)
    }
}

/// What is told of. Small, for the future of a call has room for it; what is more than 4,294,967,295 is told as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    units_per_window: u32,
    window: u32,
    left: u32,
    seconds: u32,
}

impl Shown {
    pub(crate) fn of(policy: Policy, left: &Left) -> Self {
        Shown::new(policy, left.units(), left.reset())
    }

    pub(crate) fn new(Policy(units_per_window, window): Policy, left: u64, reset_nanos: u64) -> Self {
        Shown { units_per_window, window, left: small(left), seconds: small(reset_nanos.div_ceil(NANOS)) }
    }

    /// Of the same quota, now.
    pub(crate) fn anew(self, left: &Left) -> Self {
        Shown { left: small(left.units()), seconds: small(left.reset().div_ceil(NANOS)), ..self }
    }

    #[cold]
    pub(crate) fn write(&self, headers: &mut HeaderMap, which: LimitHeaders) {
        if matches!(which, LimitHeaders::Draft10 | LimitHeaders::Both) {
            headers.insert(RATE_LIMIT_POLICY, text(b"q", self.units_per_window, b"w", self.window));
            headers.insert(RATE_LIMIT, text(b"r", self.left, b"t", self.seconds));
        }
        if matches!(which, LimitHeaders::Legacy | LimitHeaders::Both) {
            headers.insert(X_RATE_LIMIT_LIMIT, number::header_value(self.units_per_window.into(), None));
            headers.insert(X_RATE_LIMIT_REMAINING, number::header_value(self.left.into(), None));
            headers.insert(X_RATE_LIMIT_RESET, number::header_value(self.seconds.into(), None));
        }
    }
}

fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The quota per a whole number of seconds: headers know no fractions.
fn whole_seconds(quota: Quota) -> (u32, u32) {
    let nanos = u128::from(NANOS);
    let window = quota.per.as_nanos().div_ceil(nanos).max(1);
    let units = u128::from(quota.units) * window * nanos / quota.per.as_nanos().max(1);
    (u32::try_from(units).unwrap_or(u32::MAX), u32::try_from(window).unwrap_or(u32::MAX))
}

/// `"default";a=1;b=2`. One allocation, of the size it needs.
fn text(a: &[u8], first: u32, b: &[u8], second: u32) -> HeaderValue {
    const NAME: &[u8] = b"\"default\"";
    let mut buffer = [0; 64];
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        buffer[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    put(NAME);
    for (name, value) in [(a, first), (b, second)] {
        put(b";");
        put(name);
        put(b"=");
        put(number::digits(&mut [0; number::LONGEST], value.into(), None));
    }
    // Digits and letters are always a value.
    HeaderValue::from_bytes(&buffer[..len]).unwrap_or(HeaderValue::from_static("\"default\""))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(quota: Quota, units: u64, reset: u64, which: LimitHeaders) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        Shown::new(Policy::unpack(Policy::of(quota).pack()), units, reset).write(&mut headers, which);
        let mut all: Vec<_> = headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned())).collect();
        all.sort();
        all
    }

    #[test]
    fn as_the_draft_and_as_everybody_did_before() {
        let quota = Quota::per_second(10);
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(
            written(quota, 9, 100_000_000, LimitHeaders::Both),
            pairs(&[
                ("ratelimit", "\"default\";r=9;t=1"),
                ("ratelimit-policy", "\"default\";q=10;w=1"),
                ("x-ratelimit-limit", "10"),
                ("x-ratelimit-remaining", "9"),
                ("x-ratelimit-reset", "1"),
            ])
        );
        assert_eq!(written(quota, 9, 0, LimitHeaders::Off), []);
        assert_eq!(written(quota, 10, 0, LimitHeaders::Draft10)[0].1, "\"default\";r=10;t=0");
        assert_eq!(written(quota, u64::MAX, u64::MAX, LimitHeaders::Draft10).len(), 2);
    }

    #[test]
    fn windows_are_whole_seconds() {
        for (quota, expected) in [
            (Quota::per(100, Duration::from_secs(60)), (100, 60)),
            (Quota::per(1, Duration::from_millis(100)), (10, 1)),
            (Quota::per(3, Duration::from_millis(1_500)), (4, 2)),
            (Quota::per(1, Duration::from_nanos(1)), (1_000_000_000, 1)),
        ] {
            assert_eq!(whole_seconds(quota), expected, "{quota:?}");
        }
    }
}
