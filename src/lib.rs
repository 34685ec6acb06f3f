//! Resilience policies for [tower](https://docs.rs/tower) services: one layer for axum, tonic, hyper and everything
//! else, with no glue.
//!
//! ```
//! use axum::{Router, routing::get};
//! use buttress::{Deadline, DeadlineLayer, TimeoutLayer};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), buttress::ConfigError> {
//! // Every caller's deadline, ten seconds at most; two seconds for each call.
//! let deadline = DeadlineLayer::server(Duration::from_secs(10));
//! let timeout = TimeoutLayer::builder().name("api").after(Duration::from_secs(2)).build()?;
//! let handle = timeout.handle();
//!
//! let app: Router = Router::new()
//!     .route("/", get(|| async { format!("{:?}", Deadline::current()) }))
//!     .layer((deadline, timeout));
//!
//! println!("{} calls timed out", handle.snapshot().timed_out);
//! # drop(app); Ok(()) }
//! ```
//!
//! # Policies
//!
//! | layer | module | what it does |
//! |---|---|---|
//! | [`BulkheadLayer`] | [`bulkhead`] | bounds how many calls are in flight, and how many wait for how long |
//! | [`CircuitBreakerLayer`] | [`circuit_breaker`] | stops calling a backend that fails |
//! | [`RateLimitLayer`] | [`rate_limit`] | so many calls per so long, for all or for each key |
//! | [`AdaptiveRateLayer`] | [`adaptive_rate`] | sends as fast as a backend that throttles lets it |
//! | [`TimeoutLayer`] | [`timeout`] | bounds a call, its body, and the wait between frames |
//! | [`RetryLayer`] | [`retry`] | makes failed calls again, within a [`Budget`] and the deadline |
//! | [`HedgeLayer`] | [`hedge`] | sends a slow call a second time, within the same [`Budget`]; the first answer wins |
//! | [`FallbackLayer`] | [`fallback`] | answers when the rest failed |
//! | [`DeadlineLayer`] | [`deadline`] | takes the caller's deadline in, bounds everything below, passes it on |
//! | [`DrainLayer`] | [`drain`] | lets what runs end, and refuses what comes, before a program stops |
//!
//! A [`Registry`] knows them by name. How a layer meets HTTP, gRPC and plain services is in [`protocol`]; what it tells
//! in [`observe`].
//!
//! # Order
//!
//! Outermost first: drain, deadline, fallback, then what refuses (bulkhead, rate limit, breaker), then what repeats
//! (retry, and in it hedge), then what is for each attempt (adaptive rate, timeout). A timeout outside of what repeats
//! bounds the whole call. A policy whose refusal callers should see, such as their own rate limit, goes outside of the
//! fallback. A breaker with `slow_calls`, and a bulkhead that bounds what a client has under way, go inside of what
//! waits (retry, adaptive rate). Where the server has these policies too, see
//! [`spare_peers`](CircuitBreakerBuilder::spare_peers).
//!
//! # What every layer keeps
//!
//! - State lives in the layer, made by `build()`, and is shared by every clone and every service made from it. (axum
//!   calls `Layer::layer` for each route and each connection.)
//! - The instance that was polled ready is the one that is called; so every inner service has to be `Clone`, for a
//!   refusal after readiness. `BoxCloneService` is in; `BoxService` and `&mut S` are out: put a `Buffer` between.
//! - A layer that refuses does not touch the inner service, nor wait for it. (With keys it has been readied before: a
//!   key is seen in `call`.) So a refusal may be decided when readiness is asked for, and then it is that of the next
//!   call, whenever that comes: ask right before you call, as `oneshot` and all servers do. tower's `Steer` asks ahead
//!   of time; give it services that ask themselves, `service_fn(move |request| service.clone().oneshot(request))`.
//! - A refusal made by one policy is not a failure of the backend to the policies around it.
//! - The inner error comes back unchanged, and ours lead to their cause by `source()`.
//!
//! # Cancel safety
//!
//! Every future and every response body can be dropped at any time: what is inside is dropped with it, permits and
//! probes go back, and the call counts as cancelled, which says nothing about the backend.
//!
//! # Time
//!
//! The clock is tokio's. Under `tokio::time::pause` every policy follows virtual time. A timer is made only when a call
//! is pending; then it needs a tokio runtime with its time driver, and has that driver's precision of a millisecond
//! (rounded up).
//!
//! # Features
//!
//! | feature | what for | brings |
//! |---|---|---|
//! | `http` (default) | HTTP and gRPC | http, http-body, http-body-util, bytes, base64, httpdate, quick_cache |
//! | `hyper` | what the errors of hyper's client mean: "never sent" and why a stream was reset to a retry, an upload that its caller broke off to all that judge | hyper, hyper-util, h2 |
//! | `axum` | [`Rejection`] as an axum response; peer and route as [`Key`]s | axum without its defaults |
//! | `tonic` | [`Rejection`] as a `tonic::Status`; the peer as a [`Key`]; what the errors of a channel mean | tonic with server and channel, without the rest of its defaults; h2 |
//! | `h2` | part of the two that have a transport: by which code HTTP/2 gave up a stream | h2 |
//! | `metrics` | counters and gauges, see [`observe`] | metrics |
//! | `tracing` | events, see [`observe`] | tracing |
//! | `serde` | `Serialize` for [`RegistrySnapshot`] | serde, without its derive |
//! | `testing` | probes and laws for tests of layers | `http` |
//!
//! The feature `tonic` is for tonic 0.14, `axum` for axum 0.8. Without `http` there are the plain forms: no
//! [`DeadlineLayer`], no [`Key`], no [`LastGood`], and no rate limit or budget for each key.
//!
//! Out of scope: http 0.2 and tonic before 0.12, wasm32, runtimes without tokio's timers, judging what happens after a
//! protocol upgrade. HTTP/3 works through tower, untested.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(feature = "http"),
    allow(
        rustdoc::broken_intra_doc_links,
        rustdoc::private_intra_doc_links,
        reason = "the docs tell of the whole crate"
    )
)]

