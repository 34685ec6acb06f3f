//! The slowest calls are slow by chance: ask twice.
//!
//! Of a hundred calls one waits for a full queue, a pause of the garbage collector, a packet that was lost. A second
//! attempt, sent when the first one takes longer than nearly all do, mostly finds none of that: the tail is cut for a
//! few percent more load. But a backend that is slow because it has too much to do is slow for all, and twice the calls
//! are its end. The law: **further attempts are sent only for requests that may be sent twice, only once it is known
//! when they are of use, and within one budget; the first success is the call's, and all other attempts end with it.**
//!
//! ```
//! use buttress::{Budget, HedgeLayer};
//! use std::{convert::Infallible, time::Duration};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Hangs on its first call.
//! let calls = std::sync::atomic::AtomicU32::new(0);
//! let backend = service_fn(|question: &'static str| {
//!     let first = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
//!     async move {
//!         if first {
//!             std::future::pending::<()>().await;
//!         }
//!         Ok::<_, Infallible>(question.len())
//!     }
//! });
//! let hedge = HedgeLayer::builder()
//!     .name("search")
//!     .after(Duration::from_millis(50)) // or `.quantile(0.95)`
//!     .budget(Budget::new(0.05, 1, Duration::from_secs(10))?)
//!     .build()?
//!     .plain();
//! assert_eq!(hedge.layer(backend).oneshot("what?").await?, 5);
//! let figures = hedge.handle().snapshot();
//! assert_eq!((figures.calls, figures.hedges, figures.won), (1, 1, 1));
//! # Ok(()) }
//! ```
//!
//! # When
//!
//! After a fixed time, or after a quantile of what first attempts took in the last 30 to 40 s. Both count from when
//! somebody first had to wait. A quantile is at most 3.2 % too high, and no more than 68 s.
//!
//! What is measured: first attempts for which somebody had to wait. One that lost counts with the time for which it was
//! waited for, so that hedging does not make its own delay shorter; and so does one whose caller gave up when the next
//! attempt's turn had come, so that a timeout further out does not hide that the backend is slow.
//!
//! These numbers can change while it runs: [`HedgeHandle::update`] takes a [`HedgeConfig`].
//!
//! | an attempt | and then |
//! |---|---|
//! | succeeds | the call is over; the others are dropped |
//! | takes longer than the delay | the next one is sent beside it, up to [`max`](HedgeBuilder::max) |
//! | fails, and another one may help (see [retry](crate::retry#what-is-made-again)) | the next one is sent at once |
//! | is throttled, or refused by a policy further in, or the server names a time to come back (`Retry-After`, `grpc-retry-pushback-ms`, `RetryInfo`) | no further one is sent; those that run go on (but after an instance that drains, by the header `x-rejected`, the next one is sent at once) |
//! | fails otherwise: an HTTP 500, a gRPC INTERNAL | the call is over with that |
//!
//! When all have failed, the failure that came last comes back. That an instance is not ready for a further attempt is
//! a failure only when nothing else runs. No attempt is sent after the caller's [`Deadline`](crate::Deadline)
//! (extension, ambient or `grpc-timeout`), and a call that comes after it is refused.
//!
//! # What is sent twice
//!
//! On HTTP requests with an idempotent method (GET, HEAD, OPTIONS, TRACE, PUT, DELETE), with
//! [`any_method`](HedgeBuilder::any_method) all. On gRPC all, for a call does not say whether it may be repeated: give
//! the methods that may not a client without this layer. In the other forms all; `clone_with` can say no to some.
//!
//! The request's body is recorded as it is sent, up to [`replay_cap`](HedgeBuilder::replay_cap)
//! ([`Replay`](crate::Replay)). Past it there is no further attempt, and of several that run the first to pass it
//! stays. On gRPC further attempts say what they are in `grpc-previous-rpc-attempts`. An error in early gRPC trailers
//! is seen: after the head the body is looked into once, without waiting.
//!
//! # Losers
//!
//! They are dropped before the answer is given, with their response bodies and all they hold: a bulkhead inside has its
//! permits back, and policies inside see a caller that left, whatever timeout there is around.
//!
//! Over HTTP/2 each is a stream that is reset, and peers (and the client's own side) count those: where one connection
//! carries hundreds of hedges a second, the limit against floods of resets may end it, and all that runs on it. Spread
//! calls over several channels, raise the limits (`http2_max_pending_accept_reset_streams` and
//! `http2_max_local_error_reset_streams` of the servers and clients of hyper and tonic), or hedge later. A retry
//! outside takes up what ends that way.
//!
//! # Within a retry
//!
//! Put it inside: then one attempt of the retry is one group of attempts here, and what fails as a whole is made again
//! after a backoff. (A retry inside a hedge sends each hedge three times.) Give both the same
//! [`Budget`](crate::Budget): each further attempt of either is taken from it, and **each call pays into it once**: the
//! retry does, and a hedge that it calls or polls on the same budget does not. Where something between them makes the
//! inner call in a task of its own (a buffer), the hedge can't see that and pays for each attempt of the retry too. Let
//! the budget be small ([how large](crate::budget)): where the backend is slow because it has much to do, the hedge
//! uses all of it.
//!
//! Of [`Budget::tokens`](crate::Budget::tokens) each attempt that failed takes one, and a success gives back its share.
//! A further attempt takes none, but there have to be enough for it.
//!
//! Outside of both: a timeout for the whole call. Inside: a timeout, a breaker, a bulkhead for each attempt.
//!
//! Under shadow nothing is sent twice, and `would_have_hedged` counts.
//!
//! # Cost
//!
//! A call keeps an instance of the inner service (a clone, which is not ready and holds nothing) and what its request
//! can be made again from. Plain: no allocation beside those of the request's own `clone`, and none for the second
//! attempt, which has its place in the future; each one after the second is one allocation (and one more for the list
//! of them). HTTP and gRPC: the copied head, the record of the body (nothing for an empty one, two or three allocations
//! for another), and on gRPC one to look into a body. The timer is made when the first attempt is not ready at once. A
//! quantile takes 23 KiB a layer.
//!
//! # Cancel safety
//!
//! Dropping the response future drops every attempt that runs, nothing more is sent, and what was taken from the budget
//! for an attempt that was not made goes back. The first attempt is made on the instance that was polled ready, each
//! further one on an instance of its own that is polled ready before.
//!
//! Deferred requests as in Dean and Barroso, "The Tail at Scale" (2013); rules of failures and pushback as in gRFC A6.

mod config;
mod delay;
mod future;
mod handle;
mod hedger;
mod layer;
mod service;

pub use self::{
    config::{HedgeBuilder, HedgeConfig},
    future::ResponseFuture,
    handle::{HedgeHandle, HedgeSnapshot},
    layer::HedgeLayer,
    service::Hedge,
};
