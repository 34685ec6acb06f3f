//! How long a server says that nothing is left of the quota: `RateLimit` (draft 10) and `X-RateLimit-*`.
//!
//! Where the units of a window come back all at once, at its end, that is until the reset. Where they come back one by
//! one, as with our own rate limit, the reset is when *all* are there again: whoever waits for that is silent for a
//! whole window. `RateLimit-Policy` tells the two apart: with nothing left, all of the second kind are a whole window
//! away.

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
        let policies = || items(headers, RATE_LIMIT_POLICY).filter(|policy| policy.name == item.name);
        nothing.then(|| policies().filter_map(|policy| policy.one_by_one(until)).max().unwrap_or(until))
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
        let all = self.parameters.split(';').filter_map(|p| p.split_once('='));
        all.filter(|(its, _)| its.trim() == name).map(|(_, value)| value.trim()).next_back()
    }

    /// Of a policy: how long one unit takes, if all are back in `until` and come one by one. `None`, too, where a unit
    /// is not a call.
    fn one_by_one(self, until: Duration) -> Option<Duration> {
        let units = u32::try_from(number(self.parameter("q")?)?).ok().filter(|units| *units > 0)?;
        let window = seconds(self.parameter("w")?).filter(|window| !window.is_zero())?;
        let are_calls = self.parameter("qu").is_none_or(|unit| unit == "\"requests\"");
        let each = window / units;
        (are_calls && until + each >= window).then(|| until.min(each))
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
        assert_eq!(read(&[("ratelimit", "\"default\";r=1;t=5;r=0")]), Some(5), "the last of a name counts");
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

    #[test]
    fn units_that_come_back_one_by_one_are_told_from_those_of_a_window() {
        let says = |reset: u64, policies: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.append("ratelimit", format!("\"default\";r=0;t={reset}").parse().unwrap());
            for policy in policies {
                headers.append("ratelimit-policy", policy.parse().unwrap());
            }
            nothing_for(&headers).unwrap().as_millis()
        };
        // As our own rate limit tells of 600 a minute, the last of which was taken just now, or a unit ago.
        let ours = "\"default\";q=600;w=60";
        assert_eq!([says(60, &[ours]), says(61, &[ours])], [100, 100]);
        assert_eq!(says(55, &["\"default\";q=10;w=60"]), 6_000);
        assert_eq!(says(1, &["\"default\";q=10;w=1"]), 100);
        // The rest of a minute.
        assert_eq!([says(59, &[ours]), says(53, &["\"default\";q=10;w=60"])], [59_000, 53_000]);
        assert_eq!(says(60, &["\"other\";q=1;w=30, \"default\" ; q=10 ; w=60;qu=\"requests\""]), 6_000);
        assert_eq!(says(60, &["\"default\";q=0;w=60", "\"default\";q=10;w=60"]), 6_000);
        assert_eq!(says(60, &["\"default\";q=1;w=3600"]), 60_000);
        for no_policy in [
            "\"other\";q=600;w=60",
            "\"default\";q=0;w=60",
            "\"default\";q=9999999999;w=60",
            "\"default\";q=600;w=0",
            "\"default\";q=600;w=60;qu=\"content-bytes\"",
            "\"default\";q=600",
            "default;;=",
            "",
        ] {
            assert_eq!(says(60, &[no_policy]), 60_000, "{no_policy}");
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
