//! The answers that are kept.

use std::{
    fmt,
    hash::RandomState,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, response::Parts};
use quick_cache::{
    OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle, EntryAction, EntryResult},
};

use super::super::substitute::DEGRADED;
use super::Ask;
use crate::{protocol::number, time::Instant};

/// What an entry takes beside what is in it.
const PER_ENTRY: usize = 128;

pub(super) struct Store {
    /// `None`: nothing is kept.
    cache: Option<Answers>,
    most: usize,
    max_age: Duration,
    /// Bytes that the drafts take.
    drafted: Arc<AtomicUsize>,
    /// Drafts so far: by their numbers it is known which is the younger.
    drafts: AtomicU64,
}

type Answers = Cache<String, Entry, Weigh, RandomState>;

/// What is behind a key.
#[derive(Clone)]
enum Entry {
    Answer(Arc<Kept>),
    /// There are several answers to this URI: these headers choose among them, as was said by the draft of this number.
    Vary(u64, Arc<[HeaderName]>),
}

struct Kept {
    number: u64,
    at: Instant,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// A response that is still being read.
///
/// All in it is a copy of its own: a header or a chunk may be the small rest of a large buffer, which would be kept with it.
pub(super) struct Draft {
    number: u64,
    key: String,
    is_head: bool,
    /// Where other request headers have other answers: which ones, and the key of this one.
    variant: Option<(Vec<HeaderName>, String)>,
    at: Instant,
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    room: Room,
}

/// What one draft takes of the room that all of them have together: there may be a stream without an end for each caller.
struct Room {
    drafted: Arc<AtomicUsize>,
    most: usize,
    taken: usize,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<String, Entry> for Weigh {
    fn weight(&self, key: &String, entry: &Entry) -> u64 {
        let inside = match entry {
            Entry::Answer(kept) => size_of(&kept.headers) + kept.body.len(),
            Entry::Vary(_, names) => names.iter().map(|n| n.as_str().len()).sum(),
        };
        (PER_ENTRY + key.len() + inside) as u64
    }
}

fn size_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

impl Store {
    pub(super) fn new(max_bytes: usize, max_age: Duration) -> Self {
        // One shard, for a share of the bytes would bound an answer by its share.
        let options = OptionsBuilder::new()
            .shards(1)
            .weight_capacity(max_bytes as u64)
            .estimated_items_capacity((max_bytes / 4096).clamp(16, 100_000))
            .build();
        let keeps = max_bytes > 0 && !max_age.is_zero();
        let cache = options
            .ok()
            .filter(|_| keeps)
            .map(|options| Cache::with_options(options, Weigh, RandomState::new(), DefaultLifecycle::default()));
        Store { cache, most: max_bytes, max_age, drafted: Arc::default(), drafts: AtomicU64::new(0) }
    }

    /// A draft of this response; `None` if it is not to be kept, or nothing can be now.
    pub(super) fn draft(&self, ask: &Ask, parts: &Parts, now: Instant) -> Option<Draft> {
        self.cache.as_ref()?;
        let room = Room { drafted: Arc::clone(&self.drafted), most: self.most, taken: 0 };
        Draft::new(ask, parts, room, now, self.drafts.fetch_add(1, Relaxed))
    }

    pub(super) fn kept(&self) -> (usize, u64) {
        self.cache.as_ref().map_or((0, 0), |cache| (cache.len(), cache.weight()))
    }

    pub(super) fn keep(&self, draft: Draft) {
        let Some(cache) = &self.cache else { return };
        let Draft { number, key, is_head, variant, at, status, headers, body, .. } = draft;
        // A body that ended before its announced length was cut off, even if nobody said so.
        let announced = headers.get(header::CONTENT_LENGTH).map(|v| v.to_str().ok().and_then(|v| v.parse().ok()));
        if !is_head && announced.is_some_and(|announced| announced != Some(body.len())) {
            return;
        }
        // It has grown by doubling; what is kept is no larger than it is.
        let body = body.into_boxed_slice().into();
        let kept = Entry::Answer(Arc::new(Kept { number, at, status, headers, body }));
        match variant {
            None => _ = put(cache, &key, kept),
            Some((vary, variant)) => {
                if put(cache, &key, Entry::Vary(number, vary.into())) {
                    put(cache, &variant, kept);
                }
            }
        }
    }

