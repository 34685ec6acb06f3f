//! Numbers as header values.

use std::str::FromStr;

use http::HeaderValue;

/// The digits of `n` and then the unit, if there is one. One allocation, of the size it needs: `HeaderValue::from(u64)`
/// makes a buffer for the longest of numbers and then another for its own.
pub(crate) fn header_value(n: u64, unit: Option<u8>) -> HeaderValue {
    // Digits and letters are always a value; if they were not, zero is the safe reading.
    HeaderValue::from_bytes(digits(&mut [0; LONGEST], n, unit)).unwrap_or(HeaderValue::from_static("0"))
}

/// The number that is all there is in a header. `None`: there is something else, or more than a number has room for.
pub(crate) fn read<N: FromStr>(value: &HeaderValue) -> Option<N> {
    parse(value.to_str().ok()?)
}

/// A number without a sign.
pub(crate) fn parse<N: FromStr>(text: &str) -> Option<N> {
    is_number(text).then(|| text.parse().ok()).flatten()
}

/// Digits only: `parse` alone would take a sign too.
pub(crate) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// A u64 has at most 20 digits.
pub(crate) const LONGEST: usize = 21;

/// The digits of `n` and then the unit, if there is one.
pub(crate) fn digits(buffer: &mut [u8; LONGEST], n: u64, unit: Option<u8>) -> &[u8] {
    // Filled from its end.
    let mut start = buffer.len();
    let mut put = |byte| {
        start -= 1;
        buffer[start] = byte;
    };
    if let Some(unit) = unit {
        put(unit);
    }
    let mut rest = n;
    loop {
        put(b'0' + (rest % 10) as u8);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    &buffer[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length() {
        for n in [0, 9, 10, 12_345, u64::MAX] {
            assert_eq!(header_value(n, None), n.to_string());
            assert_eq!(header_value(n, Some(b'm')), format!("{n}m"));
            assert_eq!(read(&header_value(n, None)), Some(n));
        }
        for text in ["", "-1", "+1", " 1", "1.0", "x", "18446744073709551616"] {
            assert_eq!(parse::<u64>(text), None, "{text}");
        }
    }
}
