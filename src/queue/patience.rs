//! When waiting becomes overload, and what then.
//!
//! Under overload a line that is served in order helps nobody: each waits as long as it can bear, and half of what is
//! served then has been given up. Served newest first, the same backend answers as many, in time. But a burst is not an
//! overload, and callers in a burst are served best in their order. So it is told by how long the waiting lasts:
//!
//! - A band's *episode* begins when its oldest has waited for longer than `fifo`, and ends when the band has been empty
//!   for 0.4 of that (or, while it is still served in order, as soon as the oldest has waited for less).
//! - An episode that has lasted for `newest_after` is an overload: the newest is served first.
//! - It is over, too, when the band is empty and, for as long as that, was never without an empty moment for longer
//!   than `fifo`: in order, nobody would have been late. Else a backend with much to do, where somebody waits every few
//!   seconds, would serve its callers newest first for ever after.
//! - Neither is more than the oldest allows: half of what it may wait in all, by its deadline, is late, and an episode
//!   as long as that is an overload. Callers whose deadlines are short would never wait for `fifo`: they would be
//!   called off before, or be served with no time left, every one of them.
//! - Where there is [`Tight`], one that has lasted for `tight.burst` is no burst: who has waited for longer than
//!   `tight.wait` is refused, oldest first, but for the newest `tight.keep` (those until they have waited for
//!   `tight.burst`), for a small backend must never find its line empty.
//!
//! The rules and their constants were found by simulation of some hundred generated overloads, with each rule switched
//! off in turn. Relatives: CoDel (Nichols and Jacobson 2012) for a delay that stands, and the adaptive LIFO of Maurer
//! ("Fail at Scale", 2015).

/// When waiting becomes overload, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) fifo: u64,
    pub(crate) newest_after: u64,
    pub(crate) tight: Option<Tight>,
}

/// Who is refused in an overload, in nanoseconds.
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "for adaptive limits, which are to come: who sets one by hand says how long to wait")
)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tight {
    pub(crate) burst: u64,
    pub(crate) wait: u64,
    pub(crate) keep: usize,
}
