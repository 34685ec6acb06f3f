//! What failed once may work the second time.
//!
//! A connection that broke, a server that was just being replaced, one bad instance of ten: most failures are short,
//! and a caller that tries again never tells its own caller. But each retry is load, it comes when there is the least
//! room for it, and a request may take effect twice. The law: **a call is made again only where that is safe and can
//! help, within one budget for all calls, and never past the caller's deadline.**
//!
//! ```
//! use buttress::{Budget, RetryLayer, TimeoutLayer};
//! use std::time::Duration;
//! use tonic::transport::Endpoint;
//! use tonic_health::pb::health_client::HealthClient;
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = Endpoint::from_static("http://127.0.0.1:50051").connect_lazy();
//! let retry = RetryLayer::builder()
//!     .name("health")
//!     .attempts(3) // in all
//!     .budget(Budget::new(0.1, 2, Duration::from_secs(10))?)
//!     .build()?;
//! let client = HealthClient::new(
//!     ServiceBuilder::new()
//!         .layer(retry)
//!         .layer(TimeoutLayer::builder().after(Duration::from_millis(300)).build()?) // of each attempt
//!         .service(channel),
//! );
//! # drop(client);
//! # Ok(()) }
//! ```
//!
//! # What is made again
//!
//! | | made again | not |
//! |---|---|---|
//! | gRPC | UNAVAILABLE, and a connection that breaks; RESOURCE_EXHAUSTED with a hint | every other code; whatever follows a message |
//! | HTTP | 502, 503, 504; 429 with a hint; an error of the transport | every other status; other methods than GET, HEAD, OPTIONS, TRACE, PUT, DELETE |
//! | plain | [`Failure`](crate::Outcome) | `Throttled` and the rest |
//! | everywhere | a timeout made further in | a refusal made further in: an open breaker says that it is of no use |
//!
//! - What certainly never reached the backend is sent again whatever its method: a connection that could not be made,
//!   an HTTP/2 stream that was refused or came after a GOAWAY. That is known, with the features `hyper` and `tonic`, of
//!   hyper's pooling client and of a tonic channel, and of an `io::Error` (boxed or not) that is `ConnectionRefused`
//!   itself. Other kinds say nothing: a connection in use may end as unreachable, too.
//! - A gRPC stream that was reset has the code that the specification (and tonic) gives to the one of HTTP/2: a refused
//!   one is UNAVAILABLE, others are CANCELLED (a handler that panics), INTERNAL or RESOURCE_EXHAUSTED. For that the
//!   feature `tonic` or `hyper` is needed; other errors of the transport, and all without them, are UNAVAILABLE.
//! - [`any_method`](RetryBuilder::any_method) and [`retry_idempotency_key`](RetryBuilder::retry_idempotency_key) widen
//!   that. With an own classification ([`RetryLayer::classify`]) every HTTP or gRPC response that it calls a `Failure`
//!   by its head is made again (by the trailers, on gRPC).
//! - An error in early gRPC trailers is seen: after the head the body is looked into once, without waiting (unless
//!   [`peek`](RetryBuilder::peek) says how long).
//! - The request's body is recorded as it is sent, up to [`replay_cap`](RetryBuilder::replay_cap)
//!   ([`Replay`](crate::Replay)). Past it the attempt that runs goes on, and there is no further one, unless it
//!   certainly never reached the backend and nothing of the body was read.
//! - A failed HTTP/1.1 response of at most 16 KiB (or of unknown length, and then so much of it) is read while the
//!   retry waits, for 50 ms at most: then its connection can be used again.
//!
//! # When
//!
//! After a [`Backoff`], or when the server says: `Retry-After` in seconds or as a date, `grpc-retry-pushback-ms`,
//! `RetryInfo`. A pushback that is negative or can't be read means "no". Hints are capped by
//! [`max_hint`](RetryBuilder::max_hint).
//!
//! When an instance that drains will be back (the header `x-rejected` says that it does) does not count after the first
//! attempt of three or more, for another one may take the call now. After a further one it does, for that may have been
//! the same; where there is not the time for it, a backoff comes as usual.
//!
//! A delay of zero costs no timer; after each 32 attempts of a call other tasks get their turn all the same.
//!
//! These numbers can change while it runs: [`RetryHandle::update`] takes a [`RetryConfig`].
//!
//! # How much
//!
//! All calls of a layer, and of all layers that share it, draw on one [`Budget`](crate::Budget): by default a fifth of
//! the calls and one a second. Each attempt is taken from it before its wait begins.
//!
//! The caller's [`Deadline`](crate::Deadline) (extension, ambient or `grpc-timeout`) bounds all of it:
//!
//! | | and then |
//! |---|---|
//! | the call comes after its deadline | it is refused |
//! | a wait would end after it, or leave less time than the median attempt takes (of those of the last 30 to 40 s that ended well and had to be waited for, once there are 10) | the last real answer comes back at once |
//! | the instance for a further attempt is not ready by then, and the last answer was an error or had no body to come | that comes back, without its extensions, for one may be a connection |
//! | the same, and the last answer was given up | the call is refused |
//!
//! # What is told
//!
//! Every response of the HTTP form carries [`Attempts`]: how many there were, and why not more. Each attempt that ends
//! is an event; one that is dropped with its call is not, for nobody knows how it would have ended.
//!
//! Further attempts say which they are in `grpc-previous-rpc-attempts`, and in a header of your own
//! ([`attempt_header`](RetryBuilder::attempt_header)); those of a retry further out are counted in (where it has a
//! hedge inside, what that has sent beside each other is one to it). A server reads that with a
//! [`PreviousAttemptsLayer`].
//!
//! # Order
//!
//! Outside of a retry: a timeout for the whole call, a breaker that counts calls. Inside: a timeout for each attempt, a
//! breaker or a bulkhead that counts attempts. Two retries, one in the other, multiply: nine attempts of three. Under
//! shadow the first answer is passed on, and the event tells what delay there would have been.
//!
//! Of a timeout around it a retry knows on gRPC, by `grpc-timeout`. Over HTTP it waits on until that runs out, and the
//! answer is lost: a [`Deadline`](crate::Deadline) on the request, or a
//! [`DeadlineLayer`](crate::DeadlineLayer), gives it the last answer in time. And a call that waits to be made again is
//! under way to all that is around it: a bulkhead there is full of those that a server has told to come back later.
//!
//! # Cost
//!
//! A call keeps an instance of the inner service (a clone, which is not ready and holds nothing) and what its request
//! can be made again from. Plain: no allocation beside those of the request's own `clone`. HTTP and gRPC: the copied
//! head, the record of the body (nothing for an empty one, two or three allocations for another), three for
//! [`Attempts`] in the response's extensions, and on gRPC one to look into a body. `attempts(1)` keeps nothing.
//!
//! # Cancel safety
//!
//! Dropping the response future drops the attempt that runs, nothing more is sent, and what was taken from the budget
//! for an attempt that was not made goes back. The inner service is polled ready before each attempt, on the instance
//! that makes it; if that fails the call ends with that error.

mod attempts;
mod backoff;
mod config;
mod future;
mod handle;
mod layer;
#[cfg(feature = "http")]
mod previous;
mod retrier;
mod service;
mod settings;
mod verdict;

#[cfg(feature = "http")]
pub use self::previous::{PreviousAttempts, PreviousAttemptsFuture, PreviousAttemptsLayer, WithPreviousAttempts};
pub(crate) use self::verdict::Verdict;
pub use self::{
    attempts::{Attempts, Stopped},
    backoff::{Backoff, Jitter},
    config::{RetryBuilder, RetryConfig},
    future::ResponseFuture,
    handle::{RetryHandle, RetrySnapshot},
    layer::RetryLayer,
    service::Retry,
    verdict::Retryable,
};
