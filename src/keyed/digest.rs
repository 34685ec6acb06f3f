//! What is kept of a key that is too long to be kept whole.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Up to here keys are kept whole. Who sends requests decides how long theirs are, and a header may have hundreds of
/// kilobytes.
pub(super) const WHOLE: usize = 256;

/// 128 bits of two hashes, and the length.
pub(super) type Digest = [u8; 24];

/// SipHash, with keys of the operating system's that nobody outside knows: so nobody finds two keys that have one
/// digest, nor a short one that is the digest of another.
#[derive(Debug)]
pub(super) struct Digests([RandomState; 2]);

impl Digests {
    pub(super) fn new() -> Self {
        Digests([RandomState::new(), RandomState::new()])
    }

    pub(super) fn of(&self, key: &[u8]) -> Digest {
        let mut digest = Digest::default();
        let hashed = self.0.iter().map(|state| {
            let mut hasher = state.build_hasher();
            hasher.write(key);
            hasher.finish()
        });
        for (place, word) in digest.chunks_exact_mut(8).zip(hashed.chain([key.len() as u64])) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        digest
    }
}
