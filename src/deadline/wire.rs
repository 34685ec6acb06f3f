//! `grpc-timeout` and the millisecond header, read and written.
//!
//! Format: [PROTOCOL-HTTP2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md), `Timeout`: at most eight
//! digits and a unit.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header::Entry};

use crate::{
    deadline::Deadline,
    protocol::number,
    time::{Instant, nanos},
};

pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What stood in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Absent,
    /// Not of the format: ignored, and counted by whoever read it.
    Malformed,
    Is(Duration),
}

impl Read {
    fn of(parsed: Option<Duration>) -> Self {
        parsed.map_or(Read::Malformed, Read::Is)
    }

    pub(crate) fn duration(self) -> Option<Duration> {
        match self {
            Read::Is(d) => Some(d),
            _ => None,
        }
    }

    /// Would this let the call go on for longer?
    fn is_above(self, most: Duration) -> bool {
        self.duration().is_none_or(|d| d > most)
    }
}

pub(crate) fn read_grpc_timeout(headers: &HeaderMap) -> Read {
    read(headers, &GRPC_TIMEOUT, parse)
}

pub(crate) fn read_millis(headers: &HeaderMap, name: &HeaderName) -> Read {
    // Nineteen digits fit a u64.
    read(headers, name, |v| digits(v, 19).map(Duration::from_millis))
}

fn read(headers: &HeaderMap, name: &HeaderName, parse: impl Fn(&[u8]) -> Option<Duration>) -> Read {
    headers.get(name).map_or(Read::Absent, |v| Read::of(parse(v.as_bytes())))
}

