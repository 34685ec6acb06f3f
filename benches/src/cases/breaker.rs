//! Circuit breakers: closed, where every call succeeds, and open, where every call is refused.
//!
//! "(api)" has no tower layer: it is called through its own function for futures, so it is spared the cost of one.

use std::{thread, time::Duration};

use buttress::{CircuitBreakerBuilder, CircuitBreakerLayer, Key, OpenTime};
use failsafe::{backoff, failure_policy, futures::CircuitBreaker as _};
use recloser::{AsyncRecloser, Recloser};
use tower::{Layer, Service, service_fn};
use tower_resilience::circuitbreaker::{
    CircuitBreakerConfigBuilder, CircuitBreakerLayer as Resilience, SlidingWindowType,
};

use crate::{
    case::{Case, Judge},
    cases::bare::{self, Bare},
    drive::{http, plain, tripped},
};

const TIME: &str = "breaker/closed buttress time 10s";
/// Longer than any run: what is open stays open.
const OPEN: Duration = Duration::from_secs(3600);

pub fn cases() -> Vec<Case> {
    [closed(), open()].concat()
}

fn closed() -> Vec<Case> {
    vec![
        Case::new(TIME, || plain(ours(time()))).judged(Judge::AtMost(170.0)).on_threads(),
        Case::new("breaker/closed buttress count100", || plain(ours(count())))
            .judged(Judge::AtMost(120.0))
            .on_threads(),
        Case::new("breaker/closed buttress time 10s, slow calls", || plain(ours(slow()))),
        Case::new("breaker/closed buttress time 10s http", || http(layer(time()).layer(Bare), bare::http_request))
            .over(bare::HTTP),
        Case::new("breaker/closed buttress per key http", || {
            http(layer(time().per_key(Key::GrpcMethod)).layer(Bare), bare::http_request)
        })
        .over(bare::HTTP),
        Case::new("breaker/closed tower-resilience count100", || plain(resilience(count100())))
            .judged(Judge::RatioTo(TIME))
            .on_threads(),
        Case::new("breaker/closed tower-resilience time 10ms-window", || plain(resilience(time_10ms())))
            .judged(Judge::RatioTo(TIME))
            .on_threads(),
        Case::new("breaker/closed recloser ring100 (api)", || plain(ring100()))
            .judged(Judge::RatioTo(TIME))
            .on_threads(),
        Case::new("breaker/closed failsafe consecutive (api)", || plain(consecutive()))
            .judged(Judge::RatioTo(TIME))
            .on_threads(),
        Case::new("breaker/closed failsafe success-rate 30s (api)", || plain(success_rate(30)))
            .judged(Judge::RatioTo(TIME))
            .on_threads(),
    ]
}

fn open() -> Vec<Case> {
    vec![
        Case::new("breaker/open buttress", || plain(tripped(ours(time()))))
            .judged(Judge::AtMost(100.0))
            .refuses()
            .on_threads(),
        // Not on two threads: a lock that is taken costs it a timer of 1 ms, and nobody drives timers here.
        Case::new("breaker/open tower-resilience count100", || plain(tripped(resilience(count100())))).refuses(),
        Case::new("breaker/open recloser ring100 (api)", || plain(tripped(ring100()))).refuses().on_threads(),
        Case::new("breaker/open failsafe consecutive (api)", || plain(tripped(consecutive()))).refuses().on_threads(),
        Case::new("breaker/open failsafe success-rate 1s (api)", || plain(opened_success_rate()))
            .refuses()
            .on_threads(),
    ]
}

fn layer(builder: CircuitBreakerBuilder) -> CircuitBreakerLayer {
    builder.open(OpenTime::Fixed(OPEN)).build().expect("a valid configuration")
}

fn ours(builder: CircuitBreakerBuilder) -> impl Peer {
    layer(builder).plain().layer(Bare)
}

fn time() -> CircuitBreakerBuilder {
    CircuitBreakerLayer::builder().time_window(Duration::from_secs(10))
}

fn count() -> CircuitBreakerBuilder {
    CircuitBreakerLayer::builder().count_window(100)
}

/// Asks for the latency too: one more clock read.
fn slow() -> CircuitBreakerBuilder {
    time().slow_calls(Duration::from_secs(1), 0.5)
}

/// A service that is ready to be driven.
trait Peer: Service<u64> + Clone + Send + Sync + 'static {}
impl<S: Service<u64> + Clone + Send + Sync + 'static> Peer for S {}

fn resilience(config: CircuitBreakerConfigBuilder) -> impl Peer {
    config.wait_duration_in_open(OPEN).build().expect("a valid configuration").layer(Bare)
}

fn count100() -> CircuitBreakerConfigBuilder {
    Resilience::builder().sliding_window_size(100).failure_rate_threshold(0.5)
}

/// It keeps a record of every call in the window and goes through all of them in every call: its cost grows with the
/// throughput; and under valgrind far fewer calls fit into 10 ms than outside.
fn time_10ms() -> CircuitBreakerConfigBuilder {
    Resilience::builder()
        .sliding_window_type(SlidingWindowType::TimeBased)
        .sliding_window_duration(Duration::from_millis(10))
        .failure_rate_threshold(0.5)
}

fn ring100() -> impl Peer {
    let breaker = Recloser::custom().error_rate(0.5).closed_len(100).open_wait(OPEN).build();
    let breaker = AsyncRecloser::from(breaker);
    service_fn(move |request| breaker.call(Bare.call(request)))
}

fn consecutive() -> impl Peer {
    let policy = failure_policy::consecutive_failures(5, backoff::constant(OPEN));
    let breaker = failsafe::Config::new().failure_policy(policy).build();
    service_fn(move |request| breaker.call(Bare.call(request)))
}

fn success_rate(seconds: u64) -> impl Peer {
    let window = Duration::from_secs(seconds);
    let policy = failure_policy::success_rate_over_time_window(0.5, 20, window, backoff::constant(OPEN));
    let breaker = failsafe::Config::new().failure_policy(policy).build();
    service_fn(move |request| breaker.call(Bare.call(request)))
}

/// It does not open before it is one window old, whatever fails.
fn opened_success_rate() -> impl Peer {
    let young = success_rate(1);
    thread::sleep(Duration::from_secs(1));
    tripped(young)
}
