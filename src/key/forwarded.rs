//! Who the client behind a proxy is: `Forwarded` (RFC 7239) and `X-Forwarded-For`.
//!
//! Whatever a client sends in them stands on the left; what one's own proxies add, on the right. So entries are counted
//! from the right, over all lines joined, and nothing to the left of the one that counts can change it. What can't be
//! read is no address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, HeaderName, HeaderValue, header};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The `n`-th entry of `X-Forwarded-For` from the right, counted from 1.
pub(crate) fn x_forwarded_for(headers: &HeaderMap, n: u8) -> Option<IpAddr> {
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev().map(HeaderValue::as_bytes);
    let entries = lines.flat_map(|line| line.rsplit(|b| *b == b','));
    // Lists may have empty entries (RFC 9110, 5.6.1); proxies do not add such.
    let mut entries = entries.map(<[u8]>::trim_ascii).filter(|e| !e.is_empty());
    address(entries.nth(usize::from(n).checked_sub(1)?)?)
}

/// The `for` of the `n`-th element of `Forwarded` from the right, counted from 1.
pub(crate) fn forwarded(headers: &HeaderMap, n: u8) -> Option<IpAddr> {
    let lines = headers.get_all(header::FORWARDED).iter().rev().map(HeaderValue::as_bytes);
    let elements = lines.flat_map(|line| FromRight(Some(line)));
    let mut elements = elements.map(<[u8]>::trim_ascii).filter(|e| !e.is_empty());
    for_of(elements.nth(usize::from(n).checked_sub(1)?)?)
}

/// The elements of one line, the last first. A comma in quotes separates nothing; which are in quotes is known from the
/// right as well as from the left where all quotes match, and where a client left one open only from the right.
struct FromRight<'a>(Option<&'a [u8]>);

impl<'a> Iterator for FromRight<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let text = self.0?;
        let mut quoted = false;
        for (at, byte) in text.iter().enumerate().rev() {
            match byte {
                b'"' if !is_escaped(text, at) => quoted = !quoted,
                b',' if !quoted => {
                    self.0 = Some(&text[..at]);
                    return Some(&text[at + 1..]);
                }
                _ => {}
            }
        }
        self.0 = None;
        Some(text)
    }
}

/// Behind an odd number of backslashes.
fn is_escaped(text: &[u8], at: usize) -> bool {
    text[..at].iter().rev().take_while(|b| **b == b'\\').count() % 2 == 1
}

/// What is before the first `;` that is not in quotes, and what is behind it. `None`: quotes that do not match, or
/// stand where none may.
fn pair(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut quoted, mut escaped, mut before) = (false, false, b';');
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' if quoted => quoted = false,
            // A quoted value begins behind its `=` and nowhere else.
            b'"' if before == b'=' => quoted = true,
            b'"' => return None,
            b';' if !quoted => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
        before = *byte;
    }
    (!quoted).then_some((text, &[]))
}

fn for_of(element: &[u8]) -> Option<IpAddr> {
    let mut rest = element;
    while !rest.is_empty() {
        let (pair, behind) = pair(rest)?;
        rest = behind;
        let equals = pair.iter().position(|b| *b == b'=')?;
        let (name, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"for") {
            let quoted = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
            return address(quoted.unwrap_or(value));
        }
    }
    None
}

/// `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]`, `[::1]:80`. Names, `unknown` and `_hidden` are no addresses.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, port) = rest.split_once(']')?;
        let ok = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return ip.parse::<Ipv6Addr>().ok().filter(|_| ok).map(IpAddr::from);
    }
    match text.split_once(':') {
        // More than one colon: an address of version 6 without brackets, which has no port.
        Some((_, rest)) if rest.contains(':') => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        Some((ip, port)) if is_port(port) => ip.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        Some(_) => None,
        None => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    }
}

