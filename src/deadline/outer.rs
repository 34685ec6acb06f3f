//! Timeouts of ours further out, as the policies inside them know of them.
//!
//! On gRPC a timeout puts its own bound into `grpc-timeout`, for the transport and for the peer. Whoever reads that
//! further in must not take it for the caller's deadline: then the operator's own timeout would be nobody's failure,
//! and a breaker would never see it. So, for as long as a timeout runs what is inside it, a header that ends with its
//! timer, or by the margin that it writes after it, is its own; the caller's deadline is what the timeout knows of it.
//! (On this thread: through a buffer or a spawned task nobody is told.)

use std::{cell::Cell, time::Duration};

use crate::{
    deadline::{Deadline, wire},
    time::Instant,
};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Outer {
    /// When its timer runs out.
    pub(crate) end: Instant,
    /// The caller's deadline.
    pub(crate) caller: Option<Deadline>,
}

/// More of them in each other are as so many.
const MOST: usize = 8;

thread_local! {
    // Here and not with those that have entered, so that a call without any of this has no room for it.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static TIMEOUTS: [Cell<Option<Outer>>; MOST] = const { [const { Cell::new(None) }; MOST] };
}

/// What follows runs inside this one. Of several the one counts that ends first.
#[cold]
pub(crate) fn enter(timeout: Option<Outer>) {
    let (depth, known) = (DEPTH.get(), current());
    let first = match (known, timeout) {
        (Some(known), Some(timeout)) => Some(if timeout.end < known.end { timeout } else { known }),
        (known, timeout) => known.or(timeout),
    };
    TIMEOUTS.with(|all| all.get(depth).into_iter().for_each(|place| place.set(first)));
    DEPTH.set(depth + 1);
}

#[cold]
pub(crate) fn leave() {
    DEPTH.set(DEPTH.get().saturating_sub(1));
}

fn current() -> Option<Outer> {
    let last = DEPTH.get().min(MOST).checked_sub(1)?;
    TIMEOUTS.with(|all| all[last].get())
}

/// Has one of them ended, and before the caller's deadline?
pub(crate) fn has_ended(now: Instant) -> bool {
    current().is_some_and(|outer| outer.end <= now && outer.caller.is_none_or(|caller| outer.end < caller.instant()))
}

/// What a header may say now that is to end with the innermost of them that ends first.
pub(crate) fn left(now: Instant) -> Option<Duration> {
    let left = current()?.end.saturating_duration_since(now);
    Some(left + wire::margin(left))
}

/// The caller's deadline by this header.
pub(crate) fn callers(header: wire::Read, now: Instant) -> Option<Deadline> {
    let told = wire::deadline(header, now)?;
    match current() {
        // What ends later still is another call's: the timer may be only for a head.
        Some(outer) if told.instant().checked_duration_since(outer.end).is_some_and(|d| d <= wire::MOST_MARGIN) => {
            outer.caller
        }
        _ => Some(told),
    }
}
