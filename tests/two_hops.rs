//! Two processes that both use these policies, with a wire between them: status, headers and bodies get over it, and
//! extensions do not. In virtual time.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Method, Request, Response};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use tokio::time::{Instant, interval, sleep};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneService};

use buttress::{
    BoxError, BulkheadLayer, CircuitBreakerLayer, Deadline, HedgeLayer, HttpClassify, Outcome, Quota, RateLimitLayer,
    Registry, RetryLayer, State,
};

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Hop = BoxCloneService<Request<Body>, Response<Body>, io::Error>;

const WHOSE: HeaderName = HeaderName::from_static("x-whose");

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn asks(whose: &'static str, grpc: bool) -> Request<Body> {
    let request = Request::builder().header(WHOSE, whose);
    let request = if grpc { request.header("content-type", "application/grpc") } else { request };
    request.body(empty()).unwrap()
}

/// Of gRPC it is a trailers-only one.
fn answer(status: u16, grpc: bool) -> Response<Body> {
    let answer = Response::builder().status(status);
    let answer =
        if grpc { answer.header("content-type", "application/grpc").header("grpc-status", "0") } else { answer };
    answer.body(empty()).unwrap()
}

fn is_grpc(request: &Request<Body>) -> bool {
    request.headers().contains_key("content-type")
}

/// Answers well after this time.
fn takes(
    time: Duration,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = io::Error, Future: Send> + Clone + Send + 'static {
    service_fn(move |request| async move {
        sleep(time).await;
        Ok(answer(200, is_grpc(&request)))
    })
}

fn over_a_wire<S, B>(server: S) -> Hop
where
    S: Service<Request<Body>, Response = Response<B>, Error = io::Error, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    BoxCloneService::new(server.map_response(|mut response: Response<B>| {
        response.extensions_mut().clear();
        response.map(|body| body.map_err(io::Error::other).boxed_unsync())
    }))
}

/// Of the calls of "us", of all that are made, which share was answered well?
async fn ours<S, B>(client: S, per_second: u32, seconds: u32, grpc: bool, whose: impl Fn(u32) -> &'static str) -> f64
where
    S: Service<Request<Body>, Response = Response<B>, Error = io::Error, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    let mut beat = interval(Duration::from_secs(1) / per_second);
    let mut ours = Vec::new();
    for n in 0..per_second * seconds {
        beat.tick().await;
        let call = tokio::spawn(client.clone().oneshot(asks(whose(n), grpc)));
        if whose(n) == "us" {
            ours.push(call);
        }
    }
    let (all, mut good) = (ours.len(), 0);
    for call in ours {
        let is_good = |response: &Response<B>| match response.headers().get("grpc-status") {
            Some(status) => status == "0",
            None => response.status().is_success(),
        };
        good += usize::from(call.await.unwrap().is_ok_and(|response| is_good(&response)));
    }
    good as f64 / all as f64
}

fn breaker() -> CircuitBreakerLayer {
    CircuitBreakerLayer::builder().spare_peers(true).build().unwrap()
}

/// A server that can do 80 a second and sheds the rest is asked for three times of that.
#[tokio::test(start_paused = true)]
async fn a_server_that_sheds_is_not_down() {
    for grpc in [false, true] {
        let bulkhead = BulkheadLayer::builder().limit(8).build().unwrap();
        let server = over_a_wire(bulkhead.layer(takes(ms(100))));
        let share = ours(breaker().layer(server.clone()), 240, 20, grpc, |_| "us").await;
        assert!((0.32..0.34).contains(&share), "{share} of what is asked, where a third can be done");
        // By the default tables it is.
        let defaults = CircuitBreakerLayer::builder().build().unwrap();
        let share = ours(defaults.layer(server), 240, 20, grpc, |_| "us").await;
        assert!(share < 0.2, "{share}");
    }
}

/// One tenant has used up its quota, and half of all calls name none.
#[tokio::test(start_paused = true)]
async fn what_a_caller_does_by_itself_opens_no_breaker_for_others() {
    for grpc in [false, true] {
        let limit = RateLimitLayer::builder().quota(Quota::per_second(50));
        let key = |parts: &http::request::Parts| {
            let whose = parts.headers[WHOSE].to_str().unwrap();
            (whose != "nobody").then(|| whose.to_owned())
        };
        let server = over_a_wire(limit.key_fn(key).build().unwrap().layer(takes(ms(5))));
        let greedy = |n: u32| if n.is_multiple_of(10) { "us" } else { "greedy" };
        assert_eq!(ours(breaker().layer(server.clone()), 400, 20, grpc, greedy).await, 1.0);
        let nobody = |n: u32| if n.is_multiple_of(2) { "nobody" } else { "us" };
        assert_eq!(ours(breaker().layer(server), 80, 20, grpc, nobody).await, 1.0);
    }
}

