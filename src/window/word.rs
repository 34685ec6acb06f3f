//! A counter that knows whose it is: 32 bits of tag, 32 bits of value, changed together.

use std::cmp::Ordering::{Equal, Greater, Less};

use crate::sync::{AtomicU64, Ordering};

/// SeqCst, so that of two calls that complete a trip together at least one sees the other's record.
pub(crate) const ORDER: Ordering = Ordering::SeqCst;

#[inline]
pub(crate) fn pack(tag: u32, value: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(value)
}

#[inline]
pub(crate) fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// Is `tag` older than, the same as, or newer than `than`? Tags wrap: the shorter way round is the right one.
#[inline]
pub(crate) fn age(tag: u32, than: u32) -> std::cmp::Ordering {
    match tag.wrapping_sub(than) as i32 {
        0 => Equal,
        ..0 => Less,
        _ => Greater,
    }
}

/// Changes the value under `tag` by `change`, starting from zero where the word is older. `None`: it is newer, so this
/// writer came too late. Else the new value. `change` gives back `None` to leave the word as it is.
#[inline(always)]
pub(crate) fn update(word: &AtomicU64, tag: u32, change: impl Fn(u32) -> Option<u32>) -> Option<u32> {
    let mut seen = word.load(ORDER);
    loop {
        let (its, value) = unpack(seen);
        let value = match age(its, tag) {
            Equal => value,
            Less => 0,
            // A word that holds nothing is nobody's: at first all are zero, and zero is newer than half of all tags.
            Greater if value == 0 => 0,
            Greater => return None,
        };
        let Some(new) = change(value) else { return Some(value) };
        match word.compare_exchange_weak(seen, pack(tag, new), ORDER, Ordering::Relaxed) {
            Ok(_) => return Some(new),
            Err(now) => seen = now,
        }
    }
}

/// Adds one to what is there under exactly the tag of `zero`, which is zero under it. `false`: it has another one, or
/// it is full, and nothing was done.
#[inline(always)]
pub(crate) fn increment(word: &AtomicU64, zero: u64) -> bool {
    let mut seen = word.load(ORDER);
    loop {
        // Under another tag there is a bit above the value, so one comparison tells both.
        if seen ^ zero >= u64::from(u32::MAX) {
            return false;
        }
        match word.compare_exchange_weak(seen, seen + 1, ORDER, ORDER) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
}

/// The value under exactly this tag; zero under any other.
#[inline]
pub(crate) fn value(word: &AtomicU64, tag: u32) -> u32 {
    let (its, value) = unpack(word.load(ORDER));
    if its == tag { value } else { 0 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn tags_wrap() {
        assert_eq!(age(1, 2), Less);
        assert_eq!(age(u32::MAX, 2), Less);
        assert_eq!(age(2, u32::MAX), Greater);
        assert_eq!(age(7, 7), Equal);
    }

    #[test]
    fn a_late_writer_changes_nothing() {
        let word = AtomicU64::new(pack(8, 5));
        let add = |v| Some(v + 1);
        assert_eq!(update(&word, 7, add), None);
        assert_eq!(unpack(word.load(ORDER)), (8, 5));
        assert_eq!(update(&word, 8, add), Some(6));
        assert_eq!(update(&word, 9, add), Some(1));
        assert_eq!(update(&word, 9, |_| None), Some(1));
        assert_eq!((value(&word, 9), value(&word, 8)), (1, 0));
    }

    #[test]
    fn incremented_under_its_own_tag_alone() {
        let word = AtomicU64::new(pack(8, u32::MAX - 1));
        assert!(!increment(&word, pack(7, 0)) && !increment(&word, pack(9, 0)));
        assert!(increment(&word, pack(8, 0)));
        assert!(!increment(&word, pack(8, 0)), "it is full");
        assert_eq!(unpack(word.load(ORDER)), (8, u32::MAX));
    }

    #[test]
    fn an_untouched_word_takes_every_tag() {
        for tag in [1, 1 << 31, (1 << 31) + 1, u32::MAX, 0] {
            assert_eq!(update(&AtomicU64::new(0), tag, |v| Some(v + 1)), Some(1), "{tag}");
        }
    }
}
