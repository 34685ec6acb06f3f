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
//! - With one, calls wait in their response future, touching nothing of the inner service. A permit that becomes free
//!   is handed to whoever is next; a newcomer can't slip past. Waiting ends after [`wait`](BulkheadBuilder::wait) with
//!   [`QueueTimeout`](Reason::QueueTimeout), or at the caller's [`Deadline`](crate::Deadline) with
//!   [`DeadlineExceeded`](Reason::DeadlineExceeded).
//! - Higher [`Priority`] is served first, and takes the place of the newest of the lowest band in a full queue, which
//!   is refused with [`ShedByPriority`](Reason::ShedByPriority). The lowest is served after at most 1,000 calls of
//!   others. A priority is chosen by [`priority_fn`](BulkheadBuilder::priority_fn), else it is the `Priority` in the
//!   request's extensions, else `Default`. To rank repeated attempts lower, let the function look at what your retries
//!   send along.
//! - Within a band it is first come, first served, until overload lasts: when for a whole `wait` whoever was the oldest
//!   had waited for more than half of it. (Where the oldest has less time by its deadline, that takes the place of
//!   `wait`.) Then the newest is served first, until the band has been empty for a fifth of `wait`, or a whole `wait`
//!   has passed in which somebody waited now and then, but never without a break for half of it. The backend answers as
//!   many either way, but now to callers that are still there. A burst, however large, is served in its order.
//! - A reader that stalls keeps its response open. After [`permit_lease`](BulkheadBuilder::permit_lease) without a
//!   frame handed out its permit stops counting, and the next call that finds the bulkhead full goes in for it; its
//!   stream goes on uncounted. A stream that is quiet for so long by itself is the same: raise the lease where that is
//!   the rule.
//!
//! Refusals are 503 on HTTP, RESOURCE_EXHAUSTED on gRPC (504 and DEADLINE_EXCEEDED for deadlines, 429 where a key is
//! missing), errors elsewhere; they say no time to come back, for nobody knows one.
//!
//! # Shadow
//!
//! In shadow nobody waits. What is in flight above the limit stands for the queue, so a call that comes when `limit`
//! and `queue` are both full is reported as [`BulkheadFull`](Reason::BulkheadFull), and one that comes after its
//! deadline as [`DeadlineExceeded`](Reason::DeadlineExceeded). Whether one that would have waited would have had its
//! turn in time cannot be known, so **with a queue shadow reports too little**: no
//! [`QueueTimeout`](Reason::QueueTimeout), no [`ShedByPriority`](Reason::ShedByPriority), no deadline that would have
//! passed in the line. To see an upper bound, take the queue away while in shadow: then whoever would have had to wait
//! is reported.
//!
//! # A limit for each key
//!
//! With [`per_key`](BulkheadBuilder::per_key) every tenant, client or route has a limit and a queue of its own, and one
//! that is slow takes nothing of what the others have. All keys have the same numbers, also when those are changed
//! through the handle; what the process takes in as a whole is bounded by a second bulkhead around this one.
//!
//! ```
//! use buttress::{BulkheadLayer, Key};
//! use http::HeaderName;
//!
//! # fn main() -> Result<(), buttress::ConfigError> {
//! // Four at once for each tenant, eight more may wait. Whoever names no tenant is refused with 429.
//! let tenants = BulkheadLayer::builder()
//!     .limit(4)
//!     .queue(8)
//!     .per_key(Key::Header(HeaderName::from_static("x-tenant")))
//!     .build()?;
//! assert_eq!(tenants.handle().snapshot().keys, 0);
//! # Ok(()) }
//! ```
//!
//! - [`max_keys`](BulkheadBuilder::max_keys) of them have a state of their own, some 1.6 KB each whatever the key, and
//!   a kilobyte more once a response was streamed. The state of a key goes only when nobody is in, waits, or still
//!   reads: then it says the same as none. Keys beyond the bound share a fixed number of overflow states, each with the
//!   limit of one key, until there is room: that is found out at the next call of such a key, after a second at most.
//!   Calls that it has in the overflow then end there, so for that time it may have as many again.
//! - A request without a key is refused with [`KeyMissing`](Reason::KeyMissing), a 429, or what
//!   [`missing_key`](BulkheadBuilder::missing_key) says. One that is not limited is counted in the snapshot all the
//!   same.
//! - The key is seen in `call`, so the inner service was polled ready before. A call that is refused or has to wait
//!   gives that readiness back.
//! - Plain services have no heads to see: all their calls share one state, and a full one is known before readiness.
//!
//! # Cost
//!
//! Admitted: one atomic word, changed twice; no lock, no allocation, and no clock where there is no deadline. A
//! response whose body goes on after its head costs a clock read there and one for each further frame, and slots are
//! allocated when more of them run than ever did. With a key also a clock read, one hash, and a lock that calls share;
//! only a new key allocates, and what `key_fn` returns. Only where calls wait there is a mutex, a timer in each future,
//! and one vector, as long as the most futures that have waited at once.
//!
//! # Cancel safety
//!
//! Dropping the future of a waiting call gives its place back, that of a running one its permit, at once; so does
//! dropping a response body.

#[cfg(feature = "http")]
mod by_key;
mod common;
mod config;
mod door;
mod future;
mod handle;
mod held;
mod layer;
mod limiter;
mod service;
mod settings;

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
