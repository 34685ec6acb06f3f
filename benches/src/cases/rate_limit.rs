//! Rate limits: calls that are let through, calls that are refused, and one quota for each of 10,000 keys.
//!
//! Keys are numbers in the plain form: there the target is for the limit and its table. Over HTTP finding the key comes
//! to it, a header here, which takes as much again.
//!
//! "(fn)" has no tower layer: it is a check before the call, so it is spared the cost of one. governor's own clock
//! spends a part of a second finding out how fast it is, which is more instructions than all calls together and never
//! the same: here it has the clock that we have. tower_governor takes no other, so its figure is good for its size and
//! no more.

use std::{
    cell::Cell,
    num::NonZero,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use buttress::{Key, Quota, RateLimitBuilder, RateLimitLayer};
use governor::{RateLimiter, clock::MonotonicClock, middleware::NoOpMiddleware, state::keyed::DashMapStateStore};
use http::{HeaderName, HeaderValue, Request};
use tower::{Layer, Service, ServiceBuilder, service_fn};
use tower_governor::{GovernorError, GovernorLayer, governor::GovernorConfigBuilder, key_extractor::KeyExtractor};

use crate::{
    case::{Case, Clients, Judge},
    cases::bare::{self, Bare, Failed},
    drive::{self, NoBody, http, plain, tripped},
};

const DIRECT: &str = "rate/admitted buttress";
const KEYED: &str = "rate/keyed-10k buttress http";
const KEYED_PLAIN: &str = "rate/keyed-10k buttress";
const NUMBERS_BARE: &str = "bare/plain with one of 10k keys";
const KEYED_BARE: &str = "bare/http with one of 10k keys";
const AXUM_BARE: &str = "bare/http with one of 10k keys and a body of axum";
const KEYS: usize = 10_000;
/// More than any run asks for.
const PLENTY: u32 = 1_000_000_000;
const HOUR: Duration = Duration::from_secs(3_600);

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(DIRECT, || plain(ours(plenty()))).judged(Judge::AtMost(160.0)).on_threads(),
        Case::new("rate/admitted buttress http", || http(layer(plenty()).layer(Bare), bare::http_request))
            .over(bare::HTTP),
        Case::new("rate/admitted governor (fn)", || plain(governor(PLENTY)))
            .judged(Judge::RatioTo(DIRECT))
            .on_threads(),
        Case::new("rate/admitted tower RateLimit", || {
            one(|| ServiceBuilder::new().rate_limit(u64::MAX, HOUR).service(Bare))
        })
        .judged(Judge::RatioTo(DIRECT)),
        Case::new("rate/refused buttress", || {
            plain(tripped(ours(RateLimitLayer::builder().quota(Quota::per(1, HOUR)))))
        })
        .refuses()
        .on_threads(),
        Case::new("rate/refused governor (fn)", || plain(tripped(governor(1)))).refuses().on_threads(),
        Case::new(KEYED_BARE, || requests(Bare)).over(KEYED_BARE),
        Case::new(NUMBERS_BARE, || numbers(Bare)).over(NUMBERS_BARE),
        Case::new(AXUM_BARE, || requests(WithAxumBody)).over(AXUM_BARE),
        Case::new(KEYED, || requests(layer(plenty().per_key(Key::Header(KEY)).max_keys(2 * KEYS)).layer(Bare)))
            .over(KEYED_BARE)
            .on_threads(),
        Case::new(KEYED_PLAIN, || {
            let layer = plenty().max_keys(2 * KEYS).build_plain_per_key(|key: &u64| Some((*key).into()));
            numbers(layer.expect("a valid configuration").layer(Bare))
        })
        .over(NUMBERS_BARE)
        .judged(Judge::AtMost(300.0))
        .on_threads(),
        Case::new("rate/keyed-10k governor by number (fn)", || numbers(number_governor()))
            .over(NUMBERS_BARE)
            .judged(Judge::RatioTo(KEYED_PLAIN))
            .on_threads(),
        Case::new("rate/keyed-10k governor (fn)", || requests(keyed_governor()))
            .over(KEYED_BARE)
            .judged(Judge::RatioTo(KEYED))
            .on_threads(),
        Case::new("rate/keyed-10k tower_governor", || requests(tower_governor()))
            .over(AXUM_BARE)
            .judged(Judge::RatioTo(KEYED))
            .on_threads(),
    ]
}

const KEY: HeaderName = HeaderName::from_static("x-api-key");

fn layer(builder: RateLimitBuilder) -> RateLimitLayer {
    builder.build().expect("a valid configuration")
}

fn plenty() -> RateLimitBuilder {
    RateLimitLayer::builder().quota(Quota::per_second(PLENTY))
}

/// A service that is ready to be driven.
trait Peer: Service<u64> + Clone + Send + Sync + 'static {}
impl<S: Service<u64> + Clone + Send + Sync + 'static> Peer for S {}

