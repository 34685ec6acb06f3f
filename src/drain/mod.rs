//! To stop without losing a call.
//!
//! A server that is told to stop and does so loses what it is working on; one that waits for its connections to close
//! may wait for ever, for idle ones stay open and busy ones bring new work. Draining is between: **new calls are
//! refused and told where to go, and what runs, runs to the end of its response.**
//!
//! The layer is made by [`Registry::drain_layer`](crate::Registry::drain_layer), stands outermost, and does nothing but
//! count until [`Registry::drain`](crate::Registry::drain). From then on a new call is answered with
//! [`Draining`](crate::Reason::Draining): 503 with `Retry-After` and, on HTTP/1, `connection: close`, so that the
//! caller's next call opens a connection to somebody else; UNAVAILABLE with a pushback on gRPC; an error elsewhere. The
//! future that `drain` gave is ready when nothing is in flight any more: calls to the end of their bodies, streams
//! included. Where streams may last, put a bound around it, and around what the server waits for after it: axum's
//! `with_graceful_shutdown` waits for every connection, and for one with an endless stream it waits for ever.
//!
//! ```
//! use axum::{Router, routing::get};
//! use buttress::Registry;
//! use std::time::Duration;
//! use tokio::{net::TcpListener, sync::oneshot, time::timeout};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
//! let registry = Registry::new();
//! let app: Router = Router::new().route("/", get(|| async { "hello" })).layer(registry.drain_layer());
//!
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let (stop, stopped) = oneshot::channel::<()>();
//! let server = axum::serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) });
//! let server = tokio::spawn(server.into_future());
//!
//! # let told_to_stop = async {};
//! told_to_stop.await; // SIGTERM
//! let stopping = async {
//!     registry.drain().await; // What runs ends, what comes is refused.
//!     drop(stop); // Connections are closed, once their last bytes are written.
//!     server.await
//! };
//! match timeout(Duration::from_secs(20), stopping).await {
//!     Ok(served) => served?,
//!     Err(_) => Ok(()), // What still runs ends with the runtime.
//! }
//! # }
//! ```
//!
//! A load balancer goes on sending for a while after readiness has turned. What comes in that time is refused, and such
//! a refusal is safe to be sent again. By the header `x-rejected` our retry tries once more before it waits for this
//! instance (with three attempts or more), and our hedge sends its next attempt at once; both only what they may send
//! twice. To lose none of it for callers that do not, wait between turning readiness and draining.
//!
//! # Cost
//!
//! Two additions on a cache line of the thread's own, no allocation.
//!
//! # Cancel safety
//!
//! A call that was not made yet, because its caller waits for the inner service to become ready, is not counted; that
//! caller learns of the drain when it asks again. Dropping a call or its body ends it. New calls are refused from the
//! moment `drain` is called, whether or not somebody polls what it gave; dropping that changes nothing.

mod future;
mod gate;
mod handle;
mod layer;
mod service;

pub(crate) use self::gate::Gate;
pub use self::{
    future::ResponseFuture,
    gate::{Drained, Inside},
    handle::{DrainHandle, DrainSnapshot},
    layer::DrainLayer,
    service::Drain,
};