fn parse(v: &[u8]) -> Option<Duration> {
    let (unit, value) = v.split_last()?;
    let n = digits(value, 8)?;
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

fn digits(v: &[u8], most: usize) -> Option<u64> {
    if v.is_empty() || v.len() > most || !v.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(v.iter().fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

/// The deadline that a duration in a header means; beyond the clock's range it means none.
pub(crate) fn deadline(read: Read, now: Instant) -> Option<Deadline> {
    read.duration().and_then(|d| now.checked_add(d)).map(Deadline::at)
}

/// Sets or lowers `grpc-timeout` to `most`, and says what stood there. A shorter one stays; a malformed one counts as
/// none.
pub(crate) fn lower_grpc_timeout(headers: &mut HeaderMap, most: Option<Duration>) -> Read {
    // An entry is found once and not twice. But it makes room for itself before it is known whether there will be
    // anything to write, so a map without room is read first.
    let room = headers.keys_len() < headers.capacity();
    let Some(most) = most.filter(|_| room) else {
        let present = read_grpc_timeout(headers);
        if let Some(most) = most.filter(|most| present.is_above(*most)) {
            headers.insert(GRPC_TIMEOUT, grpc_timeout(most));
        }
        return present;
    };
    match headers.entry(GRPC_TIMEOUT) {
        Entry::Vacant(entry) => {
            entry.insert(grpc_timeout(most));
            Read::Absent
        }
        Entry::Occupied(mut entry) => {
            let present = Read::of(parse(entry.get().as_bytes()));
            if present.is_above(most) {
                entry.insert(grpc_timeout(most));
            }
            present
        }
    }
}

/// Rounds down, so that the peer never believes it has longer than we will wait.
pub(crate) fn grpc_timeout(d: Duration) -> HeaderValue {
    const MOST: u64 = 99_999_999;
    const UNITS: [(u64, u8); 5] =
        [(1, b'n'), (1_000, b'u'), (1_000_000, b'm'), (1_000_000_000, b'S'), (60_000_000_000, b'M')];
    // What does not fit is above 584 years, and far above the minutes.
    let nanos = nanos(d);
    match UNITS.iter().map(|(size, unit)| (nanos / size, *unit)).find(|(n, _)| *n <= MOST) {
        Some((n, unit)) => number::header_value(n, Some(unit)),
        None => number::header_value((d.as_secs() / 3600).min(MOST), Some(b'H')),
    }
}

/// Whole milliseconds, rounded down.
pub(crate) fn millis(d: Duration) -> HeaderValue {
    number::header_value(u64::try_from(d.as_millis()).unwrap_or(u64::MAX), None)
}

const LEAST_MARGIN: Duration = Duration::from_millis(1);
pub(crate) const MOST_MARGIN: Duration = Duration::from_millis(5);

/// How much before a deadline on the wire our own timer runs out, so that it wins against the transport's.
#[inline]
pub(crate) fn margin(remaining: Duration) -> Duration {
    (remaining / 100).clamp(LEAST_MARGIN, MOST_MARGIN)
}

/// What was left in all, if a timer ran out [a little early](margin) after so long.
pub(crate) fn with_margin(elapsed: Duration) -> Duration {
    // A hundredth of the whole is a ninety-ninth of the rest.
    elapsed + (elapsed / 99).clamp(LEAST_MARGIN, MOST_MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_specification_says() {
        let second = Duration::from_secs(1);
        for (v, d) in [
            ("1H", 3600 * second),
            ("2M", 120 * second),
            ("99999999S", 99_999_999 * second),
            ("0m", Duration::ZERO),
            ("1500m", second * 3 / 2),
            ("7u", Duration::from_micros(7)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(parse(v.as_bytes()), Some(d), "{v}");
        }
        for v in ["", "m", "5", "123456789m", "+1S", "-1S", "1.5S", " 1S", "1 S", "1s", "1d", "\u{661}m"] {
            assert_eq!(parse(v.as_bytes()), None, "{v}");
        }
    }

    #[test]
    fn writes_the_finest_unit_that_fits() {
        assert_eq!(grpc_timeout(Duration::ZERO), "0n");
        assert_eq!(grpc_timeout(Duration::from_nanos(99_999_999)), "99999999n");
        assert_eq!(grpc_timeout(Duration::from_nanos(100_000_999)), "100000u");
        assert_eq!(grpc_timeout(Duration::from_millis(500)), "500000u");
        assert_eq!(grpc_timeout(Duration::MAX), "99999999H");
        assert_eq!(grpc_timeout(Duration::from_nanos(u64::MAX)), "5124095H");
        assert_eq!(grpc_timeout(Duration::from_secs(99_999_999 * 60 + 59)), "99999999M");
        assert_eq!(grpc_timeout(Duration::from_secs(100_000_000 * 60)), "1666666H");
        assert_eq!(millis(Duration::from_micros(1_999)), "1");
        assert_eq!(millis(Duration::from_millis(u64::MAX)), "18446744073709551615");
    }

    #[test]
    fn sets_and_lowers_with_room_and_without() {
        let second = Some(Duration::from_secs(1));
        for (present, most, after) in [
            (None, None, None),
            (None, second, Some("1000000u")),
            (Some("2S"), None, Some("2S")),
            (Some("2S"), second, Some("1000000u")),
            (Some("500m"), second, Some("500m")),
            (Some("soon"), second, Some("1000000u")),
        ] {
            for room in [true, false] {
                let mut headers = HeaderMap::with_capacity(8);
                if let Some(v) = present {
                    headers.insert(GRPC_TIMEOUT, HeaderValue::from_static(v));
                }
                let mut others = (0..).map(|n| HeaderName::try_from(format!("x-{n}")).unwrap());
                while !room && headers.len() < headers.capacity() {
                    headers.insert(others.next().unwrap(), HeaderValue::from_static("other"));
                }
                let (before, capacity) = (read_grpc_timeout(&headers), headers.capacity());
                assert_eq!(lower_grpc_timeout(&mut headers, most), before);
                assert_eq!(headers.get(GRPC_TIMEOUT).map(HeaderValue::as_bytes), after.map(str::as_bytes));
                // Room is made only for what is written.
                assert_eq!(headers.capacity() > capacity, !room && after != present);
            }
        }
    }

    #[test]
    fn the_margin_has_both_ends() {
        let ms = Duration::from_millis;
        assert_eq!(margin(ms(0)), ms(1));
        assert_eq!(margin(ms(100)), ms(1));
        assert_eq!(margin(ms(300)), ms(3));
        assert_eq!(margin(ms(60_000)), ms(5));
        for whole in [1, 50, 99, 100, 101, 250, 499, 500, 501, 1_000, 60_000].map(ms) {
            assert_eq!(with_margin(whole - margin(whole)), whole);
        }
    }

    proptest! {
        #[test]
        fn never_longer_and_close(nanos in any::<u64>()) {
            let d = Duration::from_nanos(nanos);
            let back = parse(grpc_timeout(d).as_bytes()).unwrap();
            prop_assert!(back <= d);
            prop_assert!((d - back) * 10_000 <= d, "{d:?} became {back:?}");
        }

        #[test]
        fn garbage_is_no_panic(v in proptest::collection::vec(any::<u8>(), 0..24)) {
            let _ = parse(&v);
            let _ = digits(&v, 19);
        }
    }
}
