//! How long a server says that nothing is left of the quota: `RateLimit` (draft 10) and `X-RateLimit-*`.

use std::time::Duration;

use http::HeaderMap;

use crate::protocol::{
    names::{RATE_LIMIT, X_RATE_LIMIT_REMAINING, X_RATE_LIMIT_RESET},
    number,
};

/// Above it a number of seconds is a time of day, which some put there.
const LONGEST: u64 = 7 * 24 * 3600;

/// For how long nothing is left, from now. `None`: something is, or what is said can't be read.
pub(crate) fn nothing_for(headers: &HeaderMap) -> Option<Duration> {
    // Several limits may be told of; the longest counts.
    let draft = headers.get_all(RATE_LIMIT).iter().filter_map(|v| v.to_str().ok());
    let draft = draft.flat_map(|line| line.split(',')).filter_map(of_item).max();
    let legacy = || {
        let nothing = number(headers.get(X_RATE_LIMIT_REMAINING)?.to_str().ok()?)? == 0;
        seconds(headers.get(X_RATE_LIMIT_RESET)?.to_str().ok()?).filter(|_| nothing)
    };
    draft.or_else(legacy).map(Duration::from_secs)
}

/// `"name";r=0;t=5`
fn of_item(item: &str) -> Option<u64> {
    let (mut left, mut until) = (None, None);
    for (name, value) in item.split(';').filter_map(|p| p.trim().split_once('=')) {
        match name {
            "r" => left = number(value),
            "t" => until = seconds(value),
            _ => {}
        }
    }
    until.filter(|_| left == Some(0))
}

fn seconds(text: &str) -> Option<u64> {
    number(text).filter(|s| *s <= LONGEST)
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

    proptest! {
        #[test]
        fn garbage_does_not_panic(line in "[ -~]{0,60}") {
            read(&[("ratelimit", &line), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &line)]);
        }
    }
}
