//! Whose clock ended a stream.
//!
//! Trailers can't carry a `Rejection`, and `grpc-status: 4` does not say whether the operator's timeout or the caller's
//! deadline ran out; policies further out must know. Bodies are polled through one another on one stack, so the inner
//! one notes it here and the outer ones, which cleared it before they polled, read it right after.

use std::cell::Cell;

use http::HeaderMap;

use super::classify;
use crate::{deadline, outcome::End};

thread_local! {
    /// Whose clock ended the gRPC stream that is being polled on this thread right now.
    static CUT_BY: Cell<Option<End>> = const { Cell::new(None) };
}

pub(super) fn by() -> Option<End> {
    CUT_BY.get()
}

/// Did the peer end it because its caller's deadline passed? A peer that knows the deadline says so a moment before it,
/// and its answer may come before our own timer does. Ambient here and now is the deadline of the call.
#[cold]
pub(super) fn by_the_caller(status: &HeaderMap) -> bool {
    classify::grpc_status(status) == Some(Some(4)) && deadline::is_about_over()
}

pub(super) fn note(end: Option<End>) {
    CUT_BY.set(end);
}

/// Whose clock ended the stream in the poll that `poll` made, if it was ended.
pub(super) fn in_poll<T>(poll: impl FnOnce() -> T) -> (T, Option<End>) {
    note(None);
    (poll(), by())
}