/// A number, or a name that hides it (RFC 7239, 6.2).
fn is_port(text: &str) -> bool {
    let hidden = text.strip_prefix('_');
    match hidden {
        Some(name) => !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
        None => (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        headers
    }

    fn xff(n: u8, lines: &[&str]) -> Option<String> {
        x_forwarded_for(&headers("x-forwarded-for", lines), n).map(|ip| ip.to_string())
    }

    fn fwd(n: u8, lines: &[&str]) -> Option<String> {
        forwarded(&headers("forwarded", lines), n).map(|ip| ip.to_string())
    }

    #[test]
    fn counted_from_the_right_over_all_lines() {
        assert_eq!(xff(1, &["1.1.1.1, 2.2.2.2"]).as_deref(), Some("2.2.2.2"));
        assert_eq!(xff(2, &["1.1.1.1, 2.2.2.2"]).as_deref(), Some("1.1.1.1"));
        assert_eq!(xff(3, &["1.1.1.1, 2.2.2.2"]), None);
        assert_eq!(xff(2, &["1.1.1.1", "2.2.2.2 , 3.3.3.3"]).as_deref(), Some("2.2.2.2"));
        assert_eq!(xff(3, &["1.1.1.1,", ",2.2.2.2,3.3.3.3"]).as_deref(), Some("1.1.1.1"));
        assert_eq!(xff(0, &["1.1.1.1"]), None);
        assert_eq!(xff(1, &[]), None);
        assert_eq!(fwd(1, &["for=1.1.1.1, for=2.2.2.2;proto=http"]).as_deref(), Some("2.2.2.2"));
        assert_eq!(
            fwd(2, &["for=1.1.1.1", "proto=https;For=2.2.2.2, by=9.9.9.9;for=3.3.3.3"]).as_deref(),
            Some("2.2.2.2")
        );
        assert_eq!(fwd(3, &["for=1.1.1.1", "for=2.2.2.2,for=3.3.3.3"]).as_deref(), Some("1.1.1.1"));
        assert_eq!(fwd(4, &["for=1.1.1.1", "for=2.2.2.2,for=3.3.3.3"]), None);
        assert_eq!(fwd(1, &["for=1.1.1.1, by=2.2.2.2"]), None, "an element that does not say for whom");
    }

    #[test]
    fn ports_brackets_and_quotes() {
        for (entry, ip) in [
            ("1.2.3.4", Some("1.2.3.4")),
            ("1.2.3.4:80", Some("1.2.3.4")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("::ffff:1.2.3.4", Some("::ffff:1.2.3.4")),
            ("unknown", None),
            ("_hidden", None),
            ("1.2.3", None),
            ("1.2.3.4:", None),
            ("1.2.3.4:999999", None),
            ("[1.2.3.4]", None),
            ("[::1", None),
            ("[::1]x", None),
            ("example.com", None),
            ("\u{e9}", None),
        ] {
            assert_eq!(xff(1, &[entry]).as_deref(), ip, "{entry}");
            assert_eq!(fwd(1, &[&format!("for=\"{entry}\"")]).as_deref(), ip, "{entry}");
        }
        assert_eq!(fwd(1, &["for=\"1.2.3.4:_port\""]).as_deref(), Some("1.2.3.4"));
        assert_eq!(fwd(1, &["for=\"a,b;c\\\"\", for=1.2.3.4"]).as_deref(), Some("1.2.3.4"));
    }

    #[test]
    fn an_open_quote_can_not_hide_what_a_proxy_added() {
        for left in ["for=\"9.9.9.9", "for=9.9.9.9\"", "\"", "for=\"9.9.9.9\\", "for=\"a\"b\\\"", "\\\\\""] {
            let (plain, quoted) = (format!("{left}, for=1.2.3.4"), format!("{left}, for=\"[2001:db8::1]:80\";by=x"));
            assert_eq!(fwd(1, &[&plain]).as_deref(), Some("1.2.3.4"), "{left}");
            assert_eq!(fwd(1, &[&quoted]).as_deref(), Some("2001:db8::1"), "{left}");
            assert_eq!(fwd(2, &[&format!("{plain}, for=\"10.0.0.1\"")]).as_deref(), Some("1.2.3.4"), "{left}");
        }
        assert_eq!(fwd(2, &["for=\"9.9.9.9, for=1.2.3.4"]), None, "what is open says nothing itself");
        // On a line of its own it hides nothing.
        assert_eq!(fwd(1, &["for=\"9.9.9.9", "for=1.2.3.4"]).as_deref(), Some("1.2.3.4"));
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        let words = prop::sample::select(vec![
            &b"for="[..],
            b"1.2.3.4",
            b"\"",
            b"\\",
            b",",
            b";",
            b"[",
            b"]",
            b":",
            b"::1",
            b" ",
            b"unknown",
            b"\xff",
            b"=",
        ]);
        prop_oneof![
            prop::collection::vec(words, 0..20).prop_map(|w| w.concat()),
            prop::collection::vec(prop_oneof![32_u8..127, 128_u8..=255], 0..60),
        ]
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(lines in prop::collection::vec(value(), 0..4), n in 0_u8..5) {
            let mut headers = HeaderMap::new();
            for line in &lines {
                headers.append("x-forwarded-for", HeaderValue::from_bytes(line).unwrap());
                headers.append("forwarded", HeaderValue::from_bytes(line).unwrap());
            }
            x_forwarded_for(&headers, n);
            forwarded(&headers, n);
        }

        /// Whatever came before, the entry that our own proxy added is the one that is read.
        #[test]
        fn what_stands_on_the_left_changes_nothing(left in value()) {
            let line = [&left[..], b", 1.2.3.4"].concat();
            let mut headers = HeaderMap::new();
            headers.append("x-forwarded-for", HeaderValue::from_bytes(&line).unwrap());
            prop_assert_eq!(x_forwarded_for(&headers, 1), Some("1.2.3.4".parse().unwrap()));
            let line = [&left[..], b", for=1.2.3.4"].concat();
            headers.append("forwarded", HeaderValue::from_bytes(&line).unwrap());
            prop_assert_eq!(forwarded(&headers, 1), Some("1.2.3.4".parse().unwrap()));
        }
    }
}
