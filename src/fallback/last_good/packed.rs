//! An answer in two pieces of memory.

use std::{fmt, mem::size_of};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Headers while the body that goes behind them is still read.
pub(super) struct Head {
    lines: Vec<Line>,
    text: Vec<u8>,
}

/// Headers and body, one behind the other.
///
/// A `HeaderMap` takes more than a hundred bytes for each header and has room for more than it holds: of small answers
/// it would be most.
pub(super) struct Packed {
    lines: Box<[Line]>,
    text: Bytes,
}

/// One header: how long its name and its value are.
struct Line {
    name: usize,
    value: usize,
    is_sensitive: bool,
}

impl Head {
    pub(super) fn pack<'a>(headers: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>) -> Head {
        let (mut lines, mut text) = (Vec::new(), Vec::new());
        for (name, value) in headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(value.as_bytes());
            lines.push(Line { name: name.as_str().len(), value: value.len(), is_sensitive: value.is_sensitive() });
        }
        Head { lines, text }
    }

    pub(super) fn with_body(self, chunks: &[Bytes]) -> Packed {
        let Head { lines, mut text } = self;
        text.reserve_exact(chunks.iter().map(Bytes::len).sum());
        chunks.iter().for_each(|chunk| text.extend_from_slice(chunk));
        // In a box: a vector would keep the room that it has left.
        Packed { lines: lines.into(), text: text.into_boxed_slice().into() }
    }
}

impl Packed {
    /// The body is not copied. The values are: whoever keeps one of them shall not keep a body with it that has long
    /// been given up.
    pub(super) fn unpack(&self) -> (HeaderMap, Bytes) {
        // One more, for the age.
        let mut headers = HeaderMap::try_with_capacity(self.lines.len() + 1).unwrap_or_default();
        let mut rest = self.text.clone();
        for line in &self.lines {
            let name = HeaderName::from_bytes(&rest.split_to(line.name));
            let value = HeaderValue::from_bytes(&rest.split_to(line.value));
            // They were headers, so they are some again.
            if let (Ok(name), Ok(mut value)) = (name, value) {
                value.set_sensitive(line.is_sensitive);
                headers.append(name, value);
            }
        }
        (headers, rest)
    }

    /// In bytes.
    pub(super) fn size(&self) -> usize {
        self.lines.len() * size_of::<Line>() + self.text.len()
    }
}

/// How much at most is packed of these headers, in bytes.
pub(super) fn packed_size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| size_of::<Line>() + name.as_str().len() + value.len()).sum()
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("size", &self.size()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_what_went_in() {
        let mut headers = HeaderMap::new();
        let mut secret = HeaderValue::from_static("secret");
        secret.set_sensitive(true);
        headers.append("link", HeaderValue::from_static("a"));
        headers.append("x-own", HeaderValue::from_bytes(b"\xff").unwrap());
        headers.append("x-empty", HeaderValue::from_static(""));
        headers.append("x-secret", secret);
        headers.append("link", HeaderValue::from_static("b"));
        let chunks = ["some ", "", "text"].map(|chunk| Bytes::from_static(chunk.as_bytes()));
        for (headers, chunks) in [(&headers, &chunks[..]), (&headers, &[]), (&HeaderMap::new(), &chunks)] {
            let packed = Head::pack(headers.iter()).with_body(chunks);
            let (unpacked, body) = packed.unpack();
            assert_eq!((&unpacked, body.to_vec()), (headers, chunks.concat()));
            assert_eq!(packed.size(), packed_size(headers) + body.len());
            assert!(unpacked.get("x-secret").is_none_or(HeaderValue::is_sensitive));
        }
    }
}
