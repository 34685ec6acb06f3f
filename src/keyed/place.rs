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
    /// Others than all other ones. The hasher's own seeds are addresses and the time; std's come from the operating
    /// system.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
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
