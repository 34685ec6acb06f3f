//! A key as it is kept.

/// Short ones in their place: to look one up then takes no second look elsewhere, which is most of what it costs.
pub(super) enum Stored {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Box<[u8]>),
}

/// With its length it takes as much as a reference to a long one and a word.
const SHORT: usize = 22;

impl Stored {
    #[inline(always)]
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            // It is not longer than that.
            Stored::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Stored::Long(bytes) => bytes,
        }
    }

    #[inline(always)]
    pub(super) fn is(&self, key: &[u8]) -> bool {
        is_same(self.as_bytes(), key)
    }
}

impl From<&[u8]> for Stored {
    fn from(key: &[u8]) -> Self {
        let mut bytes = [0; SHORT];
        match bytes.get_mut(..key.len()) {
            Some(start) => {
                start.copy_from_slice(key);
                Stored::Short { len: key.len() as u8, bytes }
            }
            None => Stored::Long(key.into()),
        }
    }
}

/// By words where keys are short, as most are: that takes less than the call which compares memory.
#[inline(always)]
fn is_same(a: &[u8], b: &[u8]) -> bool {
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

    #[test]
    fn it_takes_three_words() {
        assert_eq!(size_of::<Stored>(), 24);
    }

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

        #[test]
        fn what_is_kept_is_the_key(key in prop::collection::vec(any::<u8>(), 0..40)) {
            let kept = Stored::from(&*key);
            prop_assert_eq!(kept.as_bytes(), &*key);
            prop_assert_eq!(matches!(kept, Stored::Short { .. }), key.len() <= SHORT);
        }
    }
}
