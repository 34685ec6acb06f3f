//! Stop calling a backend that fails.
//!
//! A backend that is down or drowning costs each caller its full timeout, and the calls that keep coming are what keeps
//! it down. A circuit breaker counts what came of the last calls; when too many failed it opens and refuses the next
//! ones at once, then lets a few probes through, and closes when they succeed. The law: **every result counts once, in
//! the state in which its call was admitted, and no probe can hold the door.**
//!
//! ```
//! use buttress::{CircuitBreakerLayer, Error, OpenTime, State};
//! use std::{io, time::Duration};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let breaker = CircuitBreakerLayer::builder()
//!     .name("ledger")
//!     .failure_rate(0.5)
//!     .time_window(Duration::from_secs(10))
//!     .minimum_calls(4)
//!     .open(OpenTime::Fixed(Duration::from_secs(5)))
//!     .build()?;
//!
//! // On an axum router or around a tonic channel the layer is used as it is; this is a plain service.
//! let backend = service_fn(|_: u32| async { Err::<u32, _>(io::Error::other("out of order")) });
//! let service = breaker.clone().plain().layer(backend);
//! for n in 0..4 {
//!     assert!(matches!(service.clone().oneshot(n).await, Err(Error::Inner(_))));
//! }
//! assert_eq!(breaker.handle().snapshot().state, State::Open);
//! // The fifth does not reach it.
//! assert!(matches!(service.clone().oneshot(4).await, Err(Error::Rejected(r)) if r.retry_after().is_some()));
//! # Ok(()) }
//! ```
//!
//! # When it opens
//!
//! By failure rate, by the rate of slow calls, by failures in a row, or any of them, over the last N calls or the last
//! T seconds. Shares are judged with "at least" after every recorded call, once there are enough calls. 5xx and the
//! gRPC codes of a broken server are failures; 429 and RESOURCE_EXHAUSTED (throttled) count in the failure rate, but
//! not as failures in a row. See [`HttpClassify`](crate::HttpClassify) for the tables and how to change them.
//!
//! Not counted: a call whose caller left, in the middle of an upload too, or dropped the answer before its end (see
//! [`HttpClassify`](crate::HttpClassify): looking at the status only is no leaving where the length is announced),
//! one that a policy further in refused (one on the server's side with
//! [`spare_peers`](CircuitBreakerBuilder::spare_peers)), and one that ended because the caller's own deadline was short
//! ([`deadline_blame_after`](CircuitBreakerBuilder::deadline_blame_after)): otherwise any caller could open a breaker
//! for all. A timeout of ours, inside or outside, is a failure. Somebody else's timeout outside looks like a caller
//! that left, and is not seen: use [`TimeoutLayer`](crate::TimeoutLayer). A deadline is what is ambient or on the
//! request; a `grpc-timeout` that a client set by hand is its own timeout, unless a
//! [`DeadlineLayer`](crate::DeadlineLayer) outside says otherwise.
//!
//! A timeout is a failure though it may be the caller that is slow: where bodies of requests are streamed on, a few
//! slow uploads that run into a timeout open the breaker. Read them before, or give uploads a breaker of their own.
//!
//! # While it is open
//!
//! Calls are refused at once, with the time that is left, and the inner service is neither called nor polled. (Who
//! waits for the inner service to become ready already learns of it when the inner service wakes it.) Every
//! re-opening lasts longer, with jitter, up to a maximum. The first call after the open time makes it half-open: no
//! task and no timer is needed.
//!
//! Below a balancer an open breaker looks like an endpoint with nothing to do, and a balancer by load sends it more.
//! Put the breaker around the balancer: a retry does not help, for refusals are not sent again.
//!
//! # Half-open
//!
//! At most `probes` calls run at once, the rest is refused. It closes at the `successes_to_close`-th success and opens
//! as soon as too many have failed for that. A probe is leased: one that hangs past `probe_lease` is given up, its slot
//! goes to the next call, and whatever it says later changes nothing. So if no probe ever comes back, one call per slot
//! and lease is tried. A probe whose response streams for longer than its lease counts by its head.
//!
//! # A breaker for each key
//!
//! With [`per_key`](CircuitBreakerBuilder::per_key) every upstream ([`Key::Authority`](crate::Key::Authority): the host
//! that a client calls), route or tenant has a breaker of its own, and one that is down shuts the door to no other.
//! Each has its own state, window and probes. They share the name, the numbers and what is told of them.
//!
//! ```
//! use buttress::{CircuitBreakerLayer, Key, State};
//! use http::{HeaderName, Request, Response, StatusCode};
//! use http_body_util::Empty;
//! use std::convert::Infallible;
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A proxy that says in a header where a request goes.
//! let breaker = CircuitBreakerLayer::builder()
//!     .consecutive_failures(3)
//!     .per_key(Key::Header(HeaderName::from_static("x-upstream")))
//!     .build()?;
//! let proxy = service_fn(|request: Request<Empty<bytes::Bytes>>| async move {
//!     let is_down = request.headers()["x-upstream"] == "ledger";
//!     let mut response = Response::new(Empty::<bytes::Bytes>::new());
//!     *response.status_mut() = if is_down { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
//!     Ok::<_, Infallible>(response)
//! });
//! let proxy = breaker.layer(proxy);
//! let call = |to| proxy.clone().oneshot(Request::get("/").header("x-upstream", to).body(Empty::new()).unwrap());
//! for _ in 0..3 {
//!     assert_eq!(call("ledger").await?.status(), StatusCode::BAD_GATEWAY);
//! }
//! assert_eq!(call("ledger").await?.status(), StatusCode::SERVICE_UNAVAILABLE);
//! assert_eq!(call("mail").await?.status(), StatusCode::OK);
//!
//! let handle = breaker.handle();
//! assert_eq!((handle.snapshot().keys, handle.snapshot().open_keys), (2, 1));
//! // At three in the morning.
//! let ledger = handle.for_key("ledger").expect("it has been called");
//! assert_eq!(ledger.snapshot().state, State::Open);
//! ledger.force_closed()?;
//! assert_eq!(call("ledger").await?.status(), StatusCode::BAD_GATEWAY);
//! # Ok(()) }
//! ```
//!
//! - [`max_keys`](CircuitBreakerBuilder::max_keys) of them have a breaker of their own: some 1.2 KB each whatever the
//!   key (0.8 with a count window), half a kilobyte more once it was half-open, and with a count window one more for
//!   each of failed and slow calls once there was one. New keys push nobody out. As long as nobody makes room they
//!   share a fixed number of breakers, so that one of them that fails may refuse others that are as new; they get their
//!   own, which begins closed, at a call after there is room, after a second at most.
//! - A breaker makes room when it says the same as a new one: closed, with nothing in its window and no run of failures
//!   that counts. A window of calls does not age: one with successes alone goes a minute after its last call. Any other
//!   goes when nobody has called it for an hour, but no open one before its open time is over. What runs, what a handle
//!   holds and what was forced by hand stays.
//! - A request without a key is refused with [`KeyMissing`](crate::Reason::KeyMissing), a 429, or what
//!   [`missing_key`](CircuitBreakerBuilder::missing_key) says. One that is not limited counts in no breaker (in the
//!   metric of all calls it does).
//! - The key is seen in `call`, so the inner service was polled ready before; a refusal gives that readiness back. A
//!   failed readiness is of no key and opens nothing. Only what holds for all keys, forced open, is known before.
//! - Plain services have no heads to see: all their calls share one breaker, known before readiness as ever.
//! - The [handle](CircuitBreakerHandle) reads and moves all at once, and keys to come begin in what all were forced to,
//!   until [`reset`](CircuitBreakerHandle::reset). [`for_key`](CircuitBreakerHandle::for_key) gives the handle of one.
//! - An [event](crate::observe::Event) of a change of state says of which key; all moved at once are one event more,
//!   without a key. So do not key breakers by a secret: by an API key, or by the path of a link that lets its holder
//!   in.
//!
//! # Cost
//!
//! No lock and no allocation; with a time window one clock read a call. A state is one word, a window is counters that
//! are changed by compare-and-swap. In a time window successes are counted in a stripe per thread, so threads do not
//! fight over them; a count window is one order of calls for all, and its line goes from core to core. With a key also
//! a clock read, one hash, a lock that calls share, and one count of who holds the breaker of the key. Only a new key
//! allocates, the first probe of one, and what `key_fn` returns. Memory: about 4 KiB and half a KiB more for each core,
//! whatever the length of a time window and its traffic; 2 KiB more once a count window was used.
//!
//! # Cancel safety
//!
//! Dropping the response future or body gives the permit or the probe's slot back and counts as `cancelled`, which says
//! nothing about the backend. A panic of the inner service is a failure.

mod breaker;
mod by_hand;
#[cfg(feature = "http")]
mod by_key;
mod call;
mod common;
mod config;
mod facts;
#[cfg(feature = "http")]
mod for_all;
mod future;
mod handle;
mod layer;
pub(crate) mod machine;
mod open_time;
mod service;
mod snapshot;
mod state;
mod success;

pub use self::{
    config::{CircuitBreakerBuilder, CircuitBreakerConfig, Window},
    future::ResponseFuture,
    handle::{CircuitBreakerHandle, IllegalMove},
    layer::CircuitBreakerLayer,
    open_time::OpenTime,
    service::CircuitBreaker,
    snapshot::CircuitBreakerSnapshot,
    state::State,
};
