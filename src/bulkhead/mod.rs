//! One part of a ship may be flooded, and the ship floats.
//!
//! A backend that slows down takes in whatever its callers hold: tasks, memory, connections. A bulkhead bounds how many
//! calls are in there at once, so that the rest of the program keeps what it needs. The law: **at most `limit` calls
//! are in flight, each to the end of its response, and what waits for its turn is bounded, in order, and called off in
//! time.**
//!
//! ```
//! use axum::{Router, routing::get};
//! use buttress::BulkheadLayer;
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), buttress::ConfigError> {
//! let reports = BulkheadLayer::builder()
//!     .name("reports")
//!     .limit(8)                          // eight at once,
//!     .queue(32)                         // thirty-two may wait,
//!     .wait(Duration::from_millis(500))  // half a second each
//!     .build()?;
//! let handle = reports.handle();
//!
//! let app: Router = Router::new().route("/reports", get(|| async { "many rows" })).layer(reports);
//!
//! // Tonight there is more room.
//! handle.resize(16)?;
//! assert_eq!((handle.snapshot().limit, handle.snapshot().in_flight), (16, 0));
//! # drop(app); Ok(()) }
//! ```
//!
//! - A call is in flight from `call` to the end of its response: on HTTP and gRPC that is the end of the body or the
//!   trailers, elsewhere the answer. Readiness takes nothing, nor does an idle connection.
//! - Without a [`queue`](BulkheadBuilder::queue) a full bulkhead refuses at once, with
//!   [`BulkheadFull`](Reason::BulkheadFull).
//! - With one, calls wait in their response future, touching nothing of the inner service. A permit that becomes free is
//!   handed to whoever is next; a newcomer can't slip past. Waiting ends after [`wait`](BulkheadBuilder::wait) with
//!   [`QueueTimeout`](Reason::QueueTimeout), or at the caller's [`Deadline`](crate::Deadline) with
//!   [`DeadlineExceeded`](Reason::DeadlineExceeded).
//! - Higher [`Priority`] is served first, and takes the place of the newest of the lowest band in a full queue, which is
//!   refused with [`ShedByPriority`](Reason::ShedByPriority). The lowest is served after at most 1,000 calls of others.
//!   A priority is chosen by [`priority_fn`](BulkheadBuilder::priority_fn), else it is the `Priority` in the request's
//!   extensions, else `Default`. To rank repeated attempts lower, let the function look at what your retries send along.
//! - Within a band it is first come, first served, until overload lasts: when for as long as `wait` the oldest has never
//!   waited for less than half of it, the newest is served first until the band has been empty for a while. The backend
//!   answers as many either way, but now to callers that are still there. A burst, however large, is served in its order.
//! - A reader that stalls keeps its response open. After [`permit_lease`](BulkheadBuilder::permit_lease) without a frame
//!   handed out its permit stops counting, and the next call that finds the bulkhead full goes in for it; its stream goes
//!   on uncounted. A stream that is quiet for so long by itself is the same: raise the lease where that is the rule.
//!
//! Refusals are 503 on HTTP, RESOURCE_EXHAUSTED on gRPC (504 and DEADLINE_EXCEEDED for deadlines), errors elsewhere; they
//! say no time to come back, for nobody knows one.
//!
//! # Cost
//!
//! Admitted: one atomic word, changed twice; no lock, no clock, no allocation. A response whose body goes on after its
//! head costs a clock read there and one for each further frame, and slots are allocated when more of them run than ever
//! did. Only where calls wait there is a mutex, a timer in each future, and one vector, as long as the longest queue was.
//!
//! # Cancel safety
//!
//! Dropping the future of a waiting call gives its place back, that of a running one its permit, at once; so does
//! dropping a response body.

mod config;
mod door;
mod future;
mod handle;
mod held;
mod layer;
mod service;
mod settings;
mod wall;

#[cfg(doc)]
use crate::{Priority, Reason};

pub use self::{
    config::{BulkheadBuilder, BulkheadConfig},
    future::ResponseFuture,
    handle::{BulkheadHandle, BulkheadSnapshot},
    held::Held,
    layer::BulkheadLayer,
    service::Bulkhead,
};
