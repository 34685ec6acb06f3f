//! Where a key is kept.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::OnceLock,
};

use foldhash::{SharedSeed, quality::SeedableRandomState};

/// Draws a place for each key.
///
/// The hasher takes a tenth of what std's does. It is hard to guess and no more; what a guess is worth is bounded where
/// the places are used.
pub(super) struct Places(SeedableRandomState);

impl Places {
    /// Others than all other ones. The hasher's own seeds are addresses and the time; std's come from the operating system.
    pub(super) fn new() -> Self {
        static SHARED: OnceLock<SharedSeed> = OnceLock::new();
        let random = || RandomState::new().build_hasher().finish();
        Places(SeedableRandomState::with_seed(random(), SHARED.get_or_init(|| SharedSeed::from_u64(random()))))
    }

    #[inline(always)]
    pub(super) fn of(&self, key: &[u8]) -> u64 {
        // By hand: `hash_one` would hash the length too, and here nothing follows the key.
        let mut hasher = self.0.build_hasher();
        hasher.write(key);
        hasher.finish()
    }
}

/// By words where keys are short, as most are: that takes less than the call which compares memory.
#[inline(always)]
pub(super) fn is_same(a: &[u8], b: &[u8]) -> bool {
    match (a.first_chunk::<8>(), b.first_chunk::<8>(), a.last_chunk::<8>(), b.last_chunk::<8>()) {
        (Some(a0), Some(b0), Some(a1), Some(b1)) if a.len() == b.len() && a.len() <= 16 => {
            let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
            word(a0) == word(b0) && word(a1) == word(b1)
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_same_is_the_same(a in prop::collection::vec(0..3u8, 0..20), b in prop::collection::vec(0..3u8, 0..20), at in any::<usize>()) {
            prop_assert_eq!(is_same(&a, &b), a == b);
            prop_assert!(is_same(&a, &a.clone()));
            let mut other = a.clone();
            if let Some(byte) = a.len().checked_sub(1).map(|last| at % (last + 1)).and_then(|at| other.get_mut(at)) {
                *byte ^= 1;
                prop_assert!(!is_same(&a, &other));
            }
        }

        /// As evenly as it has to be for shards: of 128 none gets four times its share.
        #[test]
        fn shards_fill_evenly(stride in 1..1_000_000_u64) {
            let places = Places::new();
            let mut filled = [0_usize; 128];
            for n in 0..12_800_u64 {
                filled[(places.of(&(n * stride).to_ne_bytes()) >> 40) as usize % 128] += 1;
            }
            prop_assert!(filled.iter().all(|n| (40..200).contains(n)), "{filled:?}");
        }
    }
}