/// A probe that meets the breaker of the next hop has learnt nothing: the open times do not add up.
#[tokio::test(start_paused = true)]
async fn breakers_behind_one_another_do_not_add_up() {
    let mut longest = ms(0);
    for seed in 0..20 {
        fastrand::seed(seed);
        let down = Arc::new(AtomicBool::new(false));
        let is_down = Arc::clone(&down);
        let database = service_fn(move |_: Request<Body>| {
            let status = if is_down.load(Relaxed) { 503 } else { 200 };
            async move { Ok::<_, io::Error>(answer(status, false)) }
        });
        let (near, far) = (breaker(), CircuitBreakerLayer::builder().build().unwrap());
        let client = near.clone().layer(over_a_wire(far.layer(database)));
        ours(client.clone(), 50, 5, false, |_| "us").await;
        down.store(true, Relaxed);
        ours(client.clone(), 50, 40 + seed as u32 * 6, false, |_| "us").await;
        down.store(false, Relaxed);
        let start = Instant::now();
        while near.handle().snapshot().state != State::Closed {
            ours(client.clone(), 50, 1, false, |_| "us").await;
        }
        longest = longest.max(start.elapsed());
    }
    // A breaker opens for a minute at most, and for a fifth more by chance.
    assert!(longest <= Duration::from_secs(73), "{longest:?}");
}

/// One instance of two drains and says when it will be back, or two of three do. The other one takes the call at once,
/// where there is a deadline; without one a second refusal would be waited out.
#[tokio::test(start_paused = true)]
async fn instances_that_drain_cost_no_call() {
    for (grpc, drain) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
        let old = Registry::new();
        let drains = over_a_wire(old.drain_layer().layer(takes(ms(20))));
        drop(old.drain());
        let (well, turn) = (over_a_wire(takes(ms(20))), Arc::new(AtomicUsize::new(0)));
        let balancer = service_fn(move |request| {
            let n = turn.fetch_add(1, Relaxed) % (drain + 1);
            if n < drain { drains.clone() } else { well.clone() }.oneshot(request)
        });
        let is_good = |response: &Response<Body>| {
            response.status() == 200 && response.headers().get("grpc-status").is_none_or(|status| status == "0")
        };
        let retry = RetryLayer::builder().build().unwrap().layer(balancer.clone());
        for _ in 0..3 {
            let mut request = asks("us", grpc);
            request.extensions_mut().insert(Deadline::after(ms(800)));
            let response = retry.clone().oneshot(request).await.unwrap().map(|_| empty());
            assert!(is_good(&response), "{response:?}");
        }
        if drain > 1 {
            continue;
        }
        // Backoff is 50 ms at most.
        let start = Instant::now();
        assert!(is_good(&retry.oneshot(asks("us", grpc)).await.unwrap().map(|_| empty())));
        assert!(start.elapsed() <= ms(100));
        let hedge = HedgeLayer::builder().after(ms(100)).build().unwrap().layer(balancer);
        let start = Instant::now();
        for _ in 0..10 {
            assert!(is_good(&hedge.clone().oneshot(asks("us", grpc)).await.unwrap().map(|_| empty())));
        }
        assert_eq!(start.elapsed(), 10 * ms(20));
    }
}

/// It is the only one that there is for this client, at the end of its one connection, and is back before it said.
#[tokio::test(start_paused = true)]
async fn one_that_drains_alone_is_waited_for() {
    for (grpc, attempts) in [(false, 2), (false, 3), (true, 2), (true, 3)] {
        let old = Registry::new();
        let (drains, new) = (over_a_wire(old.drain_layer().layer(takes(ms(1)))), over_a_wire(takes(ms(1))));
        drop(old.drain());
        let start = Instant::now();
        let one = service_fn(move |request| {
            let instance = if start.elapsed() > ms(700) { &new } else { &drains };
            instance.clone().oneshot(request)
        });
        let retry = RetryLayer::builder().attempts(attempts).build().unwrap();
        let response = retry.layer(one).oneshot(asks("us", grpc)).await.unwrap();
        assert!(response.status() == 200 && response.headers().get("grpc-status").is_none_or(|s| s == "0"));
    }
}

/// Where there is not the time for a backoff, there is none.
#[tokio::test(start_paused = true)]
async fn a_backoff_is_asked_for_once() {
    let old = Registry::new();
    let drains = over_a_wire(old.drain_layer().layer(takes(ms(1))));
    drop(old.drain());
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&asked);
    let backoff = move |_| {
        counts.fetch_add(1, Relaxed);
        ms(100)
    };
    let retry = RetryLayer::builder().backoff_fn(backoff).build().unwrap();
    let mut request = asks("us", false);
    request.extensions_mut().insert(Deadline::after(ms(50)));
    assert_eq!(retry.layer(drains).oneshot(request).await.unwrap().status(), 503);
    assert_eq!(asked.load(Relaxed), 1);
}

