//! A key as bytes.

use std::{
    fmt::{self, Write},
    net::{IpAddr, Ipv6Addr},
};

/// What tells one client, tenant or upstream from another, for as long as a request is looked at: text or bytes that
/// the request has, a number, an address. Compared byte for byte.
///
/// Made by `into()`. An address is normalised as in [`Key`](crate::Key): IPv4 mapped into IPv6 is IPv4, and an IPv6
/// address counts by its /64.
#[derive(Debug, Clone)]
pub struct KeyBytes<'a>(Repr<'a>);

#[derive(Debug, Clone)]
enum Repr<'a> {
    Borrowed(&'a [u8]),
    Number([u8; 8]),
    Text(Text),
    Owned(Vec<u8>),
}

impl KeyBytes<'_> {
    pub(super) fn owned(bytes: Vec<u8>) -> Self {
        KeyBytes(Repr::Owned(bytes))
    }

    /// A number in digits, anything else as it is.
    #[cold]
    pub(crate) fn readable(self) -> Self {
        match self.0 {
            Repr::Number(bytes) => KeyBytes(Repr::Text(Text::of(u64::from_be_bytes(bytes)))),
            other => KeyBytes(other),
        }
    }

    /// The key itself.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Borrowed(bytes) => bytes,
            Repr::Number(bytes) => bytes,
            Repr::Text(text) => &text.bytes[..text.len],
            Repr::Owned(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a [u8]> for KeyBytes<'a> {
    #[inline]
    fn from(bytes: &'a [u8]) -> Self {
        KeyBytes(Repr::Borrowed(bytes))
    }
}

impl<'a> From<&'a str> for KeyBytes<'a> {
    #[inline]
    fn from(text: &'a str) -> Self {
        KeyBytes(Repr::Borrowed(text.as_bytes()))
    }
}

impl<'a> From<&'a String> for KeyBytes<'a> {
    #[inline]
    fn from(text: &'a String) -> Self {
        KeyBytes(Repr::Borrowed(text.as_bytes()))
    }
}

/// It has been allocated already; borrowed text costs less.
impl From<String> for KeyBytes<'_> {
    fn from(text: String) -> Self {
        KeyBytes(Repr::Owned(text.into_bytes()))
    }
}

/// Its eight bytes, the most significant first; in digits for what takes keys as text (a store, `quota_fn`), where it
/// is one key with the text of these digits.
impl From<u64> for KeyBytes<'_> {
    #[inline]
    fn from(number: u64) -> Self {
        KeyBytes(Repr::Number(number.to_be_bytes()))
    }
}

impl From<u32> for KeyBytes<'_> {
    #[inline]
    fn from(number: u32) -> Self {
        u64::from(number).into()
    }
}

impl From<IpAddr> for KeyBytes<'_> {
    fn from(ip: IpAddr) -> Self {
        KeyBytes(Repr::Text(Text::address(ip)))
    }
}

/// A short text on the stack.
#[derive(Debug, Clone)]
struct Text {
    bytes: [u8; MOST],
    len: usize,
}

/// Of the longest: `ffff:ffff:ffff:ffff::/64`, with room for how `Display` may write it.
const MOST: usize = 48;

impl Text {
    const EMPTY: Text = Text { bytes: [0; MOST], len: 0 };

    fn of(shown: impl fmt::Display) -> Text {
        let mut text = Text::EMPTY;
        // It has room for what there is.
        let _ = write!(text, "{shown}");
        text
    }

    fn address(ip: IpAddr) -> Text {
        let mut text = Text::EMPTY;
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                // By hand: it is on the path of every call, and `Display` takes several hundred instructions.
                for (n, octet) in ip.octets().into_iter().enumerate() {
                    if n > 0 {
                        text.push(b'.');
                    }
                    text.number(octet);
                }
            }
            IpAddr::V6(ip) => {
                let network = Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64);
                return Text::of(format_args!("{network}/64"));
            }
        }
        text
    }

    fn number(&mut self, n: u8) {
        if n >= 100 {
            self.push(b'0' + n / 100);
        }
        if n >= 10 {
            self.push(b'0' + n / 10 % 10);
        }
        self.push(b'0' + n % 10);
    }

    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
            self.len += 1;
        }
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        s.bytes().for_each(|b| self.push(b));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ip: &str) -> String {
        String::from_utf8(KeyBytes::from(ip.parse::<IpAddr>().unwrap()).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn addresses() {
        for (ip, text) in [
            ("1.2.3.4", "1.2.3.4"),
            ("255.100.10.0", "255.100.10.0"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::", "2001:db8:1:2::/64"),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff::/64"),
            ("::1", "::/64"),
        ] {
            assert_eq!(key(ip), text);
        }
    }

    #[test]
    fn what_is_the_same_has_the_same_bytes() {
        let text = String::from("acme");
        for key in [KeyBytes::from("acme"), (&text).into(), text.clone().into(), b"acme"[..].into()] {
            assert_eq!(key.as_bytes(), b"acme");
        }
        assert_eq!(KeyBytes::from(7_u32).as_bytes(), KeyBytes::from(7_u64).as_bytes());
        assert_eq!(KeyBytes::from(0x0102_0304_0506_0708_u64).as_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        for number in [0, 42, 200, u64::MAX] {
            assert_eq!(KeyBytes::from(number).readable().as_bytes(), number.to_string().as_bytes());
        }
        assert_eq!(KeyBytes::from("acme").readable().as_bytes(), b"acme");
    }
}
