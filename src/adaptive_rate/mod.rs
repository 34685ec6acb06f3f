//! Send as fast as the backend lets you.
//!
//! A backend that throttles says that it is sent too much; a client that goes on, or comes back all at once, makes it
//! refuse work in the place of doing it. This is the client's side: no limit until the first throttled answer, then a
//! rate that drops with them, once for all that was under way, and climbs back in between. The law: **what was
//! throttled is not sent again at the rate that was too much, and a backend that has recovered is back at its full rate
//! within seconds.**
//!
//! ```
//! use buttress::AdaptiveRateLayer;
//! use std::time::Duration;
//! use tonic::transport::Endpoint;
//! use tonic_health::pb::health_client::HealthClient;
//! use tower::ServiceBuilder;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = Endpoint::from_static("http://127.0.0.1:50051").connect_lazy();
//! let rate = AdaptiveRateLayer::builder().wait(Duration::from_millis(500)).build()?;
//! let client = HealthClient::new(ServiceBuilder::new().layer(rate).service(channel));
//! # drop(client); Ok(()) }
//! ```
//!
//! - **Throttled** is 429 and RESOURCE_EXHAUSTED, or what an own classification says. The rate follows the cubic rule
//!   of the AWS SDKs (their retry mode "adaptive"): 0.7 of what was sent, then along a curve back to it and beyond,
//!   at most twice of what is really sent, never below one call in two seconds.
//! - **Hints.** `Retry-After` and `grpc-retry-pushback-ms` on a throttled answer, and `RateLimit` or
//!   `X-RateLimit-Remaining` headers that say that nothing is left: nothing is sent before
//!   ([`held_for`](AdaptiveRateSnapshot::held_for)), but after a minute at most. Where `RateLimit-Policy` shows that
//!   units come back one by one, it is what one of them takes. What can't be read is no hint, nor is what a policy of
//!   ours further in answers. (A rate limit of ours there that writes headers does so on answers of the backend too,
//!   and those count: it belongs outside.) A failure that says when to come back speaks for what has failed, such as
//!   one instance of many that drains, and stops nobody else; a retry obeys it for its own call.
//! - A call that would come too early is refused at once with [`Reason::Throttled`](crate::Reason), or waits as long as
//!   [`wait`](AdaptiveRateBuilder::wait) allows, in order and 16,384 of them at most. Nobody who waits has taken
//!   anything: a rate that drops, a hint and a rate that climbs are theirs too, and one that learns that its turn comes
//!   too late is refused then. Shadow lets them go.
//! - After its turn a call waits for the inner service until its deadline at most, and then gives its unit back; so
//!   does one that is not polled before that.
//! - Put it inside of retries: each attempt is a call to the backend. And give each host, and each tenant that the
//!   backend counts by itself, a layer of its own: what one of them is told holds all that go through it.
//! - It never forgets that it was throttled: after hours of silence the first seconds may climb from one call in two
//!   seconds.
//! - It is for backends that throttle when they are sent too much. One that throttles a few calls in a hundred whatever
//!   it is sent is sent less and less; and a `Retry-After`, which is whole seconds, holds up everything for as long, so
//!   that a small quota over HTTP is used better by a [rate limit](crate::rate_limit) of the same size on this side.
//!
//! # Cost
//!
//! Until the first throttled answer a count, some loads and a clock read a call; after it one compare-and-swap and one
//! clock read more. The rule itself stands behind a lock that is tried at most two hundred times a second, and waited
//! for only by throttled answers. A call that waits allocates once, and takes the lock of the line a few times. (One
//! that is not polled when its turn has come keeps those behind it, as with tokio's semaphore; each of them is refused
//! at its own end.)
//!
//! # Cancel safety
//!
//! Dropping a call that waits gives its place up, or, once its turn has come, its unit back. What a call that was left
//! would have said is not heard; that it was sent counts.

mod call;
mod config;
mod controller;
mod cubic;
mod future;
mod handle;
mod layer;
mod line;
mod pacer;
#[cfg(feature = "http")]
mod remaining;
mod service;

pub use self::{
    config::AdaptiveRateBuilder,
    future::ResponseFuture,
    handle::{AdaptiveRateHandle, AdaptiveRateSnapshot},
    layer::AdaptiveRateLayer,
    service::AdaptiveRate,
};
