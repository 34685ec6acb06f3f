//! No call may take longer than it is worth.
//!
//! A backend that hangs takes its callers with it: each holds memory, a connection and whatever it locked. A timeout
//! bounds that, at the price of giving up on answers that would have come. The law: **an answer that is there wins;
//! else the call ends exactly at its bound, and whatever was running for it is dropped.**
//!
//! ```
//! use axum::{Router, routing::get};
//! use buttress::TimeoutLayer;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), buttress::ConfigError> {
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "hello" }))
//!     .layer(TimeoutLayer::builder().after(Duration::from_secs(2)).build()?);
//! # drop(app); Ok(()) }
//! ```
//!
//! - Whether it bounds one attempt or the whole call is its place in the stack: inside or outside of a retry.
//! - [`after`](TimeoutBuilder::after) counts from `call` to the head of the response, or to the end of its body
//!   ([`until`](TimeoutBuilder::until)). It does not count waiting for readiness, which comes before `call`.
//! - [`idle`](TimeoutBuilder::idle) bounds the wait for each frame of the body: right for streams, which may last for
//!   ever but must not stall.
//! - The caller's [`Deadline`](crate::Deadline) bounds it again. A request whose deadline has passed is refused at
//!   once; the backend is not touched.
//! - gRPC: it sets or lowers the outgoing `grpc-timeout` (to `after` and a small margin, never past the caller's
//!   deadline), so that the server stops too. A `grpc-timeout` speaks of the whole call, so for long server streams use
//!   `idle`, or an [`after_fn`](TimeoutBuilder::after_fn) that knows them. Plain HTTP has no header for that: what
//!   [`DeadlineLayer::client`](crate::DeadlineLayer::client) writes is the caller's deadline, and not this bound.
//!
//! Below 50 ms mind the network: with Nagle's algorithm on (`TCP_NODELAY` off), the body of a request may wait some 40
//! ms for the acknowledgement of its head, and that is part of the call.
//!
//! A timeout answers 504, or DEADLINE_EXCEEDED on gRPC; on plain services it is an error. Policies inside and outside
//! count it as a failure of the backend, while a deadline that passed is the caller's own business.
//!
//! # Cost
//!
//! One clock read a call. No timer and no allocation as long as the inner future is ready at once, and no allocation
//! after that either: the timer is part of the future. On gRPC the written header allocates once.
//!
//! # Cancel safety
//!
//! Dropping the response future or body drops what is inside; nothing else is held.

mod config;
mod handle;
mod layer;
mod service;

pub use self::{
    config::{TimeoutBuilder, TimeoutConfig, Until},
    handle::{TimeoutHandle, TimeoutSnapshot},
    layer::TimeoutLayer,
    service::Timeout,
};
pub use crate::bounded::{BodyClock, ResponseFuture};
