//! What the last calls were: windows that really slide.
//!
//! Pure and lock-free: time comes in as a number, every word is changed by a compare-and-swap that carries whose it is.
//! A window is emptied by giving it a new *epoch*: what was written under an older one no longer counts, and a late
//! writer with an older epoch can't touch what is newer. So there is no moment at which a window is half empty, and a
//! result that was under way while the window was emptied can't end up in the new one.

pub(crate) mod count;
pub(crate) mod latency;
pub(crate) mod time;
pub(crate) mod word;

/// What a window holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) slow: u64,
}

/// One call, as a window sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) failed: bool,
    pub(crate) slow: bool,
}
