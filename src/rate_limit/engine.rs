//! What stands behind a layer: its own quotas, or a store.

use std::{future::Future, num::NonZeroU32, sync::Arc};

use crate::rate_limit::{
    Store,
    gcra::Meter,
    local::Buckets,
    store::{Grant, Local, Remote},
};

/// Where the quotas are kept. Sealed: [`Local`] and [`Remote`].
pub trait Engine: sealed::Sealed + Send + Sync + Sized + 'static {
    /// What a builder has of it.
    #[doc(hidden)]
    type Seed;
    /// The answer of a store.
    #[doc(hidden)]
    type Acquire: Future<Output = Grant> + Send;

    #[doc(hidden)]
    fn make(seed: Self::Seed, setup: Setup) -> Self;

    #[doc(hidden)]
    fn ask(&self, key: Option<&[u8]>, cost: NonZeroU32) -> Option<Self::Acquire>;

    #[doc(hidden)]
    fn local(&self) -> Option<&Local>;
}

/// What an engine is made from.
#[doc(hidden)]
#[derive(Debug)]
pub struct Setup {
    pub(crate) meter: Meter,
    pub(crate) most_keys: usize,
    pub(crate) name: Arc<str>,
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for Local {}
impl<St> sealed::Sealed for Remote<St> {}

impl Engine for Local {
    type Seed = ();
    type Acquire = std::future::Pending<Grant>;

    fn make((): (), setup: Setup) -> Self {
        Local(Buckets::new(setup.meter, setup.most_keys))
    }

    #[inline(always)]
    fn ask(&self, _key: Option<&[u8]>, _cost: NonZeroU32) -> Option<Self::Acquire> {
        None
    }

    #[inline(always)]
    fn local(&self) -> Option<&Local> {
        Some(self)
    }
}

impl<St: Store<Arc<str>>> Engine for Remote<St> {
    type Seed = St;
    type Acquire = St::Acquire;

    fn make(store: St, setup: Setup) -> Self {
        Remote { store, common: setup.name }
    }

    fn ask(&self, key: Option<&[u8]>, cost: NonZeroU32) -> Option<St::Acquire> {
        Some(match key {
            Some(key) => self.store.acquire(&text(key, &self.common), cost),
            None => self.store.acquire(&self.common, cost),
        })
    }

    fn local(&self) -> Option<&Local> {
        None
    }
}

/// A key as text. One that is none is spelt in hexadecimal behind a sign, and so is one that begins with that or is the
/// common one, so that no two are one.
fn text(key: &[u8], common: &str) -> Arc<str> {
    match std::str::from_utf8(key) {
        Ok(text) if !text.starts_with('\u{7f}') && text != common => text.into(),
        _ => key.iter().fold(String::from('\u{7f}'), |text, byte| format!("{text}{byte:02x}")).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_keys_are_one() {
        let keys: [&[u8]; 6] = [b"a", b"\xff", b"\x7fff", b"\x7f", "\u{ff}".as_bytes(), b"api"];
        let common = "api";
        let texts = keys.into_iter().map(|key| text(key, common)).chain([common.into()]);
        let texts: std::collections::HashSet<_> = texts.collect();
        assert_eq!((texts.len(), &*text(b"a", common)), (keys.len() + 1, "a"));
    }
}
