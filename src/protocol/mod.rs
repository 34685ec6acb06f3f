//! How a policy meets its traffic.
//!
//! Every layer has a protocol parameter. It says three things: what must be kept of a request, how a refusal is
//! answered, and when and with what outcome a response is over.
//!
//! | form | for | a refusal is | the error type |
//! |---|---|---|---|
//! | [`Http`] (default) | axum, tonic, hyper: `Request<B>` to `Response<B>` | a response | stays what it was |
//! | [`Plain`], by `.plain()` | services whose error is a `std::error::Error` | `Err(Error::Rejected(_))` | [`Error<E>`](crate::Error) |
//! | [`Flat`], by `.flat()` | services whose error is `From<Rejection>` | `Err(rejection.into())` | stays what it was |
//! | [`Boxed`], by `.boxed()` | the rest | `Err(Box<Rejection>)` | [`BoxError`] |
//!
//! Policies of one stack take one form: a policy in the HTTP form looks for the refusals of others in responses, one in
//! another form in errors.
//!
//! Two `.plain()` layers nest (`Error<Error<E>>`): put one `.plain()` innermost and `.flat()` around it.

use std::{error::Error as StdError, fmt, task::Poll};

use crate::{deadline::Deadline, outcome::End, priority::Priority, rejection::Rejection};

mod again;
#[cfg(feature = "http")]
mod body;
#[cfg(feature = "http")]
pub(crate) mod classify;
mod clone_with;
#[cfg(feature = "http")]
mod cut;
#[cfg(feature = "http")]
mod degraded;
#[cfg(feature = "http")]
mod head;
#[cfg(feature = "http")]
pub(crate) mod hint;
mod hold;
#[cfg(feature = "http")]
mod http_form;
#[cfg(any(feature = "axum", feature = "tonic"))]
mod interop;
#[cfg(feature = "http")]
pub(crate) mod judge;
#[cfg(feature = "http")]
mod keyed_by;
#[cfg(feature = "http")]
pub(crate) mod names;
#[cfg(feature = "http")]
pub(crate) mod number;
#[cfg(feature = "http")]
mod peek;
#[cfg(feature = "http")]
pub(crate) mod peer;
mod plain;
#[cfg(feature = "http")]
mod refusal;
#[cfg(feature = "http")]
pub mod replay;
#[cfg(feature = "http")]
pub(crate) mod text;
#[cfg(feature = "http")]
pub(crate) mod transport;
mod watch;

pub use self::{
    again::Again,
    clone_with::CloneWith,
    hold::{Hold, Judged},
    plain::{Boxed, Flat, Plain},
    watch::{Unwatched, Watch},
};
#[cfg(feature = "http")]
pub(crate) use self::{again::PREVIOUS_ATTEMPTS, http_form::is_grpc};
pub(crate) use self::{
    again::{Mark, Trust},
    plain::as_its_form,
};
#[cfg(feature = "http")]
pub use self::{
    body::ResponseBody,
    classify::{HttpClassify, default_end, default_head},
    degraded::Degraded,
    hold::HeldResponse,
    http_form::HttpContext,
    keyed_by::KeyedBy,
    replay::Replay,
};

/// Any error, boxed.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// HTTP and gRPC, the default form: a refusal is a response, and the error type stays what it was.
///
/// A request is gRPC when its content type is `application/grpc`, `application/grpc+...` or `application/grpc;...`;
/// everything else, gRPC-Web included, is HTTP. With the feature `http` off, no service has this form.
#[derive(Clone, Default)]
pub struct Http {
    #[cfg(feature = "http")]
    classify: Option<std::sync::Arc<dyn HttpClassify>>,
}

impl sealed::Sealed for Http {}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut http = f.debug_struct("Http");
        #[cfg(feature = "http")]
        http.field("own_classification", &self.classify.is_some());
        http.finish()
    }
}

/// How a policy meets one kind of service. Sealed: the forms are those of the [module](self).
///
/// `Req`, `Res` and `Err` are those of the inner service.
#[diagnostic::on_unimplemented(
    message = "a `{Self}` layer cannot wrap a service from `{Req}` to `Result<{Res}, {Err}>`",
    label = "this layer has the wrong form for this service",
    note = "`Http`, the default, wants `http::Request<_>` and `http::Response<B>` where `B: Body<Data = Bytes>` and its error goes into a `BoxError`",
    note = "`.plain()` behind `build()?` wants an error that is a `std::error::Error`, and makes it a `buttress::Error<E>`",
    note = "`.flat()` wants such an error that is `From<buttress::Rejection>` too, and keeps it",
    note = "`.boxed()` wants any error that goes into a `BoxError`, which it becomes"
)]
pub trait Protocol<Req, Res, Err>: Clone + sealed::Sealed {
    /// Has a request a head, and can a response go on after it was given?
    #[doc(hidden)]
    const IS_HTTP: bool = false;

