//! A response while it is read, before it is known whether it is whole.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response::Parts};

use super::super::substitute::DEGRADED;
use super::{
    Ask,
    packed::{Head, packed_size},
    store::{PER_ENTRY, size_of_names},
};
use crate::{protocol::number, time::Instant};

/// What a chunk takes beside its bytes: a million of small ones is not free.
const PER_CHUNK: usize = 64;

/// A response that is still being read.
///
/// All in it is a copy of its own: a header or a chunk may be the small rest of a large buffer, which would be kept
/// with it.
pub(super) struct Draft {
    pub(super) number: u64,
    pub(super) key: String,
    pub(super) ends: Ends,
    /// Where other request headers have other answers: which ones, and the key of this one.
    pub(super) variant: Option<(Vec<HeaderName>, String)>,
    pub(super) at: Instant,
    pub(super) status: StatusCode,
    pub(super) head: Head,
    pub(super) chunks: Vec<Bytes>,
    room: Room,
}

/// Where an answer ends.
#[derive(Clone, Copy)]
pub(super) enum Ends {
    /// Where its body does.
    WithBody,
    /// After so many bytes, which is what `Content-Length` says.
    After(u64),
    /// At its head, since it answers a HEAD request. Its body would be so long, if anybody knows.
    AtHead(Option<u64>),
}

/// What one draft takes of the room that all of them have together: there may be a stream without an end for each
/// caller.
pub(super) struct Room {
    drafted: Arc<AtomicUsize>,
    most: usize,
    taken: usize,
}

impl Draft {
    /// `None`: it is not to be kept, or there is no room.
    pub(super) fn new(
        ask: &Ask,
        parts: &Parts,
        length: Option<u64>,
        mut room: Room,
        now: Instant,
        number: u64,
    ) -> Option<Draft> {
        let headers = &parts.headers;
        if !may_be_kept(ask, parts) {
            return None;
        }
        let ends = Ends::of(ask, headers, length)?;
        let vary = vary(headers)?;
        let variant = ask.variant(&vary).map(|key| (vary, key));
        let keys = ask.key.len() + variant.as_ref().map_or(0, |(vary, key)| size_of_names(vary) + key.len());
        let unsaid = ends.unsaid(headers);
        let unsaid = unsaid.iter().map(|(name, value)| (name, value));
        room.take(PER_ENTRY + keys + packed_size(headers)).then(|| Draft {
            number,
            key: ask.key.clone(),
            ends,
            variant,
            at: now,
            status: parts.status,
            head: Head::pack(lasting(headers).chain(unsaid)),
            chunks: Vec::new(),
            room,
        })
    }

    /// `false`: it has become too large, or all drafts together have.
    pub(super) fn add(&mut self, data: &Bytes) -> bool {
        let has_room = self.room.take(data.len() + PER_CHUNK);
        if has_room {
            self.chunks.push(Bytes::copy_from_slice(data));
        }
        has_room
    }
}

impl Ends {
    /// `length` is that of the body. `None`: what is announced is no number, so something is wrong.
    fn of(ask: &Ask, headers: &HeaderMap, length: Option<u64>) -> Option<Ends> {
        Some(match (headers.get(header::CONTENT_LENGTH), ask.is_head()) {
            (Some(announced), true) => Ends::AtHead(Some(number::read(announced)?)),
            (Some(announced), false) => Ends::After(number::read(announced)?),
            (None, true) => Ends::AtHead(length),
            (None, false) => Ends::WithBody,
        })
    }

    /// What a server reads off the body and writes into the head, and could not of an answer that was kept without one.
    fn unsaid(self, headers: &HeaderMap) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Ends::AtHead(Some(length)) if length > 0 && !headers.contains_key(header::CONTENT_LENGTH) => {
                Some((header::CONTENT_LENGTH, number::header_value(length, None)))
            }
            _ => None,
        }
    }
}

impl Room {
    pub(super) fn new(drafted: Arc<AtomicUsize>, most: usize) -> Self {
        Room { drafted, most, taken: 0 }
    }

    /// `false`: there is not so much left.
    fn take(&mut self, bytes: usize) -> bool {
        self.taken += bytes;
        self.drafted.fetch_add(bytes, Relaxed) + bytes <= self.most
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.drafted.fetch_sub(self.taken, Relaxed);
    }
}

/// By what the two say, and not one user's own.
fn may_be_kept(ask: &Ask, parts: &Parts) -> bool {
    let headers = &parts.headers;
    let is_whole = parts.status.is_success() && parts.status != StatusCode::PARTIAL_CONTENT;
    let forbidden =
        is_forbidden(&ask.headers, &["no-store"]) || is_forbidden(headers, &["no-store", "no-cache", "private"]);
    let is_a_users = headers.contains_key(header::SET_COOKIE) || ask.has_cookie && !has_directive(headers, "public");
    // The answer of a fallback in another process is not the backend's.
    let is_degraded = headers.contains_key(DEGRADED);
    is_whole && !forbidden && !is_a_users && !is_degraded
}

/// Is one of these directives in a `Cache-Control` line? What can't be read may be one.
fn is_forbidden(headers: &HeaderMap, directives: &[&str]) -> bool {
    let unreadable = headers.get_all(header::CACHE_CONTROL).iter().any(|line| line.to_str().is_err());
    unreadable || directives.iter().any(|directive| has_directive(headers, directive))
}

/// Is this directive, whatever its argument, in a `Cache-Control` line?
fn has_directive(headers: &HeaderMap, directive: &str) -> bool {
    tokens(headers, header::CACHE_CONTROL)
        .any(|token| token.split('=').next().is_some_and(|name| name.trim_end().eq_ignore_ascii_case(directive)))
}

/// The headers that choose among the answers to one URI, sorted; `None` where nobody knows (`*`, or garbage).
fn vary(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    if headers.get_all(header::VARY).iter().any(|line| line.to_str().is_err()) {
        return None;
    }
    let mut names: Vec<HeaderName> = tokens(headers, header::VARY)
        .map(|token| HeaderName::try_from(token).ok().filter(|_| token != "*"))
        .collect::<Option<_>>()?;
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    Some(names)
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// What is neither of one connection (RFC 9110, 7.6.1; RFC 9111, 3.1) nor of one moment.
fn lasting(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    const HOP: [HeaderName; 6] = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
    ];
    // The last three say how many calls are left, and when: of callers that are long gone.
    const OTHER: [&str; 6] =
        ["keep-alive", "proxy-connection", "proxy-authentication-info", "retry-after", "ratelimit", "ratelimit-policy"];
    let named: Vec<_> = tokens(headers, header::CONNECTION).filter_map(|t| HeaderName::try_from(t).ok()).collect();
    let passes = move |name: &HeaderName| {
        let text = name.as_str();
        HOP.contains(name) || OTHER.contains(&text) || text.starts_with("x-ratelimit-") || named.contains(name)
    };
    headers.iter().filter(move |(name, _)| !passes(name))
}