fn ours(builder: RateLimitBuilder) -> impl Peer {
    layer(builder).plain().layer(Bare)
}

fn governor(burst: u32) -> impl Peer {
    let quota =
        governor::Quota::with_period(if burst == 1 { HOUR } else { Duration::from_nanos(1) }).expect("not zero");
    let quota = quota.allow_burst(NonZero::new(burst).expect("not zero"));
    let limiter = Arc::new(RateLimiter::direct_with_clock(quota, MonotonicClock));
    service_fn(move |request: u64| {
        let admitted = limiter.check().is_ok();
        Bare.call(if admitted { request } else { drive::BAD })
    })
}

/// A service that is no `Clone`, for one thread.
fn one<S: Service<u64> + 'static>(make: fn() -> S) -> Clients {
    Box::new(move || drive::own(make()))
}

type NumberGovernor = RateLimiter<u64, DashMapStateStore<u64>, MonotonicClock, NoOpMiddleware<Instant>>;

fn number_governor() -> impl Peer {
    let quota = governor::Quota::per_second(NonZero::new(PLENTY).expect("not zero"));
    let limiter = Arc::new(NumberGovernor::dashmap_with_clock(quota, MonotonicClock));
    service_fn(move |key: u64| {
        assert!(limiter.check_key(&key).is_ok());
        Bare.call(key)
    })
}

type KeyedGovernor = RateLimiter<Vec<u8>, DashMapStateStore<Vec<u8>>, MonotonicClock, NoOpMiddleware<Instant>>;

fn keyed_governor() -> impl Service<Request<NoBody>> + Clone + Send + Sync + 'static {
    let quota = governor::Quota::per_second(NonZero::new(PLENTY).expect("not zero"));
    let limiter = Arc::new(KeyedGovernor::dashmap_with_clock(quota, MonotonicClock));
    for key in keys() {
        let _ = limiter.check_key(&key.as_bytes().to_vec());
    }
    service_fn(move |request: Request<NoBody>| {
        // Its keys are owned: looking one up takes a copy.
        let admitted =
            request.headers().get(KEY).is_some_and(|key| limiter.check_key(&key.as_bytes().to_vec()).is_ok());
        assert!(admitted);
        Bare.call(request)
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ByHeader;

impl KeyExtractor for ByHeader {
    type Key = Vec<u8>;

    fn extract<T>(&self, request: &Request<T>) -> Result<Vec<u8>, GovernorError> {
        let key = request.headers().get(KEY).ok_or(GovernorError::UnableToExtractKey)?;
        Ok(key.as_bytes().to_vec())
    }
}

/// tower_governor wants a response body of axum.
#[derive(Clone)]
struct WithAxumBody;

impl Service<Request<NoBody>> for WithAxumBody {
    type Response = http::Response<axum::body::Body>;
    type Error = Failed;
    type Future = std::future::Ready<Result<Self::Response, Failed>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<NoBody>) -> Self::Future {
        std::future::ready(Ok(http::Response::new(axum::body::Body::empty())))
    }
}

fn tower_governor() -> impl Service<Request<NoBody>> + Clone + Send + Sync + 'static {
    let config = GovernorConfigBuilder::default()
        .period(Duration::from_nanos(1))
        .burst_size(PLENTY)
        .key_extractor(ByHeader)
        .finish()
        .expect("a valid configuration");
    GovernorLayer::<_, _, axum::body::Body>::new(config).layer(WithAxumBody)
}

fn keys() -> impl Iterator<Item = HeaderValue> {
    (0..KEYS).map(|n| HeaderValue::from_str(&format!("key-{n:08}")).expect("a valid value"))
}

/// Calls whose requests are one key after another, all of which have been seen.
fn numbers(service: impl Peer) -> Clients {
    for key in 1..=KEYS as u64 {
        drive::plain_once(service.clone(), key);
    }
    drive::plain_with(service, || {
        let next = Cell::new(0);
        move || {
            next.set((next.get() + 7_919) % KEYS as u64);
            next.get() + 1
        }
    })
}

/// Calls with one key after another, all of which have been seen.
fn requests<S>(service: S) -> Clients
where
    S: Service<Request<NoBody>> + Clone + Send + Sync + 'static,
{
    let keys: Arc<[HeaderValue]> = keys().collect();
    for key in &*keys {
        drive::http_once(service.clone(), with_key(key));
    }
    drive::http_with(service, move || {
        let (keys, next) = (Arc::clone(&keys), Cell::new(0_usize));
        move || {
            // Far apart, so that neighbours in memory are no neighbours in time.
            next.set((next.get() + 7_919) % KEYS);
            with_key(&keys[next.get()])
        }
    })
}

fn with_key(key: &HeaderValue) -> Request<NoBody> {
    let mut request = bare::http_request();
    request.headers_mut().insert(KEY, key.clone());
    request
}