/// Every refusal says for what; an answer that is none does not.
#[tokio::test(start_paused = true)]
async fn a_refusal_says_its_reason() {
    let limit = RateLimitLayer::builder().quota(Quota::per_second(1)).build().unwrap();
    for grpc in [false, true] {
        let service = limit.clone().layer(takes(ms(0)));
        let reason = async || {
            let response = service.clone().oneshot(asks("us", grpc)).await.unwrap();
            response.headers().get("x-rejected").map(|reason| reason.to_str().unwrap().to_owned())
        };
        assert_eq!([reason().await, reason().await], [None, Some("rate_limited".to_owned())]);
        sleep(ms(1_000)).await;
    }
}

/// Only a refusal's own answer is one. Calls, and those of them that failed or were throttled.
#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_no_refusal() {
    for (status, header, counts) in [
        (503, "bulkhead_full", (0, 0)),
        (429, "rate_limited", (0, 0)),
        (429, "bulkhead_full", (1, 1)),
        (500, "bulkhead_full", (1, 1)),
        (200, "bulkhead_full", (1, 0)),
        (504, "timeout", (1, 1)),
        (504, "deadline_exceeded", (1, 1)),
        (503, "Bulkhead_Full", (1, 1)),
        (503, "no_reason", (1, 1)),
        (503, "", (1, 1)),
    ] {
        let breaker = breaker();
        let service = breaker.layer(service_fn(move |_: Request<Body>| async move {
            let response = Response::builder().status(status).header("x-rejected", header);
            Ok::<_, io::Error>(response.body(empty()).unwrap())
        }));
        service.oneshot(asks("us", false)).await.unwrap();
        let snapshot = breaker.handle().snapshot();
        assert_eq!((snapshot.calls, snapshot.failures), counts, "{status} {header}");
    }
    // As does the code of gRPC.
    for (code, calls) in [("8", 0), ("13", 1), ("14", 1), ("garbage", 1)] {
        let breaker = breaker();
        let service = breaker.layer(service_fn(move |_: Request<Body>| async move {
            let response = Response::builder().header("content-type", "application/grpc").header("grpc-status", code);
            Ok::<_, io::Error>(response.header("x-rejected", "bulkhead_full").body(empty()).unwrap())
        }));
        service.oneshot(asks("us", true)).await.unwrap();
        assert_eq!(breaker.handle().snapshot().calls, calls, "{code}");
    }
}

/// Nor does an own classification see it, as it does not see a refusal of our own.
#[tokio::test(start_paused = true)]
async fn a_classification_is_not_asked_about_a_refusal() {
    struct AllIsWell;
    impl HttpClassify for AllIsWell {
        fn head(&self, _: &Method, _: bool, _: &http::response::Parts) -> Option<Outcome> {
            Some(Outcome::Success)
        }
    }
    let breaker = breaker().classify(AllIsWell);
    for (header, calls) in [("bulkhead_full", 0), ("no_reason", 1)] {
        let service = breaker.clone().layer(service_fn(move |_: Request<Body>| async move {
            let response = Response::builder().status(503).header("x-rejected", header);
            Ok::<_, io::Error>(response.body(empty()).unwrap())
        }));
        service.oneshot(asks("us", false)).await.unwrap();
        assert_eq!(breaker.handle().snapshot().calls, calls, "{header}");
    }
}

/// A throttled answer into which somebody has copied the reason of another one is a throttled answer.
#[tokio::test(start_paused = true)]
async fn a_hint_of_one_that_does_not_drain_is_obeyed() {
    let first = Arc::new(AtomicBool::new(true));
    let service = RetryLayer::builder().build().unwrap().layer(service_fn(move |_: Request<Body>| {
        let throttles = first.swap(false, Relaxed);
        let response = Response::builder().status(if throttles { 429 } else { 200 });
        let response = response.header("x-rejected", "draining").header("retry-after", "5").body(empty());
        async move { Ok::<_, io::Error>(response.unwrap()) }
    }));
    let start = Instant::now();
    assert_eq!(service.oneshot(asks("us", false)).await.unwrap().status(), 200);
    assert_eq!(start.elapsed(), ms(5_000));
}

/// Callers that look at the status only are heard as ever.
#[tokio::test(start_paused = true)]
async fn a_caller_that_reads_the_status_only_opens_no_breaker() {
    let n = AtomicUsize::new(0);
    let (breaker, n) = (breaker(), Arc::new(n));
    let service = breaker.layer(service_fn(move |_: Request<Body>| {
        let status = if n.fetch_add(1, Relaxed).is_multiple_of(20) { 500 } else { 200 };
        let body = Full::new(Bytes::from_static(b"hello")).map_err(|never| match never {}).boxed_unsync();
        let response = Response::builder().status(status).header("content-length", "5");
        async move { Ok::<_, io::Error>(response.body(body).unwrap()) }
    }));
    for _ in 0..500 {
        drop(service.clone().oneshot(asks("us", false)).await.unwrap());
    }
    assert_eq!((breaker.handle().snapshot().rejected, breaker.handle().snapshot().cancelled), (0, 0));
}
