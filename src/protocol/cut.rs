//! Whose clock ended a stream.
//!
//! Trailers can't carry a `Rejection`, and `grpc-status: 4` does not say whether the operator's timeout or the caller's
//! deadline ran out; policies further out must know. Bodies are polled through one another on one stack, so the inner
//! one notes it here and the outer ones, which cleared it before they polled, read it right after.

use std::cell::Cell;

use crate::outcome::End;

thread_local! {
    /// Whose clock ended the gRPC stream that is being polled on this thread right now.
    static CUT_BY: Cell<Option<End>> = const { Cell::new(None) };
}

pub(super) fn by() -> Option<End> {
    CUT_BY.get()
}

pub(super) fn note(end: Option<End>) {
    CUT_BY.set(end);
}

/// Whose clock ended the stream in the poll that `poll` made, if it was ended.
pub(super) fn in_poll<T>(poll: impl FnOnce() -> T) -> (T, Option<End>) {
    note(None);
    (poll(), by())
}
