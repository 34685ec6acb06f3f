//! Request bodies that can be sent again.
//!
//! A body is a stream that is read once; a retry, a hedge or a backup needs it twice. [`Replay`] turns a body into a
//! source of bodies of the same type: what the first attempt reads is recorded as it is sent, and the next attempt
//! reads the record first and then goes on where it ends. Chunks are [`Bytes`](bytes::Bytes), so they are shared and
//! not copied.
//!
//! The record is bounded: past the cap it is dropped, the attempt that runs goes on, and there is no further one. Each
//! chunk counts its length and 64 bytes more, so that a million of small ones is not free. A body that is not over yet
//! is never waited for: a stream in both directions goes on as if nobody recorded it.
//!
//! Implemented for the bodies of axum (feature `axum`) and tonic (feature `tonic`), and for `Full`, `Empty`, `BoxBody`
//! and `UnsyncBoxBody` of `http-body-util`. An empty body costs nothing, another one two or three allocations for the
//! first attempt (the record, its list, the box around the reader) and one for each further attempt.

use std::fmt;

use http_body::Body;

mod bodies;
mod original;
mod reader;
mod tape;

use self::tape::Handle;
pub use self::{bodies::FullSource, original::Original, reader::ReplayBody};

/// A request body that can be sent again.
///
/// ```
/// use buttress::Replay;
/// use bytes::Bytes;
/// use http_body_util::{BodyExt, Full};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let source = Full::new(Bytes::from("hello")).split(64 * 1024);
/// for _ in 0..2 {
///     let attempt: Full<Bytes> = Replay::attempt(&source);
///     assert_eq!(attempt.collect().await.unwrap().to_bytes(), "hello");
/// }
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "the request body `{Self}` cannot be sent again",
    label = "a retry, a hedge or a backup needs a body that can",
    note = "`axum::body::Body` can with the feature `axum`, `tonic::body::Body` with the feature `tonic`; `Full`, `Empty`, `BoxBody` and `UnsyncBoxBody` of `http-body-util` always can, and any other body goes into one of those: `BodyExt::boxed`"
)]
pub trait Replay: Body + Sized {
    /// What the attempts are made from.
    type Source: Clone;

    /// Makes a source of this body. It records up to `cap` bytes.
    fn split(self, cap: usize) -> Self::Source;

    /// The body of the next attempt. Attempts are numbered from 0 in the order of these calls.
    ///
    /// Several may be read at once. One that can't have all of the body any more ends with an error. An error type of
    /// your own has no room for ours, and there it never ends: a transport may keep the stream of an attempt that was
    /// given up open for it. Prefer [`BoxError`](crate::BoxError) or `std::io::Error`.
    fn attempt(source: &Self::Source) -> Self;

    /// Can a further attempt have the whole body? Not once it went past the cap or failed.
    fn can_replay(source: &Self::Source) -> bool;

    /// Is all of the body still there, whatever the cap, because nothing of it was read, or because it is in memory?
    /// Then a call that never reached the backend can be made again.
    fn is_whole(source: &Self::Source) -> bool {
        Self::can_replay(source)
    }

    /// From now on only this attempt reads: the others were given up. A transport may hold on to the body of a call
    /// that was dropped, and must not read away what the next attempt needs.
    fn only(_source: &Self::Source, _attempt: u32) {}

    /// Can this attempt not have the rest of the body any more, because another one has it? Whoever waits for it waits
    /// in vain where the error type has no room for ours (see [`attempt`](Self::attempt)).
    fn is_cut(_source: &Self::Source, _attempt: u32) -> bool {
        false
    }
}

/// The source of a body that is recorded while it is sent. Made by [`Replay::split`].
///
/// Once the last clone is dropped nothing more is recorded, and what was is freed as it is read.
pub struct ReplaySource<B>(Option<Handle<B>>);

impl<B: Body<Data = bytes::Bytes>> ReplaySource<B> {
    /// Without a record if there is nothing to be recorded.
    fn new(body: B, cap: usize) -> Self {
        ReplaySource((!body.is_end_stream()).then(|| Handle::new(body, cap)))
    }

    /// `None`: the body is empty.
    fn attempt(&self) -> Option<ReplayBody<B>> {
        self.0.as_ref().map(|handle| ReplayBody::new(handle))
    }

    fn can_replay(&self) -> bool {
        self.0.as_ref().is_none_or(Handle::can_replay)
    }

    fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(Handle::is_whole)
    }

    fn only(&self, attempt: u32) {
        if let Some(handle) = &self.0 {
            handle.only(attempt);
        }
    }

    fn is_cut(&self, attempt: u32) -> bool {
        self.0.as_ref().is_some_and(|handle| handle.is_cut(attempt))
    }
}

impl<B> Clone for ReplaySource<B> {
    fn clone(&self) -> Self {
        ReplaySource(self.0.clone())
    }
}

impl<B> fmt::Debug for ReplaySource<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplaySource").field("empty", &self.0.is_none()).finish_non_exhaustive()
    }
}

/// Why an attempt could not have the whole body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayError(());

impl ReplayError {
    const CUT: ReplayError = ReplayError(());
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another attempt has the rest of this request body")
    }
}

impl std::error::Error for ReplayError {}