    pub(super) fn find(&self, ask: &Ask, now: Instant) -> Option<Response<Bytes>> {
        let cache = self.cache.as_ref()?;
        let (key, kept) = match cache.get(&ask.key)? {
            Entry::Answer(kept) => (None, kept),
            Entry::Vary(_, names) => {
                let variant = ask.variant(&names)?;
                match cache.get(&variant)? {
                    Entry::Answer(kept) => (Some(variant), kept),
                    Entry::Vary(..) => return None,
                }
            }
        };
        let age = now.saturating_duration_since(kept.at);
        if age > self.max_age {
            // Only if it is still the one that was read.
            let is_this = |entry: &Entry| matches!(entry, Entry::Answer(other) if Arc::ptr_eq(other, &kept));
            cache.remove_if(key.as_ref().unwrap_or(&ask.key), is_this);
            return None;
        }
        let mut response = Response::new(kept.body.clone());
        *response.status_mut() = kept.status;
        *response.headers_mut() = kept.headers.clone();
        // What it had spent in caches before it came here is part of its age.
        let before = kept.headers.get(header::AGE).and_then(number::read::<u32>).unwrap_or_default();
        let seconds = age.as_secs().saturating_add(u64::from(before));
        response.headers_mut().insert(header::AGE, number::header_value(seconds, None));
        Some(response)
    }
}

/// Puts it there, unless there is a younger one: a slow reader comes late with what is older. True: what is there says what it
/// says.
fn put(cache: &Answers, key: &str, entry: Entry) -> bool {
    let or_younger = |_: &String, there: &mut Entry| match there.number() > entry.number() {
        true => EntryAction::Retain(there.chooses_as(&entry)),
        false => EntryAction::ReplaceWithGuard,
    };
    match cache.entry(key, None, or_younger) {
        EntryResult::Retained(says_the_same) => says_the_same,
        EntryResult::Vacant(place) | EntryResult::Replaced(place, _) => place.insert(entry).is_ok(),
        EntryResult::Removed(..) | EntryResult::Timeout => false,
    }
}

impl Entry {
    fn number(&self) -> u64 {
        match self {
            Entry::Answer(kept) => kept.number,
            Entry::Vary(number, _) => *number,
        }
    }

    /// Do the same headers choose?
    fn chooses_as(&self, other: &Entry) -> bool {
        matches!((self, other), (Entry::Vary(_, a), Entry::Vary(_, b)) if a == b)
    }
}

impl Draft {
    fn new(ask: &Ask, parts: &Parts, mut room: Room, now: Instant, number: u64) -> Option<Draft> {
        let headers = &parts.headers;
        let is_whole = parts.status.is_success() && parts.status != StatusCode::PARTIAL_CONTENT;
        // What can't be read may forbid it.
        let unreadable = headers.get_all(header::CACHE_CONTROL).iter().any(|line| line.to_str().is_err());
        let forbidden = unreadable || ["no-store", "no-cache", "private"].iter().any(|d| has_directive(headers, d));
        let is_a_users =
            headers.contains_key(header::SET_COOKIE) || ask.has_cookie && !has_directive(headers, "public");
        // The answer of a fallback in another process is not the backend's.
        let is_degraded = headers.contains_key(DEGRADED);
        if !is_whole || forbidden || is_a_users || is_degraded {
            return None;
        }
        let vary = vary(headers)?;
        let variant = ask.variant(&vary).map(|key| (vary, key));
        let keys = ask.key.len() + variant.as_ref().map_or(0, |(_, key)| key.len());
        room.take(PER_ENTRY + keys + size_of(headers)).then(|| Draft {
            number,
            key: ask.key.clone(),
            is_head: ask.is_head(),
            variant,
            at: now,
            status: parts.status,
            headers: end_to_end(headers),
            body: Vec::new(),
            room,
        })
    }

    /// `false`: it has become too large, or all drafts together have.
    pub(super) fn add(&mut self, data: &Bytes) -> bool {
        let has_room = self.room.take(data.len());
        if has_room {
            self.body.extend_from_slice(data);
        }
        has_room
    }
}

impl Room {
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

/// Copies of what is not of one connection (RFC 9110, 7.6.1).
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    const HOP: [HeaderName; 6] = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
    ];
    let named: Vec<_> = tokens(headers, header::CONNECTION).filter_map(|t| HeaderName::try_from(t).ok()).collect();
    let kept = |name: &HeaderName| !HOP.contains(name) && !named.contains(name) && name != "keep-alive";
    headers.iter().filter(|(name, _)| kept(name)).map(|(name, value)| (name.clone(), copy(value))).collect()
}

fn copy(value: &HeaderValue) -> HeaderValue {
    let Ok(mut own) = HeaderValue::from_bytes(value.as_bytes()) else { return value.clone() };
    own.set_sensitive(value.is_sensitive());
    own
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (entries, bytes) = self.kept();
        f.debug_struct("Store").field("entries", &entries).field("bytes", &bytes).finish_non_exhaustive()
    }
}
