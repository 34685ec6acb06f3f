//! How long a server says that nothing is left of the quota: `RateLimit` (draft 10) and `X-RateLimit-*`.
//!
//! "Until the reset" may be until *all* is there again: where units come back one by one, as with our own rate limit, a
//! client that waits for that leaves nearly all of its quota unused. So where the quota is told too
//! (`RateLimit-Policy`), it is no longer than one unit takes at that. If that is too early, a throttled answer says so.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::protocol::{
    names::{RATE_LIMIT, RATE_LIMIT_POLICY, X_RATE_LIMIT_REMAINING, X_RATE_LIMIT_RESET},
    number,
};

/// Above it a number of seconds is a time of day, which some put there.
const LONGEST: u64 = 7 * 24 * 3600;

/// For how long nothing is left, from now. `None`: something is, or what is said can't be read.
pub(crate) fn nothing_for(headers: &HeaderMap) -> Option<Duration> {
    // Several limits may be told of; the longest counts.
    let draft = items(headers, RATE_LIMIT).filter_map(|item| {
        let until = seconds(item.parameter("t")?)?;
        let nothing = number(item.parameter("r")?)? == 0;
        let each = || items(headers, RATE_LIMIT_POLICY).find(|policy| policy.name == item.name)?.each();
        nothing.then(|| each().map_or(until, |each| until.min(each)))
    });
    let legacy = || {
        let nothing = number(headers.get(X_RATE_LIMIT_REMAINING)?.to_str().ok()?)? == 0;
        seconds(headers.get(X_RATE_LIMIT_RESET)?.to_str().ok()?).filter(|_| nothing)
    };
    draft.max().or_else(legacy)
}

/// `"name";r=0;t=5`
#[derive(Debug, Clone, Copy)]
struct Item<'a> {
    name: &'a str,
    parameters: &'a str,
}

fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = Item<'_>> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|item| {
        let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
        Item { name: name.trim(), parameters }
    })
}

impl<'a> Item<'a> {
    /// The last of that name.
    fn parameter(self, name: &str) -> Option<&'a str> {
        let all = self.parameters.split(';').filter_map(|p| p.trim().split_once('='));
        all.filter(|(its, _)| *its == name).map(|(_, value)| value).next_back()
    }

    /// Of a policy: how long one unit takes.
    fn each(self) -> Option<Duration> {
        let units = number(self.parameter("q")?)?;
        seconds(self.parameter("w")?)?.checked_div(u32::try_from(units).unwrap_or(u32::MAX))
    }
}

fn seconds(text: &str) -> Option<Duration> {
    number(text).filter(|s| *s <= LONGEST).map(Duration::from_secs)
}

fn number(text: &str) -> Option<u64> {
    number::parse(text.trim())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[(&'static str, &str)]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        nothing_for(&headers).map(|d| d.as_secs())
    }

    #[test]
    fn both_kinds() {
        assert_eq!(read(&[("ratelimit", "\"default\";r=0;t=5")]), Some(5));
        assert_eq!(read(&[("ratelimit", "\"default\";r=1;t=5")]), None);
        assert_eq!(
            read(&[("ratelimit", "\"a\";r=0;t=5, \"b\" ; r=0 ; t=7"), ("ratelimit", "\"c\";r=9;t=60")]),
            Some(7)
        );
        assert_eq!(read(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "3")]), Some(3));
        assert_eq!(read(&[("x-ratelimit-remaining", "2"), ("x-ratelimit-reset", "3")]), None);
        assert_eq!(read(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1732406400")]), None, "a time of day");
        // What can't be meant stands in nobody's way.
        let day = "\"b\";r=0;t=1732406400";
        assert_eq!(read(&[("ratelimit", &format!("\"a\";r=0;t=5, {day}"))]), Some(5));
        let legacy = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "3")];
        assert_eq!(read(&[("ratelimit", day), legacy[0], legacy[1]]), Some(3));
        for garbage in ["", "r=0", "t=1", "\"x\";r=-0;t=5", "\"x\";r=0;t=", "\"x\";r=0;t=99999999999999999999999"] {
            assert_eq!(read(&[("ratelimit", garbage)]), None, "{garbage}");
        }
    }

    /// As our own rate limit tells of 600 a minute, of which the last was taken just now.
    #[test]
    fn no_longer_than_one_unit_takes() {
        let says = |policies: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.append("ratelimit", "\"default\";r=0;t=60".parse().unwrap());
            for policy in policies {
                headers.append("ratelimit-policy", policy.parse().unwrap());
            }
            nothing_for(&headers).unwrap().as_millis()
        };
        assert_eq!(says(&["\"default\";q=600;w=60"]), 100);
        assert_eq!(says(&["\"other\";q=1;w=30, \"default\" ; q=10 ; w=60;qu=\"requests\""]), 6_000);
        assert_eq!(says(&["\"other\";q=1;w=30", "\"default\";q=10;w=60"]), 6_000);
        assert_eq!(says(&["\"default\";q=1;w=3600"]), 60_000);
        for no_policy in ["\"other\";q=600;w=60", "\"default\";q=0;w=60", "\"default\";q=600", "default;;=", ""] {
            assert_eq!(says(&[no_policy]), 60_000, "{no_policy}");
        }
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(line in "[ -~]{0,60}") {
            read(&[("ratelimit", "\"a\";r=0;t=5"), ("ratelimit-policy", &line)]);
            read(&[("ratelimit", &line), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &line)]);
        }
    }
}
