//! An answer when the rest failed.
//!
//! A page without its recommendations is better than no page, and yesterday's prices are better than an error. A
//! fallback answers in the place of a backend that was refused, failed or could not be reached. The law: **it answers
//! only what it was asked to, the answer says that it is one, and the policies around it still see that the backend
//! failed.**
//!
//! ```
//! use axum::{Router, routing::get};
//! use buttress::{Answer, FallbackContext, FallbackLayer};
//! use bytes::Bytes;
//!
//! let fallback = FallbackLayer::from_fn(|c: &FallbackContext<'_>| match c.parts.uri.path() {
//!     "/recommendations" => Answer::Http(http::Response::new(Bytes::from_static(b"[]"))),
//!     _ => Answer::PassOn,
//! });
//! let app: Router = Router::new()
//!     .route("/recommendations", get(|| async { (http::StatusCode::INTERNAL_SERVER_ERROR, "no database") }))
//!     .layer(fallback);
//! # drop(app);
//! ```
//!
//! # What answers
//!
//! - [`from_fn`](FallbackLayer::from_fn): a function of the request's head and of what went wrong. It can let the
//!   backend's own answer through: [`Answer::PassOn`].
//! - [`to_service`](FallbackLayer::to_service): another service, which gets the same request. Its body is recorded
//!   while it is sent the first time ([`Replay`](crate::Replay)); one above 64 KiB is not sent again. If it fails as
//!   well, the first answer comes back.
//! - [`last_good`](FallbackLayer::last_good): what the backend answered when it was well. See [`LastGood`] for what is
//!   kept, and for whom.
//! - [`plain_from_fn`](FallbackLayer::plain_from_fn), [`flat_from_fn`](FallbackLayer::flat_from_fn) and
//!   [`boxed_from_fn`](FallbackLayer::boxed_from_fn) for services that are not HTTP: a function of the error.
//!
//! With a name, observers, a registry or shadow: [`FallbackLayer::builder`], which has them all as `build_from_fn` and
//! so on.
//!
//! # When
//!
//! By default when a policy further in refused the call, and when it failed: 5xx, the gRPC codes of a broken server, an
//! error of the transport, a timeout of ours. [`on`](FallbackLayer::on) changes that. A call whose caller's deadline
//! has passed is [`Cancelled`](crate::Outcome) and not answered by default: nobody waits for it any more.
//!
//! On gRPC the status of a call may come in trailers right behind a head that looks well. Such a response is looked
//! into once, without waiting, so early trailers are seen; once a message has come the call is passed on, whatever
//! follows.
//!
//! # What it leaves behind
//!
//! A [`Degraded`](crate::Degraded) in the response's extensions, and `x-degraded: 1` if asked for. Policies of ours
//! further out record the outcome that is in it. An answer that carries one already is left alone.
//!
//! # Cost
//!
//! Plain services: no allocation, and a copy of the function. On HTTP the head of the request is copied for `from_fn`
//! and `to_service` (its headers and extensions, where there are any), and for `last_good` the key and the headers of
//! GET and HEAD requests; the recorded body is priced in [`replay`](crate::protocol::replay). On gRPC looking into a
//! response allocates once.
//!
//! # Cancel safety
//!
//! Dropping the call drops what is running for it, the backend's call or the backup's. Nothing else is held.

#[cfg(feature = "http")]
mod answer;
#[cfg(feature = "http")]
mod backup;
mod config;
mod future;
mod handle;
#[cfg(feature = "http")]
mod last_good;
mod layer;
mod plain;
mod service;
pub(crate) mod substitute;

#[cfg(feature = "http")]
pub use self::{
    answer::{Answer, FallbackContext},
    backup::{Backup, BackupCall},
    last_good::{Ask, LastGood, Recorder},
};
pub use self::{
    config::FallbackBuilder,
    future::ResponseFuture,
    handle::{FallbackHandle, FallbackSnapshot},
    layer::FallbackLayer,
    service::Fallback,
    substitute::Substitute,
};
