//! Whose clock ended a stream.
//!
//! Trailers can't carry a `Rejection`, and `grpc-status: 4` does not say whether the operator's timeout or the caller's
//! deadline ran out; policies further out must know. Bodies are polled through one another on one stack, so the inner
//! one notes it here and the outer ones, which cleared it before they polled, read it right after.

use std::cell::Cell;

use http::HeaderMap;

use super::classify;
use crate::{deadline, outcome::End, time};

thread_local! {
    /// Whose clock ended the gRPC stream that is being polled on this thread right now.
    static CUT_BY: Cell<Option<End>> = const { Cell::new(None) };
}

pub(super) fn by() -> Option<End> {
    CUT_BY.get()
}

/// Whose clock did the peer end it by, if by one of ours? It knows them from `grpc-timeout`. By that of a timeout
/// further out, which has ended by now; or by the caller's, of which it tells a moment before, so that its answer may
/// come before our own timer does. Ambient here and now is the deadline of the call.
#[cold]
pub(super) fn at_the_peer(status: &HeaderMap) -> Option<End> {
    match classify::grpc_status(status).flatten()? {
        1 | 4 if deadline::outer::has_ended(time::now()) => Some(End::TimedOut),
        4 if deadline::is_about_over() => Some(End::DeadlinePassed { had: None }),
        _ => None,
    }
}

pub(super) fn note(end: Option<End>) {
    CUT_BY.set(end);
}

/// Whose clock ended the stream in the poll that `poll` made, if it was ended.
pub(super) fn in_poll<T>(poll: impl FnOnce() -> T) -> (T, Option<End>) {
    note(None);
    (poll(), by())
}
