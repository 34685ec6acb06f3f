//! The bodies that can be sent again.

use std::{
    any::Any,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{
    Empty, Full,
    combinators::{BoxBody, UnsyncBoxBody},
};

use super::{Replay, ReplayBody, ReplaySource, reader::ReadError, tape::PER_CHUNK};
use crate::BoxError;

/// A boxed body is recorded, and boxed again for each attempt by `$boxed`.
macro_rules! recorded {
    ($(#[$attribute:meta])* $body:ty, [$($generics:tt)*], $boxed:expr) => {
        $(#[$attribute])*
        impl<$($generics)*> Replay for $body {
            type Source = ReplaySource<$body>;

            fn split(self, cap: usize) -> Self::Source {
                ReplaySource::new(self, cap)
            }

            fn attempt(source: &Self::Source) -> Self {
                source.attempt().map_or_else(<$body>::default, $boxed)
            }

            fn can_replay(source: &Self::Source) -> bool {
                source.can_replay()
            }

            fn is_whole(source: &Self::Source) -> bool {
                source.is_whole()
            }

            fn only(source: &Self::Source, attempt: u32) {
                source.only(attempt);
            }

            fn is_cut(source: &Self::Source, attempt: u32) -> bool {
                source.is_cut(attempt)
            }
        }
    };
}

recorded!(
    #[cfg(feature = "axum")]
    axum_core::body::Body,
    [],
    axum_core::body::Body::new
);
recorded!(
    #[cfg(feature = "tonic")]
    tonic::body::Body,
    [],
    tonic::body::Body::new
);
recorded!(BoxBody<Bytes, E>, [E: 'static], |reader| BoxBody::new(SameError(reader)));
recorded!(UnsyncBoxBody<Bytes, E>, [E: 'static], |reader| UnsyncBoxBody::new(SameError(reader)));

/// A reader whose error is that of the body.
///
/// Where that is a boxed or an I/O error, ours goes into it. Else nobody can be told that the rest is elsewhere, and a
/// body that just ended would be taken for a whole one: it stays pending, until the call that was given up is dropped.
struct SameError<B>(ReplayBody<B>);

impl<B> Body for SameError<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match ready!(self.0.poll_read(cx)) {
            None => Poll::Ready(None),
            Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Err(ReadError::Body(error))) => Poll::Ready(Some(Err(error))),
            Some(Err(ReadError::Cut(cut))) => {
                let boxed = same::<BoxError, B::Error>(cut.into());
                match boxed.or_else(|| same::<io::Error, B::Error>(io::Error::other(cut))) {
                    Some(error) => Poll::Ready(Some(Err(error))),
                    None => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.left()
    }
}

/// `value`, if the two types are the same one.
fn same<A: 'static, B: 'static>(value: A) -> Option<B> {
    let mut value = Some(value);
    (&mut value as &mut dyn Any).downcast_mut::<Option<B>>().and_then(Option::take)
}

impl<D: Buf> Replay for Empty<D> {
    type Source = ();

    fn split(self, _cap: usize) {}

    fn attempt((): &()) -> Self {
        Empty::new()
    }

    fn can_replay((): &()) -> bool {
        true
    }
}

/// The source of a body that is one chunk.
#[derive(Debug, Clone)]
pub struct FullSource<D> {
    body: Full<D>,
    fits: bool,
}

/// It is there whole, so it is cloned: of [`Bytes`] that is a counter.
impl<D: Buf + Clone> Replay for Full<D> {
    type Source = FullSource<D>;

    fn split(self, cap: usize) -> FullSource<D> {
        let size = usize::try_from(self.size_hint().lower()).unwrap_or(usize::MAX);
        FullSource { fits: size == 0 || size.saturating_add(PER_CHUNK) <= cap, body: self }
    }

    fn attempt(source: &FullSource<D>) -> Self {
        source.body.clone()
    }

    fn can_replay(source: &FullSource<D>) -> bool {
        source.fits
    }

    fn is_whole(_source: &FullSource<D>) -> bool {
        true
    }
}
