//! The answers that are kept.

use std::{
    fmt,
    hash::RandomState,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Response, StatusCode, header, response::Parts};
use quick_cache::{
    OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use super::{
    Ask,
    draft::{Draft, Ends, Room},
    packed::Packed,
};
use crate::{protocol::number, time::Instant};

/// What an entry takes beside what is in it: two slots of the cache's slab, which grows by doubling (96 bytes), two of
/// its table (12), the [`Kept`] with its counts (104) and the count of shared bytes (24), and what an allocator adds to
/// five pieces of memory.
pub(super) const PER_ENTRY: usize = 320;

/// What the name of a header takes beside its text.
const PER_NAME: usize = 64;

pub(super) struct Store {
    /// `None`: nothing is kept.
    cache: Option<Answers>,
    most: usize,
    max_age: Duration,
    /// Bytes that the drafts take.
    drafted: Arc<AtomicUsize>,
    /// Drafts so far: by their numbers it is known which is the younger.
    drafts: AtomicU64,
    /// Held from the look at what is there to what is put there.
    keeping: Mutex<()>,
}

type Answers = Cache<Box<str>, Entry, Weigh, RandomState>;

/// What is behind a key. Small, for the cache has room for more of them than there are.
#[derive(Clone)]
enum Entry {
    Answer(Arc<Kept>),
    /// There are several answers to this URI.
    Vary(Arc<Vary>),
}

/// These headers choose among the answers, as was said by the draft of this number.
struct Vary {
    number: u64,
    names: Box<[HeaderName]>,
}

struct Kept {
    number: u64,
    at: Instant,
    status: StatusCode,
    /// It answered a HEAD request and did not say how long it would be.
    is_untold: bool,
    answer: Packed,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Box<str>, Entry> for Weigh {
    fn weight(&self, key: &Box<str>, entry: &Entry) -> u64 {
        let inside = match entry {
            Entry::Answer(kept) => kept.answer.size(),
            Entry::Vary(vary) => size_of_names(&vary.names),
        };
        (PER_ENTRY + key.len() + inside) as u64
    }
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
        Store {
            cache,
            most: max_bytes,
            max_age,
            drafted: Arc::default(),
            drafts: AtomicU64::new(0),
            keeping: Mutex::new(()),
        }
    }

    /// A draft of this response, whose body is so long; `None` if it is not to be kept, or nothing can be now.
    pub(super) fn draft(&self, ask: &Ask, parts: &Parts, length: Option<u64>, now: Instant) -> Option<Draft> {
        self.cache.as_ref()?;
        let room = Room::new(Arc::clone(&self.drafted), self.most);
        Draft::new(ask, parts, length, room, now, self.drafts.fetch_add(1, Relaxed))
    }

    pub(super) fn kept(&self) -> (usize, u64) {
        self.cache.as_ref().map_or((0, 0), |cache| (cache.len(), cache.weight()))
    }

    pub(super) fn keep(&self, draft: Draft) {
        let Some(cache) = &self.cache else { return };
        let Draft { number, key, ends, variant, at, status, head, chunks, .. } = draft;
        // A body that ended before its announced length was cut off, even if nobody said so.
        let length: usize = chunks.iter().map(Bytes::len).sum();
        if matches!(ends, Ends::After(announced) if announced != length as u64) {
            return;
        }
        let (is_untold, answer) = (matches!(ends, Ends::AtHead(None)), head.with_body(&chunks));
        let kept = Entry::Answer(Arc::new(Kept { number, at, status, is_untold, answer }));
        let _one = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        match variant {
            None => _ = put(cache, key, kept),
            Some((vary, variant)) => {
                if put(cache, key, Entry::Vary(Arc::new(Vary { number, names: vary.into() }))) {
                    put(cache, variant, kept);
                }
            }
        }
    }

    /// The answer, if there is one. Without a body where nobody has said how long it would be.
    pub(super) fn find(&self, ask: &Ask, now: Instant) -> Option<Response<Option<Bytes>>> {
        let cache = self.cache.as_ref()?;
        let (key, kept) = match cache.get(&*ask.key)? {
            Entry::Answer(kept) => (None, kept),
            Entry::Vary(vary) => {
                let variant = ask.variant(&vary.names)?;
                match cache.get(&*variant)? {
                    Entry::Answer(kept) => (Some(variant), kept),
                    Entry::Vary(..) => return None,
                }
            }
        };
        let age = now.saturating_duration_since(kept.at);
        if age > self.max_age {
            // Only if it is still the one that was read.
            let is_this = |entry: &Entry| matches!(entry, Entry::Answer(other) if Arc::ptr_eq(other, &kept));
            cache.remove_if(key.as_deref().unwrap_or(&ask.key), is_this);
            return None;
        }
        let (mut headers, body) = kept.answer.unpack();
        // What it had spent in caches before it came here is part of its age.
        let before = headers.get(header::AGE).and_then(number::read::<u32>).unwrap_or_default();
        let seconds = age.as_secs().saturating_add(u64::from(before));
        headers.insert(header::AGE, number::header_value(seconds, None));
        let mut response = Response::new((!kept.is_untold).then_some(body));
        *response.status_mut() = kept.status;
        *response.headers_mut() = headers;
        Some(response)
    }
}

/// Puts it there, unless there is a younger one: a slow reader comes late with what is older. True if what is there now
/// has the same headers choose.
fn put(cache: &Answers, key: String, entry: Entry) -> bool {
    match cache.peek(&*key) {
        Some(there) if there.number() > entry.number() => there.chooses_as(&entry),
        _ => {
            // In a box: a string may have more room than it needs.
            cache.insert(key.into(), entry);
            true
        }
    }
}

impl Entry {
    fn number(&self) -> u64 {
        match self {
            Entry::Answer(kept) => kept.number,
            Entry::Vary(vary) => vary.number,
        }
    }

    /// Do the same headers choose?
    fn chooses_as(&self, other: &Entry) -> bool {
        matches!((self, other), (Entry::Vary(a), Entry::Vary(b)) if a.names == b.names)
    }
}

/// What these names take, in bytes.
pub(super) fn size_of_names(names: &[HeaderName]) -> usize {
    names.iter().map(|name| PER_NAME + name.as_str().len()).sum()
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (entries, bytes) = self.kept();
        f.debug_struct("Store").field("entries", &entries).field("bytes", &bytes).finish_non_exhaustive()
    }
}
