//! So many calls per so long.
//!
//! Without a limit the client that asks most gets most, and a service that could serve all of them serves none. A rate
//! limit gives each its share: units that come back evenly, a burst that may be used at once, and a refusal that says
//! when to come back. The law: **in any stretch of time no more units are used than the burst and what came back
//! meanwhile, through however many connections, routes and threads.**
//!
//! ```
//! use axum::{Router, routing::get};
//! use buttress::{Key, LimitHeaders, Quota, RateLimitLayer};
//!
//! # fn main() -> Result<(), buttress::ConfigError> {
//! // Behind one proxy of our own: ten a second for each client, and twenty at once.
//! let limit = RateLimitLayer::builder()
//!     .quota(Quota::per_second(10).burst(20))
//!     .per_key(Key::ForwardedFor { proxies: 1 })
//!     .headers(LimitHeaders::Draft10)
//!     .build()?;
//! let app: Router = Router::new().route("/", get(|| async { "hello" })).layer(limit);
//! # drop(app); Ok(()) }
//! ```
//!
//! - **Cost.** A call takes one unit, or what [`cost_fn`](RateLimitBuilder::cost_fn) says;
//!   [`charge_fn`](RateLimitBuilder::charge_fn) corrects that once the response is there: a 304 for nothing, a failed
//!   login ten-fold.
//! - **Keys.** One quota for each [`Key`], with tiers by [`quota_fn`](RateLimitBuilder::quota_fn). A key has its state,
//!   or shares one of a fixed number of overflow states once there are more than
//!   [`max_keys`](RateLimitBuilder::max_keys); no flood of keys pushes a state out that is in use.
//! - **Waiting.** Refused at once by default. With [`wait`](RateLimitBuilder::wait) a call waits for its turn, in
//!   order, with nothing of the inner service in its hands; one that leaves lets those behind it move up at once. After
//!   its turn it waits for the inner service until its deadline at most, and then gives its unit back; so does one that
//!   is not polled before that.
//!   A unit is used when the turn comes: calls whose tasks are too busy to take their turns go late, and together.
//! - **Deadlines.** A call whose deadline has passed is refused with 504 or DEADLINE_EXCEEDED and takes no unit: nobody
//!   waits for what it would be spent on.
//! - **Answers.** 429 with `Retry-After`, or RESOURCE_EXHAUSTED with `RetryInfo`; [`LimitHeaders`] on request, on
//!   admitted responses too.
//! - **Plain services** have no heads to see: there every call takes one unit, of the one common quota, or of the quota
//!   of the key that a function finds ([`build_plain_per_key`](RateLimitBuilder::build_plain_per_key)).
//!
//! # A quota for a fleet
//!
//! [`RateLimitBuilder::store`] takes a [`Store`] that decides in the place of the layer's own. A store that answers
//! when it is first polled costs a call one allocation; while it is pending the call holds nothing of the inner
//! service. It waits until its deadline at most, and is refused then with 504 or DEADLINE_EXCEEDED.
//!
//! # Where readiness comes first
//!
//! A layer without keys and costs knows that nothing is left before a call comes, and then does not touch the inner
//! service. Where key or cost decide, the inner service was polled ready before they could be seen; a refusal gives
//! that readiness back.
//!
//! # Cost of a call
//!
//! One clock read (two where there is a deadline), one compare-and-swap, and a count on a cache line of this thread's
//! own; no lock, no allocation. With a key also one hash, and a lock that calls share, one of many; only a new key
//! allocates. What is written allocates: a header, the key that a function makes. A call that waits, and one that asks
//! a store, allocates once: what it needs for that is in a box of its own, so that the others are not moved about with
//! room for it. `charge_fn`, tiers and waiting make a key's state some 150 bytes larger, and a charge after the fact
//! takes the lock of its line.
//!
//! # Why not governor
//!
//! The algorithm is that of the crate governor (GCRA), and the tests compare with it, decision for decision. Its cells
//! can't do what is needed here: give units back, take them below zero, keep what was used when the quota changes, hand
//! out places in a line that move up; and its intervals are whole nanoseconds, so that three a second drift.
//!
//! # Cancel safety
//!
//! Dropping the response future gives the place in the line back at once. Units that were taken for a call that was
//! made stay taken; those of a call that was dropped before that go back. Two kinds do not: what a store has granted;
//! and, of a key, what a call took for which the inner service had not been asked, because a deadline had passed that
//! the call itself does not have.

#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "keys, costs and headers are for HTTP"))]
pub(crate) mod bucket;
mod config;
mod decision;
mod engine;
mod future;
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "keys, costs and headers are for HTTP"))]
pub(crate) mod gcra;
mod handle;
#[cfg(feature = "http")]
mod headers;
mod later;
mod layer;
mod limiter;
mod line;
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "keys, costs and headers are for HTTP"))]
mod local;
mod pause;
mod quota;
#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "keys, costs and headers are for HTTP"))]
mod rules;
mod service;
mod short_way;
mod steer;
mod store;
pub(crate) mod taken;
mod ticket;
mod wait;
mod waiting;

#[cfg(feature = "http")]
pub use self::headers::LimitHeaders;
pub use self::{
    config::RateLimitBuilder,
    engine::Engine,
    future::ResponseFuture,
    handle::{RateLimitHandle, RateLimitSnapshot},
    layer::RateLimitLayer,
    quota::Quota,
    service::RateLimit,
    store::{Grant, Local, Remote, Store},
};
#[cfg(feature = "http")]
pub use crate::key::{Key, MissingKey};