    /// Does the form know the [`key`](Self::key) of a request?
    #[doc(hidden)]
    const KNOWS_KEYS: bool = false;

    /// What is kept of the request until its response is judged.
    type Context;
    /// The response, with what the policy left in its body.
    type Response<W: Watch>;
    /// The error.
    type Error;

    #[doc(hidden)]
    fn context(&self, request: &Req) -> Self::Context;

    /// The deadline that rides on the request itself.
    #[doc(hidden)]
    fn deadline(_request: &Req) -> Option<Deadline> {
        None
    }

    /// The priority that rides on the request itself.
    #[doc(hidden)]
    fn priority(_request: &Req) -> Option<Priority> {
        None
    }

    /// The headers of a gRPC request.
    #[cfg(feature = "http")]
    #[doc(hidden)]
    fn grpc_headers<'a>(_context: &Self::Context, _request: &'a mut Req) -> Option<&'a mut ::http::HeaderMap> {
        None
    }

    /// Does the transport below keep a timer of its own on this call's `grpc-timeout`?
    #[doc(hidden)]
    fn has_a_timer_below(_context: &Self::Context) -> bool {
        false
    }

    /// May this answer be what such a timer said, there or at the other end of the wire?
    #[doc(hidden)]
    fn is_of_a_timer(_answer: &Res) -> bool {
        false
    }

    /// The key of a request, in a form that [knows](Self::KNOWS_KEYS).
    #[cfg(feature = "http")]
    #[doc(hidden)]
    fn key<'a>(&self, _request: &'a Req) -> Option<crate::KeyBytes<'a>> {
        None
    }

    /// Runs a user's function over the head of the request, where it has one.
    #[cfg(feature = "http")]
    #[doc(hidden)]
    fn with_parts<T>(_request: &mut Req, _look: impl FnOnce(&::http::request::Parts) -> T) -> Option<T> {
        None
    }

    /// The head of the request, where it has one.
    #[doc(hidden)]
    fn head(_request: &Req) -> Option<Head<'_>> {
        None
    }

    /// The headers of an answer, where it has any.
    #[cfg(feature = "http")]
    #[doc(hidden)]
    fn answer_headers<W: Watch>(_answer: &mut Self::Response<W>) -> Option<&mut ::http::HeaderMap> {
        None
    }

    /// The headers of an answer that is the backend's own, where it has any.
    #[cfg(feature = "http")]
    #[doc(hidden)]
    fn headers_of_the_backend<W: Watch>(_answer: &Self::Response<W>) -> Option<&::http::HeaderMap> {
        None
    }

    /// Runs a user's function over the head of an answer, where it has one.
    #[cfg(feature = "http")]
    #[doc(hidden)]
    fn with_answer_parts<W: Watch, T>(
        _answer: &mut Self::Response<W>,
        _look: impl FnOnce(&::http::response::Parts) -> T,
    ) -> Option<T> {
        None
    }

    /// The answer that says no.
    #[doc(hidden)]
    fn reject<W: Watch>(&self, context: &Self::Context, rejection: Rejection)
    -> Result<Self::Response<W>, Self::Error>;

    /// Does the answer go over HTTP/1, as HTTP? Asked of the request, and only where it is refused: the context of
    /// every call would be larger by it.
    #[doc(hidden)]
    fn is_http1(_context: &Self::Context, _request: &Req) -> bool {
        false
    }

    /// Asks the caller of such an answer for another connection next time.
    #[doc(hidden)]
    fn close_connection<W: Watch>(_answer: &mut Self::Response<W>) {}

    /// The inner service has answered. `watch` is told of the end, now or when the body is over; it is gone afterwards.
    /// By reference, because where there is no body it need not be moved for that. Always ready: an answer is large, and
    /// wrapped by the poll that gives it back it would be moved once more.
    #[doc(hidden)]
    fn finish<W: Watch>(
        &self,
        context: &Self::Context,
        result: Result<Res, Err>,
        watch: &mut Option<W>,
    ) -> Poll<Result<Self::Response<W>, Self::Error>>;

    /// The inner service failed to become ready.
    #[doc(hidden)]
    fn error(error: Err) -> Self::Error;
}

/// What there is to see of a request without taking it apart.
#[cfg(feature = "http")]
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub(crate) uri: &'a ::http::Uri,
    pub(crate) headers: &'a ::http::HeaderMap,
    pub(crate) extensions: &'a ::http::Extensions,
}

#[cfg(not(feature = "http"))]
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Head<'a>(std::marker::PhantomData<&'a ()>);

/// What an error means when a policy of ours, further in, speaks in it.
pub(crate) fn end_of_error(error: &(dyn StdError + 'static)) -> Option<End> {
    Rejection::of(error).map(End::of_rejection)
}

pub(crate) mod sealed {
    pub trait Sealed {}
}