pub mod adaptive_rate;
mod bounded;
pub mod budget;
mod builder;
pub mod bulkhead;
pub mod circuit_breaker;
mod config;
pub mod deadline;
pub mod drain;
pub mod fallback;
pub mod hedge;
mod instance;
mod key;
#[doc(hidden)]
pub mod keyed;
#[cfg(loom)]
#[doc(hidden)]
pub mod loom;
pub mod observe;
mod on_panic;
mod origin;
mod outcome;
mod outline;
mod permit;
mod polled;
mod priority;
pub mod protocol;
mod queue;
pub mod rate_limit;
pub mod registry;
mod rejection;
pub mod retry;
mod rng;
mod stripe;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
pub mod timeout;
mod updating;
mod wake;
mod window;

pub use self::{
    adaptive_rate::{AdaptiveRate, AdaptiveRateBuilder, AdaptiveRateHandle, AdaptiveRateLayer, AdaptiveRateSnapshot},
    budget::Budget,
    bulkhead::{Bulkhead, BulkheadBuilder, BulkheadConfig, BulkheadHandle, BulkheadLayer, BulkheadSnapshot},
    circuit_breaker::{
        CircuitBreaker, CircuitBreakerBuilder, CircuitBreakerConfig, CircuitBreakerHandle, CircuitBreakerLayer,
        CircuitBreakerSnapshot, IllegalMove, OpenTime, State, Window,
    },
    config::{ConfigError, FieldError},
    deadline::{Deadline, Scoped},
    drain::{Drain, DrainHandle, DrainLayer, DrainSnapshot, Drained},
    fallback::{Fallback, FallbackBuilder, FallbackHandle, FallbackLayer, FallbackSnapshot},
    hedge::{Hedge, HedgeBuilder, HedgeConfig, HedgeHandle, HedgeLayer, HedgeSnapshot},
    outcome::{Classify, End, ErrFails, Outcome},
    priority::Priority,
    protocol::{BoxError, Boxed, Flat, Http, Plain, Protocol, Watch},
    rate_limit::{
        Grant, Quota, RateLimit, RateLimitBuilder, RateLimitHandle, RateLimitLayer, RateLimitSnapshot, Store,
    },
    registry::{PolicySnapshot, Registry, RegistrySnapshot},
    rejection::{Error, Reason, Rejection},
    retry::{
        Attempts, Backoff, Jitter, Retry, RetryBuilder, RetryConfig, RetryHandle, RetryLayer, RetrySnapshot, Stopped,
    },
    timeout::{Timeout, TimeoutBuilder, TimeoutConfig, TimeoutHandle, TimeoutLayer, TimeoutSnapshot, Until},
};
#[cfg(feature = "http")]
pub use self::{
    deadline::{DeadlineBuilder, DeadlineHandle, DeadlineLayer, DeadlineSnapshot, Deadlines},
    fallback::{Answer, Backup, FallbackContext, LastGood},
    key::{Key, KeyBytes, MissingKey},
    protocol::{Degraded, HttpClassify, KeyedBy, Replay, ResponseBody, default_end, default_head},
    rate_limit::LimitHeaders,
    retry::{PreviousAttempts, PreviousAttemptsLayer},
};

/// The README's code is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
