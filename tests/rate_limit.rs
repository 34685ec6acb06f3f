//! Rate limits in virtual time: exact instants, order, refunds, keys, headers, stores, the laws.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    net::SocketAddr,
    num::{NonZero, NonZeroU32},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderName, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use proptest::prelude::*;
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

use buttress::{
    Deadline, Error, Grant, Key, LimitHeaders, MissingKey, Outcome, Quota, RateLimit, RateLimitBuilder, RateLimitLayer,
    Reason, Rejection, Store,
    observe::{Event, Kind},
    testing::{OutcomesLayer, Probe},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn limit(quota: Quota) -> RateLimitBuilder {
    RateLimitLayer::builder().quota(quota)
}

type Answer = Result<Response<Empty<Bytes>>, Infallible>;

fn http()
-> impl Service<Request<()>, Response = Response<Empty<Bytes>>, Error = Infallible, Future = Ready<Answer>> + Clone {
    service_fn(|_: Request<()>| ready(Ok(Response::new(Empty::new()))))
}

fn keyed(key: &str) -> Request<()> {
    Request::builder().header("x-api-key", key).body(()).unwrap()
}

fn per_header(quota: Quota) -> RateLimitBuilder {
    limit(quota).per_key(Key::Header(HeaderName::from_static("x-api-key")))
}

/// How many of many calls are let through right now.
async fn passes<S, RB>(service: &S, request: impl Fn() -> Request<()>) -> usize
where
    S: Service<Request<()>, Response = Response<RB>, Error = Infallible> + Clone,
{
    let mut n = 0;
    while n < 1_000 && service.clone().oneshot(request()).await.unwrap().status() == 200 {
        n += 1;
    }
    n
}

async fn readied<S: Service<R, Error: std::fmt::Debug>, R>(service: &mut S) -> &mut S {
    service.ready().await.unwrap()
}

fn poll_once<F: Future + ?Sized>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

// === the quota ===

/// What `poll_ready` knew may have changed until `call`: by time, or by hand.
#[tokio::test(start_paused = true)]
async fn one_that_was_known_to_be_refused_goes_if_it_can_after_all() {
    let layer = limit(Quota::per_second(1)).build().unwrap().plain();
    let mut service = layer.layer(service_fn(|(): ()| ready(Ok::<_, Infallible>(()))));
    readied(&mut service).await.call(()).await.unwrap();
    let refused = readied(&mut service).await.call(()).await;
    let Err(Error::Rejected(rejection)) = refused else { panic!("{refused:?}") };
    assert_eq!(rejection.retry_after(), Some(ms(1_000)));
    readied(&mut service).await;
    advance(ms(1_000)).await;
    service.call(()).await.unwrap();
    readied(&mut service).await;
    layer.handle().set_quota(Quota::per_second(2)).unwrap();
    service.call(()).await.unwrap();
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.admitted, snapshot.rejected), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn units_come_back_one_by_one_on_the_dot() {
    for (quota, interval) in [(Quota::per_second(10), ms(100)), (Quota::per(3, ms(300)), ms(100))] {
        let layer = limit(quota).build().unwrap();
        let service = layer.layer(http());
        let get = Request::default;
        let burst = passes(&service, get).await;
        assert_eq!(burst, if quota == Quota::per_second(10) { 10 } else { 3 });
        advance(interval - Duration::from_nanos(1)).await;
        assert_eq!(passes(&service, get).await, 0);
        advance(Duration::from_nanos(1)).await;
        assert_eq!(passes(&service, get).await, 1);
        advance(2 * interval).await;
        assert_eq!(passes(&service, get).await, 2);
        // Idle time does not pile up (R4J, 75).
        advance(1_000 * interval).await;
        assert_eq!(passes(&service, get).await, burst);
    }
}

#[tokio::test(start_paused = true)]
async fn three_a_second_are_three_after_a_second() {
    let service = limit(Quota::per_second(3)).build().unwrap().layer(http());
    for _ in 0..100 {
        assert_eq!(passes(&service, Request::default).await, 3);
        advance(Duration::from_secs(1)).await;
    }
}

/// 77 (Tower RateLimit), refused in the place of pending.
#[tokio::test(start_paused = true)]
async fn one_per_100_ms() {
    let service = limit(Quota::per(1, ms(100))).build().unwrap().plain().layer(Probe::new());
    assert!(service.clone().oneshot(()).await.is_ok());
    let Err(Error::Rejected(rejection)) = service.clone().oneshot(()).await else { panic!("not refused") };
    assert_eq!(
        (rejection.policy(), rejection.reason(), rejection.is_refusal()),
        ("rate_limit", Reason::RateLimited, true)
    );
    assert_eq!(rejection.retry_after(), Some(ms(100)));
    advance(ms(30)).await;
    assert!(service.clone().oneshot(()).await.is_err());
    advance(ms(70)).await;
    assert!(service.clone().oneshot(()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_answer_says_when_to_come_back() {
    let layer = limit(Quota::per(1, ms(1_500))).name("api").build().unwrap();
    let service = layer.layer(http());
    assert_eq!(service.clone().oneshot(Request::default()).await.unwrap().status(), 200);
    let refused = service.clone().oneshot(Request::default()).await.unwrap();
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"2".parse().unwrap())
    );
    assert_eq!(Rejection::in_response(&refused).unwrap().name(), "api");
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        body,
        r#"{"type":"about:blank","title":"Too Many Requests","status":429,"detail":"the rate limit is reached","policy":"rate_limit","reason":"rate_limited","retry_after":1.5}"#
    );
    let grpc = Request::builder().header("content-type", "application/grpc").body(()).unwrap();
    let refused = service.oneshot(grpc).await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["grpc-status"]), (200, &"8".parse().unwrap()));
    assert_eq!(refused.headers()["grpc-retry-pushback-ms"], "1500");
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.admitted, snapshot.rejected, snapshot.would_have_rejected), (1, 2, 0));
}

/// 111: state is the layer's.
#[tokio::test(start_paused = true)]
async fn fifty_services_share_one_quota() {
    let layer = limit(Quota::per_second(10)).build().unwrap();
    let services: Vec<_> = (0..50).map(|_| layer.clone().layer(http())).collect();
    let mut passed = 0;
    for service in &services {
        passed += usize::from(service.clone().oneshot(Request::default()).await.unwrap().status() == 200);
    }
    assert_eq!(passed, 10);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_no_failure_of_the_backend() {
    let outcomes = OutcomesLayer::new();
    let service = outcomes.layer(limit(Quota::per_second(1)).build().unwrap().layer(http()));
    for _ in 0..2 {
        service.clone().oneshot(Request::default()).await.unwrap();
    }
    assert_eq!(outcomes.handle().take(), [Outcome::Success, Outcome::Ignored]);
}

#[test]
fn bad_configuration_is_named() {
    fn fields<T>(result: Result<T, buttress::ConfigError>) -> Vec<&'static str> {
        result.err().map(|e| e.fields().iter().map(|f| f.field).collect()).unwrap_or_default()
    }
    let good = Quota::per_second(1);
    assert_eq!(fields(RateLimitLayer::builder().build()), ["quota"]);
    for bad in [
        Quota::per_second(0),
        Quota::per(0, ms(1)),
        Quota::per_second(1).burst(0),
        Quota::per(1, Duration::ZERO),
        Quota::per(1, Duration::MAX),
        Quota::per(1, Duration::from_secs(365 * 24 * 3600)).burst(8),
    ] {
        assert_eq!(fields(limit(bad).build()), ["quota"], "{bad:?}");
        let layer = limit(good).build().unwrap();
        assert_eq!(fields(layer.handle().set_quota(bad)), ["quota"]);
        assert_eq!(layer.handle().snapshot().quota, good);
    }
    let all =
        limit(Quota::per_second(0)).wait(Duration::ZERO).max_keys(0).name("").per_key(Key::Forwarded { proxies: 0 });
    assert_eq!(fields(all.build()), ["name", "quota", "wait", "max_keys", "per_key"]);
    assert_eq!(fields(limit(good).per_key(Key::ConnectInfo).key_fn(|_| None).build()), ["per_key"]);
    assert_eq!(fields(limit(good).trusted([("10.0.0.0".parse().unwrap(), 33)]).build()), ["trusted"]);
    let store = limit(good).quota_fn(|_| None).charge_fn(|_| 1).store(Generous);
    assert_eq!(fields(store.build()), ["quota_fn", "charge_fn"]);
}

// === cost ===

fn by_cost(builder: RateLimitBuilder) -> RateLimitBuilder {
    builder.cost_fn(|parts| parts.headers.get("x-cost").map_or(1, |v| v.to_str().unwrap().parse().unwrap()))
}

fn costs(n: u32) -> Request<()> {
    Request::builder().header("x-cost", n).body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_call_costs_what_the_function_says() {
    let service = by_cost(limit(Quota::per_second(10))).build().unwrap().layer(http());
    let status = async |n| service.clone().oneshot(costs(n)).await.unwrap();
    assert_eq!(status(7).await.status(), 200);
    let refused = status(5).await;
    assert_eq!(Rejection::in_response(&refused).unwrap().retry_after(), Some(ms(200)));
    assert_eq!(status(3).await.status(), 200);
    for _ in 0..100 {
        assert_eq!(status(0).await.status(), 200, "free");
    }
    assert_eq!(status(1).await.status(), 429);
    let never = status(11).await;
    assert_eq!((never.status().as_u16(), never.headers().get("retry-after")), (429, None));
    let rejection = Rejection::in_response(&never).unwrap();
    assert_eq!((rejection.reason(), rejection.retry_after()), (Reason::CostAboveBurst, None));
    advance(Duration::from_secs(100)).await;
    assert_eq!(status(11).await.status(), 429);
    assert_eq!(status(10).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_charged_for_what_came_of_it() {
    // A 304 for nothing, a failed login ten-fold.
    let answers = service_fn(|request: Request<()>| {
        let status: u16 = request.headers()["x-answer"].to_str().unwrap().parse().unwrap();
        ready(Ok::<_, Infallible>(Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap()))
    });
    for per_key in [false, true] {
        let builder = limit(Quota::per_second(10)).charge_fn(|parts| match parts.status.as_u16() {
            304 => 0,
            401 => 15,
            _ => 1,
        });
        let builder = if per_key { builder.key_fn(|_| Some("k".into())) } else { builder };
        let layer = builder.headers(LimitHeaders::Draft10).build().unwrap();
        let service = layer.layer(answers);
        let status = async |status: u16| {
            let request = Request::builder().header("x-answer", status).body(()).unwrap();
            let response = service.clone().oneshot(request).await.unwrap();
            (response.status().as_u16(), response.headers()["ratelimit"].to_str().unwrap().to_owned())
        };
        for _ in 0..100 {
            assert_eq!(status(304).await, (304, "\"default\";r=10;t=0".into()));
        }
        assert_eq!(status(200).await, (200, "\"default\";r=9;t=1".into()));
        // Six below zero.
        assert_eq!(status(401).await, (401, "\"default\";r=0;t=2".into()));
        assert_eq!(status(200).await, (429, "\"default\";r=0;t=2".into()));
        advance(ms(699)).await;
        assert_eq!(status(200).await.0, 429);
        advance(ms(1)).await;
        assert_eq!(status(200).await.0, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_charge_below_zero_shuts_the_door_too() {
    let probe = Probe::new();
    let layer = limit(Quota::per_second(10)).charge_fn(|_| 12).build().unwrap();
    let mut service = layer.layer(probe.clone());
    readied::<_, Request<()>>(&mut service).await.call(Request::new(())).await.unwrap();
    probe.is_never_ready();
    let refused = readied::<_, Request<()>>(&mut service).await.call(Request::new(())).await.unwrap();
    assert_eq!(Rejection::in_response(&refused).unwrap().retry_after(), Some(ms(300)));
    assert_eq!(probe.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn never_more_than_all_comes_back() {
    let layer = limit(Quota::per_second(2)).charge_fn(|_| 0).build().unwrap();
    let slow = service_fn(|(): ()| ready(Ok::<_, Infallible>(())));
    // On a plain service there is no head to judge by: it stays charged.
    let plain = layer.clone().plain().layer(slow);
    assert!(plain.clone().oneshot(()).await.is_ok());
    assert!(plain.clone().oneshot(()).await.is_ok());
    assert!(plain.clone().oneshot(()).await.is_err());
}

// === waiting ===

/// R4J, 75: three per 10 ms, waits of up to 12 ms, nine callers; the units of GCRA come back one by one.
#[tokio::test(start_paused = true)]
async fn callers_wait_their_turn() {
    let layer = limit(Quota::per(3, ms(30))).wait(ms(30)).build().unwrap().plain();
    let service = layer.layer(service_fn(|(): ()| async { Ok::<_, Infallible>(Instant::now()) }));
    let start = Instant::now();
    let calls = join_all((0..9).map(|_| service.clone().oneshot(()))).await;
    let went: Vec<_> = calls.iter().map(|c| c.as_ref().ok().map(|at| at.duration_since(start))).collect();
    let at = |n| Some(ms(n));
    // Inclusive of the maximum: 30 ms are allowed, 40 are not.
    assert_eq!(went, [at(0), at(0), at(0), at(10), at(20), at(30), None, None, None]);
    let Err(Error::Rejected(rejection)) = &calls[8] else { panic!("not refused") };
    assert_eq!(rejection.retry_after(), Some(ms(40)), "behind all who wait");
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.admitted, snapshot.rejected, snapshot.waiting), (6, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_holds_nothing_and_calls_a_readied_instance() {
    for per_key in [false, true] {
        let probe = Probe::new();
        let builder = limit(Quota::per(1, ms(100))).wait(ms(500));
        let builder = if per_key { builder.key_fn(|_| Some("k".into())) } else { builder };
        let layer = builder.build().unwrap();
        let mut service = layer.layer(probe.clone());
        readied::<_, Request<()>>(&mut service).await.call(Request::new(())).await.unwrap();
        let call = readied::<_, Request<()>>(&mut service).await.call(Request::new(()));
        let mut call = pin!(call);
        assert_eq!(probe.held(), 0, "nothing is held, not even before the first poll");
        assert!(poll_once(call.as_mut()).is_pending());
        assert_eq!((probe.held(), probe.in_flight(), layer.handle().snapshot().waiting), (0, 0, 1));
        advance(ms(100)).await;
        // `Probe` panics when an instance is called that was not polled ready.
        call.await.unwrap();
        assert!(probe.ready_instance_was_called());
        assert_eq!((probe.held(), probe.calls(), layer.handle().snapshot().waiting), (0, 2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_leaves_lets_the_others_move_up_at_once() {
    let layer = limit(Quota::per(1, ms(100))).wait(ms(1_000)).build().unwrap().plain();
    let service = layer.layer(service_fn(|(): ()| async { Ok::<_, Infallible>(Instant::now()) }));
    let start = Instant::now();
    service.clone().oneshot(()).await.unwrap();
    let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(service.clone().oneshot(()))).collect();
    for call in &mut waiting {
        assert!(poll_once(call.as_mut()).is_pending());
    }
    assert_eq!(layer.handle().snapshot().waiting, 4);
    advance(ms(50)).await;
    drop(waiting.remove(1));
    drop(waiting.remove(0));
    let newcomer = Box::pin(service.clone().oneshot(()));
    waiting.push(newcomer);
    let went: Vec<_> = join_all(waiting).await.into_iter().map(|at| at.unwrap().duration_since(start)).collect();
    assert_eq!(went, [ms(100), ms(200), ms(300)]);
    assert_eq!(layer.handle().snapshot().admitted, 4);
}

#[tokio::test(start_paused = true)]
async fn one_that_leaves_late_gives_nothing_back_twice() {
    let layer = limit(Quota::per(1, ms(100))).wait(ms(1_000)).build().unwrap().plain();
    let service = layer.layer(service_fn(|(): ()| async { Ok::<_, Infallible>(()) }));
    service.clone().oneshot(()).await.unwrap();
    let mut late = Box::pin(service.clone().oneshot(()));
    assert!(poll_once(late.as_mut()).is_pending());
    // Its turn was at 100, and at 200 the unit is there again by itself.
    advance(ms(250)).await;
    assert!(poll_once(Box::pin(service.clone().oneshot(())).as_mut()).is_ready());
    drop(late);
    assert!(poll_once(Box::pin(service.clone().oneshot(())).as_mut()).is_pending());
}

#[tokio::test(start_paused = true)]
async fn one_whose_turn_came_and_who_leaves_before_its_call_gives_its_unit_back() {
    let probe = Probe::new();
    let layer = limit(Quota::per(1, ms(100))).wait(ms(1_000)).build().unwrap().plain();
    let mut service = layer.layer(probe.clone());
    readied::<_, ()>(&mut service).await.call(()).await.unwrap();
    let call = readied::<_, ()>(&mut service).await.call(());
    let mut call = Box::pin(call);
    assert!(poll_once(call.as_mut()).is_pending());
    probe.is_never_ready();
    advance(ms(100)).await;
    assert!(poll_once(call.as_mut()).is_pending(), "its turn has come, but the inner service is not ready");
    assert_eq!(layer.handle().snapshot().waiting, 0);
    drop(call);
    probe.answers();
    let next = readied::<_, ()>(&mut service).await.call(());
    assert!(poll_once(pin!(next)).is_ready(), "the unit is there");
}

#[tokio::test(start_paused = true)]
async fn a_refund_lets_those_who_wait_move_up() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let inner = {
        let gate = Arc::clone(&gate);
        service_fn(move |request: Request<()>| {
            let gate = Arc::clone(&gate);
            async move {
                let free = request.headers().contains_key("x-cost");
                if free {
                    gate.notified().await;
                }
                let status = if free { 304 } else { 200 };
                Ok::<_, Infallible>(Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap())
            }
        })
    };
    let builder = by_cost(limit(Quota::per_second(10))).charge_fn(|p| if p.status == 304 { 5 } else { 1 });
    let service = builder.wait(Duration::from_secs(5)).build().unwrap().layer(inner);
    let start = Instant::now();
    let mut expensive = Box::pin(service.clone().oneshot(costs(10)));
    assert!(poll_once(expensive.as_mut()).is_pending());
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(service.clone().oneshot(Request::default()))).collect();
    for call in &mut waiting {
        assert!(poll_once(call.as_mut()).is_pending());
    }
    advance(ms(50)).await;
    gate.notify_one();
    expensive.await.unwrap();
    join_all(waiting).await;
    assert_eq!(start.elapsed(), ms(50), "five came back, three wait");
}

#[tokio::test(start_paused = true)]
async fn a_wait_past_the_deadline_is_refused_at_once() {
    let layer = limit(Quota::per(1, ms(100))).wait(ms(1_000)).build().unwrap();
    let service = layer.layer(http());
    service.clone().oneshot(Request::default()).await.unwrap();
    let within = |left| {
        let mut request = Request::new(());
        request.extensions_mut().insert(Deadline::after(left));
        service.clone().oneshot(request)
    };
    let start = Instant::now();
    assert_eq!(within(ms(99)).await.unwrap().status(), 429);
    let ambient = Deadline::after(ms(99)).scope(service.clone().oneshot(Request::default()));
    assert_eq!(ambient.await.unwrap().status(), 429);
    assert_eq!(start.elapsed(), ms(0));
    assert_eq!(within(ms(100)).await.unwrap().status(), 200);
    assert_eq!(start.elapsed(), ms(100));
}

/// Nobody waits for what it would be spent on: it takes no unit, and the inner service is left alone.
#[tokio::test(start_paused = true)]
async fn a_call_whose_deadline_has_passed_takes_no_unit() {
    let past = Deadline::after(ms(0));
    let late = || {
        let mut request = keyed("a");
        request.extensions_mut().insert(past);
        request
    };
    let one = Quota::per(1, ms(100));
    for builder in [limit(one), limit(one).wait(ms(1_000)), per_header(one), limit(one).cost_fn(|_| 1)] {
        let layer = builder.build().unwrap();
        let service = layer.layer(http());
        assert_eq!(service.clone().oneshot(late()).await.unwrap().status(), 504);
        let ambient = past.scope(service.clone().oneshot(keyed("a"))).await.unwrap();
        assert_eq!(ambient.extensions().get::<Rejection>().unwrap().reason(), Reason::DeadlineExceeded);
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.admitted, snapshot.rejected), (0, 2));
        assert_eq!(service.clone().oneshot(keyed("a")).await.unwrap().status(), 200, "the unit is there still");
        // Whatever else there is to refuse it for.
        assert_eq!(service.clone().oneshot(late()).await.unwrap().status(), 504);
    }
    // The inner service is left alone.
    let probe = Probe::new();
    probe.is_never_ready();
    let layer = limit(one).build().unwrap();
    let service = layer.clone().plain().layer(probe.clone());
    let error = past.scope(service.oneshot(())).await.unwrap_err();
    assert!(matches!(error, Error::Rejected(rejection) if rejection.reason() == Reason::DeadlineExceeded));
    assert_eq!(probe.ready_polls(), 0);
    // In shadow it goes, is counted once, and takes nothing.
    let layer = limit(one).shadow(true).build().unwrap();
    let service = layer.layer(http());
    assert_eq!(past.scope(service.clone().oneshot(keyed("a"))).await.unwrap().status(), 200);
    assert_eq!(layer.handle().snapshot().would_have_rejected, 1);
    layer.handle().shadow(false);
    assert_eq!(service.oneshot(keyed("a")).await.unwrap().status(), 200);
}

/// Lets everybody in, after a while.
struct Generous;

impl Store<Arc<str>> for Generous {
    type Acquire = std::pin::Pin<Box<dyn Future<Output = Grant> + Send>>;
    fn acquire(&self, _key: &Arc<str>, _cost: NonZeroU32) -> Self::Acquire {
        Box::pin(async {
            sleep(ms(100)).await;
            Grant::Granted { remaining: 1, reset: ms(100) }
        })
    }
}

/// Its turn has come, and the inner service hangs: by the deadline the unit goes back.
#[tokio::test(start_paused = true)]
async fn who_has_its_turn_waits_for_the_inner_service_by_its_deadline() {
    for (shadow, asks) in [(false, false), (true, false), (false, true)] {
        let layer = limit(Quota::per(1, ms(100))).wait(ms(1_000));
        let probe = Probe::new();
        let handle;
        let start = Instant::now();
        let mut call = if asks {
            let layer = layer.store(Generous).build().unwrap();
            let mut service = layer.clone().plain().layer(probe.clone());
            handle = layer.handle();
            let call = async move { readied::<_, ()>(&mut service).await.call(()).await };
            Box::pin(Deadline::after(ms(500)).scope(call)) as std::pin::Pin<Box<dyn Future<Output = _>>>
        } else {
            let layer = layer.build().unwrap();
            let mut service = layer.clone().plain().layer(probe.clone());
            readied::<_, ()>(&mut service).await.call(()).await.unwrap();
            handle = layer.handle();
            let call = async move { readied::<_, ()>(&mut service).await.call(()).await };
            Box::pin(Deadline::after(ms(500)).scope(call))
        };
        assert!(poll_once(call.as_mut()).is_pending());
        probe.is_never_ready();
        if shadow {
            // After its turn.
            assert!(tokio::time::timeout(ms(300), call.as_mut()).await.is_err());
            handle.shadow(true);
            assert!(tokio::time::timeout(ms(600), call.as_mut()).await.is_err());
            probe.answers();
            call.await.unwrap();
            assert_eq!((handle.snapshot().admitted, handle.snapshot().would_have_rejected), (1, 1));
            continue;
        }
        let error = call.await.unwrap_err();
        assert!(matches!(error, Error::Rejected(rejection) if rejection.reason() == Reason::DeadlineExceeded));
        assert_eq!((start.elapsed(), probe.held()), (ms(500), 0));
        let snapshot = handle.snapshot();
        assert_eq!((snapshot.admitted, snapshot.rejected), (u64::from(!asks), 1), "each call counts once");
    }
}

/// Its turn comes in time, and nobody polls it before its deadline: nothing is begun any more, and the unit is the next
/// one's.
#[tokio::test(start_paused = true)]
async fn a_turn_that_is_noticed_after_the_deadline_is_too_late() {
    for (noticed, goes) in [(150, true), (151, false)] {
        let layer = limit(Quota::per(1, ms(100))).wait(ms(1_000)).build().unwrap();
        let probe = Probe::new();
        let mut service = layer.clone().plain().layer(probe.clone());
        readied::<_, ()>(&mut service).await.call(()).await.unwrap();
        let call = async { readied::<_, ()>(&mut service).await.call(()).await };
        let mut call = Box::pin(Deadline::after(ms(150)).scope(call));
        assert!(poll_once(call.as_mut()).is_pending());
        advance(ms(noticed)).await;
        let Poll::Ready(answer) = poll_once(call.as_mut()) else { panic!("it still waits") };
        assert_eq!((answer.is_ok(), probe.calls()), (goes, if goes { 2 } else { 1 }));
        let late = |error: &Error<_>| matches!(error, Error::Rejected(by) if by.reason() == Reason::DeadlineExceeded);
        assert!(answer.as_ref().err().is_none_or(late));
        drop(call);
        let snapshot = layer.handle().snapshot();
        assert_eq!((snapshot.admitted, snapshot.rejected), if goes { (2, 0) } else { (1, 1) });
        let next = std::pin::pin!(readied::<_, ()>(&mut service).await.call(()));
        assert_eq!(poll_once(next).is_ready(), !goes);
    }
}

#[tokio::test(start_paused = true)]
async fn shadow_lets_go_who_waits() {
    for builder in [limit(Quota::per(1, ms(10_000))), per_header(Quota::per(1, ms(10_000)))] {
        let layer = builder.wait(ms(60_000)).build().unwrap();
        let service = layer.layer(http());
        let calls: Vec<_> = (0..4).map(|_| tokio::spawn(service.clone().oneshot(keyed("a")))).collect();
        tokio::time::sleep(ms(100)).await;
        assert_eq!(layer.handle().snapshot().waiting, 3);
        layer.handle().shadow(true);
        let start = Instant::now();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().status(), 200);
        }
        let snapshot = layer.handle().snapshot();
        assert_eq!((start.elapsed(), snapshot.waiting, snapshot.admitted), (ms(0), 0, 4));
        // They have been paid for.
        layer.handle().shadow(false);
        let start = Instant::now();
        assert_eq!(service.clone().oneshot(keyed("a")).await.unwrap().status(), 200);
        assert!(start.elapsed() > ms(39_000), "{:?}", start.elapsed());
    }
}

/// The door was shut when readiness was asked for, and the unit is there by the time of the call.
#[tokio::test(start_paused = true)]
async fn who_came_before_its_unit_waits_for_the_inner_service_by_its_deadline() {
    let probe = Probe::new();
    let layer = limit(Quota::per(1, ms(100))).build().unwrap();
    let mut service = layer.layer(probe.clone());
    readied::<_, Request<()>>(&mut service).await.call(Request::new(())).await.unwrap();
    readied::<_, Request<()>>(&mut service).await;
    advance(ms(100)).await;
    probe.is_never_ready();
    let call = Deadline::after(ms(50)).scope(async { service.call(Request::new(())).await });
    let refused = call.await.unwrap();
    assert_eq!(Rejection::in_response(&refused).unwrap().reason(), Reason::DeadlineExceeded);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.admitted, snapshot.rejected, probe.held()), (1, 1, 0));
    // And its unit is back.
    probe.answers();
    readied::<_, Request<()>>(&mut service).await.call(Request::new(())).await.unwrap();
    assert_eq!(layer.handle().snapshot().admitted, 2);
}

/// What is charged after the fact has to come back before the next call goes, also where that waits already.
#[tokio::test(start_paused = true)]
async fn a_surcharge_holds_back_those_who_wait() {
    let backend = service_fn(|_: Request<()>| async {
        sleep(ms(10)).await;
        Ok::<_, Infallible>(Response::builder().status(401).body(Empty::<Bytes>::new()).unwrap())
    });
    for per_key in [false, true] {
        let builder = limit(Quota::per(1, ms(100))).wait(ms(3_000)).charge_fn(|_| 11);
        let builder =
            if per_key { builder.per_key(Key::Header(HeaderName::from_static("x-api-key"))) } else { builder };
        let layer = builder.build().unwrap();
        let start = Instant::now();
        let calls = (0..5).map(|_| {
            let call = layer.layer(backend).oneshot(keyed("a"));
            async move { (call.await.unwrap().status().as_u16(), start.elapsed()) }
        });
        // At 0, 1.1 and 2.2 s; that of the fourth would come at 3.3 s, as is known when the third is charged.
        let late = (429, ms(2_210));
        let expected = [(401, ms(10)), (401, ms(1_110)), (401, ms(2_210)), late, late];
        assert_eq!(join_all(calls).await, expected, "{per_key}");
        assert_eq!(layer.handle().snapshot().waiting, 0);
    }
}

/// Nothing at the door, and all of it by the answer: calls go until what they turned out to cost is owed.
#[tokio::test(start_paused = true)]
async fn what_is_free_at_the_door_is_charged_by_its_answer() {
    for per_key in [false, true] {
        let builder = limit(Quota::per(10, ms(10_000))).headers(LimitHeaders::Draft10).charge_fn(|_| 5);
        let builder = builder.cost_fn(|parts| u32::from(parts.uri.path() != "/free"));
        let builder =
            if per_key { builder.per_key(Key::Header(HeaderName::from_static("x-api-key"))) } else { builder };
        let layer = builder.build().unwrap();
        let call = |path: &'static str| {
            let mut request = keyed("a");
            *request.uri_mut() = path.parse().unwrap();
            let call = layer.layer(http()).oneshot(request);
            async move {
                let response = call.await.unwrap();
                (response.status().as_u16(), response.headers()["ratelimit"].to_str().unwrap().to_owned())
            }
        };
        assert_eq!(call("/free").await, (200, "\"default\";r=5;t=5".into()), "{per_key}");
        assert_eq!(call("/free").await, (200, "\"default\";r=0;t=10".into()));
        // It is free at the door whatever is owed; another is not.
        assert_eq!(call("/free").await, (200, "\"default\";r=0;t=15".into()));
        assert_eq!(call("/").await.0, 429);
    }
}

/// Units that come back open the door: readiness is the inner service's again, by which callers are held back.
#[tokio::test(start_paused = true)]
async fn units_that_come_back_open_the_door() {
    let minute = ms(60_000);
    let asks = |mut service: RateLimit<Probe>| {
        Service::<Request<()>>::poll_ready(&mut service, &mut Context::from_waker(Waker::noop())).is_pending()
    };
    // By a charge after the fact.
    let probe = Probe::new();
    let layer = limit(Quota::per(1, minute)).charge_fn(|_| 0).build().unwrap();
    let service = layer.layer(probe.clone());
    service.clone().oneshot(Request::new(())).await.unwrap();
    probe.is_never_ready();
    assert!(asks(service));

    // By those who leave the line that was too long for one who came then.
    let probe = Probe::new();
    let layer = limit(Quota::per(1, minute)).wait(2 * minute).build().unwrap();
    let service = layer.layer(probe.clone());
    let mut calls: Vec<_> = (0..4).map(|_| Box::pin(service.clone().oneshot(Request::new(())))).collect();
    let answers = calls.iter_mut().map(|call| poll_once(call.as_mut()).map(|answer| answer.unwrap().status().as_u16()));
    assert_eq!(answers.collect::<Vec<_>>(), [Poll::Ready(200), Poll::Pending, Poll::Pending, Poll::Ready(429)]);
    drop(calls);
    probe.is_never_ready();
    assert!(!asks(service.clone()), "nothing is left");
    advance(minute).await;
    assert!(asks(service));
}

#[tokio::test(start_paused = true)]
async fn keys_wait_in_lines_of_their_own() {
    let layer = per_header(Quota::per(1, ms(100))).wait(ms(1_000)).build().unwrap();
    let service = layer.layer(service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::builder().body(Empty::<Bytes>::new()).unwrap())
    }));
    let start = Instant::now();
    let calls = ["a", "a", "b", "a", "b"].map(|key| {
        let call = service.clone().oneshot(keyed(key));
        async move {
            assert_eq!(call.await.unwrap().status(), 200);
            start.elapsed()
        }
    });
    assert_eq!(join_all(calls).await, [ms(0), ms(100), ms(0), ms(200), ms(100)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Arrivals, departures and refusals at random: whoever goes goes in order, never too early, and never above the
    /// law.
    #[test]
    fn lines_keep_order_and_law(
        steps in prop::collection::vec((0_u64..150, 0_u8..10), 1..60),
        burst in 1_u32..4,
    ) {
        in_runtime(async move {
            let period = ms(100);
            let layer = limit(Quota::per(1, period).burst(burst)).wait(ms(1_000)).build().unwrap().plain();
            let went = Arc::new(Mutex::new(Vec::new()));
            let log = Arc::clone(&went);
            let service = layer.layer(service_fn(move |n: usize| {
                log.lock().unwrap().push((n, Instant::now()));
                ready(Ok::<_, Infallible>(()))
            }));
            let mut calls = Vec::new();
            for (n, (pause, leaves)) in steps.into_iter().enumerate() {
                sleep(ms(pause)).await;
                let task = tokio::spawn(service.clone().oneshot(n));
                tokio::task::yield_now().await;
                if leaves < 3 {
                    let leaver: Vec<_> = calls.drain(..calls.len().min(usize::from(leaves))).collect();
                    leaver.iter().for_each(|task: &tokio::task::JoinHandle<_>| task.abort());
                }
                calls.push(task);
            }
            for call in calls {
                let _ = call.await;
            }
            let went = went.lock().unwrap().clone();
            for pair in went.windows(2) {
                prop_assert!(pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1, "{went:?}");
            }
            for (i, first) in went.iter().enumerate() {
                for (j, last) in went.iter().enumerate().skip(i) {
                    let window = last.1.duration_since(first.1).as_millis();
                    prop_assert!((j - i + 1) as u128 <= u128::from(burst) + window / 100, "{went:?}");
                }
            }
            prop_assert_eq!(layer.handle().snapshot().waiting, 0);
            Ok(())
        })?;
    }
}

fn in_runtime<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test)
}

/// Real threads and the real clock: waiters that leave, quotas that change, few slots for many keys. Nothing hangs, and
/// every place is given up in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_wait_and_leave_while_the_quota_changes() {
    let builder = per_header(Quota::per(1, Duration::from_micros(200)).burst(3)).max_keys(4);
    let layer = builder.wait(ms(20)).charge_fn(|_| 2).build().unwrap();
    let tasks: Vec<_> = (0..8_u64)
        .map(|t| {
            let service = layer.layer(http());
            tokio::spawn(async move {
                let mut passed = 0;
                for n in 0..300 {
                    let call = service.clone().oneshot(keyed(&format!("{}", (n * 7 + t) % 9)));
                    if (n + t) % 3 == 0 {
                        let _ = tokio::time::timeout(Duration::from_micros(300), call).await;
                    } else {
                        passed += u32::from(call.await.unwrap().status() == 200);
                    }
                }
                passed
            })
        })
        .collect();
    let handle = layer.handle();
    for n in 0..200_u64 {
        handle.set_quota(Quota::per(3, Duration::from_micros(100 + n * 7)).burst(1 + n as u32 % 5)).unwrap();
        tokio::task::yield_now().await;
    }
    let passed: u32 = join_all(tasks).await.into_iter().map(Result::unwrap).sum();
    assert!(passed > 0);
    let snapshot = handle.snapshot();
    assert!(snapshot.keys <= 4);
    assert_eq!(snapshot.waiting, 0);
}

// === the handle, shadow, events ===

#[tokio::test(start_paused = true)]
async fn another_quota_and_what_was_used_stays_used() {
    for per_key in [false, true] {
        let builder = limit(Quota::per_second(10));
        let builder = if per_key { builder.key_fn(|_| Some("k".into())) } else { builder };
        let layer = builder.build().unwrap();
        let (service, get) = (layer.layer(http()), Request::default);
        assert_eq!(passes(&service, get).await, 10);
        layer.handle().set_quota(Quota::per_second(15)).unwrap();
        assert_eq!(passes(&service, get).await, 5);
        layer.handle().set_quota(Quota::per_second(5)).unwrap();
        // 15 are used, 5 may be: one comes back every 200 ms, so the first is there after 11 of them.
        advance(ms(2_199)).await;
        assert_eq!(passes(&service, get).await, 0);
        advance(ms(1)).await;
        assert_eq!(passes(&service, get).await, 1);
        assert_eq!(layer.handle().snapshot().quota, Quota::per_second(5));
    }
}

#[tokio::test(start_paused = true)]
async fn a_greater_quota_moves_those_up_who_wait_and_a_smaller_one_refuses_who_would_wait_too_long() {
    for per_key in [false, true] {
        let builder = limit(Quota::per(1, ms(100))).wait(ms(500));
        let builder = if per_key { builder.key_fn(|_| Some("k".into())) } else { builder };
        let layer = builder.build().unwrap();
        let service = layer
            .layer(service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }));
        let start = Instant::now();
        let calls: Vec<_> = (0..4)
            .map(|_| {
                let call = service.clone().oneshot(Request::default());
                tokio::spawn(async move { (call.await.unwrap().status().as_u16(), start.elapsed()) })
            })
            .collect();
        tokio::task::yield_now().await;
        layer.handle().set_quota(Quota::per(1, ms(10))).unwrap();
        sleep(ms(10)).await;
        layer.handle().set_quota(Quota::per(1, ms(400))).unwrap();
        let seen: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(seen, [(200, ms(0)), (200, ms(10)), (200, ms(410)), (429, ms(10))]);
        assert_eq!(layer.handle().snapshot().waiting, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn shadow_reports_and_lets_go() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let observer = move |e: &Event| log.lock().unwrap().push((e.policy, e.name.to_string(), e.kind.clone()));
    let layer = limit(Quota::per_second(2)).name("edge").shadow(true).observer(observer).build().unwrap();
    let service = layer.layer(http());
    assert_eq!(passes(&service, Request::default).await, 1_000);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.admitted, snapshot.rejected, snapshot.would_have_rejected), (2, 0, 998));
    let seen = std::mem::take(&mut *events.lock().unwrap());
    assert_eq!(seen.len(), 998);
    assert_eq!(seen[0], ("rate_limit", "edge".into(), Kind::WouldHaveRejected { reason: Reason::RateLimited }));
    layer.handle().shadow(false);
    assert_eq!(passes(&service, Request::default).await, 0);
    assert_eq!(events.lock().unwrap()[0].2, Kind::Rejected { reason: Reason::RateLimited });
    // What waits in earnest goes at once in shadow.
    let layer = limit(Quota::per_second(2)).wait(ms(1_000)).shadow(true).build().unwrap();
    let service = layer.layer(http());
    let start = Instant::now();
    assert_eq!(passes(&service, Request::default).await, 1_000);
    assert_eq!((start.elapsed(), layer.handle().snapshot().would_have_rejected), (ms(0), 996));
}

// === keys ===

#[tokio::test(start_paused = true)]
async fn each_key_has_its_quota() {
    let layer = per_header(Quota::per_second(3)).build().unwrap();
    let service = layer.layer(http());
    for key in ["a", "b", "A", "a ", "\u{e9}"] {
        assert_eq!(passes(&service, || keyed(key)).await, 3, "{key}");
        assert_eq!(passes(&service, || keyed(key)).await, 0, "{key}");
    }
    assert_eq!(layer.handle().snapshot().keys, 5);
    // Not UTF-8, and compared byte for byte.
    for byte in [0x80_u8, 0x81] {
        let odd = || {
            let value = http::HeaderValue::from_bytes(&[byte]).unwrap();
            let mut request = Request::new(());
            request.headers_mut().insert("x-api-key", value);
            request
        };
        assert_eq!(passes(&service, odd).await, 3);
    }
    let missing = service.clone().oneshot(Request::default()).await.unwrap();
    assert_eq!(missing.status(), 429);
    let rejection = Rejection::in_response(&missing).unwrap();
    assert_eq!((rejection.reason(), rejection.retry_after()), (Reason::KeyMissing, None));
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_key() {
    let quota = Quota::per_second(3);
    for (missing, passed) in [(MissingKey::Reject, 0), (MissingKey::Shared, 3), (MissingKey::Unlimited, 1_000)] {
        let layer = per_header(quota).missing_key(missing).build().unwrap();
        let service = layer.layer(http());
        assert_eq!(passes(&service, Request::default).await, passed, "{missing:?}");
        assert_eq!(passes(&service, || keyed("")).await, 3, "an empty value is a key");
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_service_has_the_common_quota() {
    let service = per_header(Quota::per_second(2)).build().unwrap().plain().layer(Probe::new());
    let answers = join_all((0..4).map(|_| service.clone().oneshot(()))).await;
    assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn tiers() {
    let gold = Arc::new(AtomicU32::new(5));
    let now = Arc::clone(&gold);
    let builder = per_header(Quota::per_second(2)).headers(LimitHeaders::Draft10);
    let tier = move |key: &str| match key {
        "gold" => Some(Quota::per_second(now.load(SeqCst))),
        "nonsense" => Some(Quota::per_second(0)),
        "absurd" => Some(Quota::per(u32::MAX, Duration::from_nanos(1))),
        _ => None,
    };
    let service = builder.quota_fn(tier).build().unwrap().layer(http());
    for (key, passed) in [("gold", 5), ("other", 2), ("nonsense", 2), ("absurd", 2)] {
        assert_eq!(passes(&service, || keyed(key)).await, passed, "{key}");
    }
    let refused = service.clone().oneshot(keyed("gold")).await.unwrap();
    assert_eq!(refused.headers()["ratelimit-policy"], "\"default\";q=5;w=1");
    gold.store(7, SeqCst);
    assert_eq!(passes(&service, || keyed("gold")).await, 2, "an upgrade counts at once");
}

/// What is no valid quota is none: the common one is in force, is told of, and stays so when it changes.
#[tokio::test(start_paused = true)]
async fn a_tier_that_is_no_quota_is_the_common_one_in_all() {
    for nonsense in [
        Quota::per_second(0),
        Quota::per(u32::MAX, Duration::from_nanos(1)),
        Quota::per(1, Duration::MAX),
        Quota::per(1, Duration::from_secs(366 * 24 * 3600)),
        Quota::per_second(1).burst(u32::MAX),
    ] {
        let builder = per_header(Quota::per_second(2)).headers(LimitHeaders::Draft10);
        let layer = builder.quota_fn(move |_| Some(nonsense)).build().unwrap();
        let service = layer.layer(http());
        let told = service.clone().oneshot(keyed("a")).await.unwrap();
        assert_eq!(told.headers()["ratelimit-policy"], "\"default\";q=2;w=1", "{nonsense:?}");
        layer.handle().set_quota(Quota::per_second(6)).unwrap();
        assert_eq!(passes(&service, || keyed("a")).await, 5, "{nonsense:?}: one of six was used");
        assert_eq!(passes(&service, || keyed("b")).await, 6, "{nonsense:?}");
    }
}

fn from(peer: Option<&str>, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = Request::new(());
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer.parse::<SocketAddr>().unwrap());
    }
    request
}

/// Do two requests use the same quota? `None`: one of them has no key.
async fn are_one(key: &Key, a: &dyn Fn() -> Request<()>, b: &dyn Fn() -> Request<()>) -> Option<bool> {
    let layer = limit(Quota::per_second(1)).per_key(key.clone()).trusted_for_test().build().unwrap();
    let service = layer.layer(http());
    let first = service.clone().oneshot(a()).await.unwrap();
    let second = service.clone().oneshot(b()).await.unwrap();
    let missing = |r: &Response<_>| Rejection::in_response(r).is_some_and(|r| r.reason() == Reason::KeyMissing);
    (!missing(&first) && !missing(&second)).then(|| second.status() == 429)
}

trait ForTest {
    fn trusted_for_test(self) -> Self;
}

impl ForTest for RateLimitBuilder {
    fn trusted_for_test(self) -> Self {
        self.trusted([("10.0.0.0".parse().unwrap(), 8), ("fd00::".parse().unwrap(), 8)])
    }
}

#[tokio::test(start_paused = true)]
async fn spoofed_proxy_headers_change_nothing() {
    let proxy = Some("10.0.0.1:555");
    let xff = Key::ForwardedFor { proxies: 1 };
    let two = Key::ForwardedFor { proxies: 2 };
    let fwd = Key::Forwarded { proxies: 1 };
    let x = |peer, line: &'static str| move || from(peer, &[("x-forwarded-for", line)]);
    let f = |peer, line: &'static str| move || from(peer, &[("forwarded", line)]);

    // Whatever a client writes stands on the left.
    assert_eq!(are_one(&xff, &x(proxy, "9.9.9.9, 1.2.3.4"), &x(proxy, "8.8.8.8, 1.2.3.4")).await, Some(true));
    assert_eq!(are_one(&xff, &x(proxy, "1.2.3.4"), &x(proxy, "1.2.3.4:80")).await, Some(true));
    assert_eq!(are_one(&xff, &x(proxy, "1.2.3.4"), &x(proxy, "1.2.3.4, 1.2.3.5")).await, Some(false));
    assert_eq!(are_one(&two, &x(proxy, "9.9.9.9, 1.2.3.4, 5.5.5.5"), &x(proxy, "1.2.3.4, 5.5.5.6")).await, Some(true));
    assert_eq!(are_one(&fwd, &f(proxy, "for=9.9.9.9, for=1.2.3.4"), &f(proxy, "For=\"1.2.3.4:80\"")).await, Some(true));
    assert_eq!(are_one(&fwd, &f(proxy, "for=\"9.9.9.9, for=1.2.3.4"), &f(proxy, "for=1.2.3.4")).await, Some(true));
    // One header counts, never the other.
    let both = || from(proxy, &[("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=7.7.7.7")]);
    assert_eq!(are_one(&xff, &both, &x(proxy, "1.2.3.4")).await, Some(true));
    assert_eq!(are_one(&fwd, &both, &f(proxy, "for=7.7.7.7")).await, Some(true));
    // Lines of their own.
    let lines = || from(proxy, &[("x-forwarded-for", "9.9.9.9"), ("x-forwarded-for", "1.2.3.4")]);
    assert_eq!(are_one(&xff, &lines, &x(proxy, "1.2.3.4")).await, Some(true));
    // IPv6 by /64, mapped is IPv4.
    let six = x(proxy, "[2001:db8:1:2::1]:443");
    assert_eq!(are_one(&xff, &six, &x(proxy, "2001:db8:1:2:ffff::9")).await, Some(true));
    assert_eq!(are_one(&xff, &six, &x(proxy, "2001:db8:1:3::1")).await, Some(false));
    assert_eq!(are_one(&xff, &x(proxy, "::ffff:1.2.3.4"), &x(proxy, "1.2.3.4")).await, Some(true));
    // Missing: unknown, too few, peers that are not trusted or not known.
    for bad in [
        x(proxy, "unknown"),
        x(proxy, "_hidden"),
        x(proxy, ""),
        x(proxy, "garbage"),
        x(Some("11.0.0.1:1"), "1.2.3.4"),
        x(None, "1.2.3.4"),
    ] {
        assert_eq!(are_one(&xff, &bad, &x(proxy, "1.2.3.4")).await, None);
    }
    assert_eq!(are_one(&two, &x(proxy, "1.2.3.4"), &x(proxy, "1.2.3.4, 5.5.5.5")).await, None);
    assert_eq!(are_one(&xff, &x(Some("[fd00::1]:1"), "1.2.3.4"), &x(proxy, "1.2.3.4")).await, Some(true));
}

#[tokio::test(start_paused = true)]
async fn peers_routes_and_methods() {
    use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
    let addr = |s: &str| s.parse::<SocketAddr>().unwrap();
    let with = |insert: &dyn Fn(&mut http::Extensions)| {
        let mut request = Request::new(());
        insert(request.extensions_mut());
        request
    };
    let axum = || with(&|e| assert!(e.insert(ConnectInfo(addr("1.2.3.4:1"))).is_none()));
    let mock = || with(&|e| assert!(e.insert(MockConnectInfo(addr("1.2.3.4:2"))).is_none()));
    let tonic = || {
        with(&|e| {
            let info = tonic::transport::server::TcpConnectInfo {
                local_addr: None,
                remote_addr: Some(addr("[::ffff:1.2.3.4]:3")),
            };
            assert!(e.insert(info).is_none());
        })
    };
    let own = || from(Some("1.2.3.4:4"), &[]);
    for other in [&mock as &dyn Fn() -> Request<()>, &tonic, &own] {
        assert_eq!(are_one(&Key::ConnectInfo, &axum, other).await, Some(true));
    }
    assert_eq!(are_one(&Key::ConnectInfo, &axum, &|| from(Some("1.2.3.5:4"), &[])).await, Some(false));
    assert_eq!(are_one(&Key::ConnectInfo, &axum, &Request::default).await, None);

    let path = |path: &'static str| move || Request::get(path).body(()).unwrap();
    assert_eq!(are_one(&Key::GrpcMethod, &path("/a.B/C"), &path("/a.B/C")).await, Some(true));
    assert_eq!(are_one(&Key::GrpcMethod, &path("/a.B/C"), &path("/a.B/D")).await, Some(false));

    // Real routes: axum's own.
    let limit = limit(Quota::per_second(1)).per_key(Key::MatchedPath).build().unwrap();
    let app = axum::Router::new()
        .route("/users/{id}", axum::routing::get(|| async {}))
        .route("/rooms/{id}", axum::routing::get(|| async {}))
        .layer(limit);
    let mut seen = Vec::new();
    for path in ["/users/1", "/users/2", "/rooms/1"] {
        let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        seen.push(app.clone().oneshot(request).await.unwrap().status().as_u16());
    }
    assert_eq!(seen, [200, 429, 200]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_does_not_touch_those_that_are_known() {
    let layer = per_header(Quota::per_second(10)).max_keys(10_000).build().unwrap();
    let service = layer.layer(http());
    let known: Vec<String> = (0..100).map(|n| format!("known-{n}")).collect();
    for (n, key) in known.iter().enumerate() {
        for _ in 0..n % 10 {
            assert_eq!(service.clone().oneshot(keyed(key)).await.unwrap().status(), 200);
        }
    }
    let mut passed = 0;
    for n in 0..100_000 {
        let answer = service.clone().oneshot(keyed(&format!("flood-{n}"))).await.unwrap();
        passed += usize::from(answer.status() == 200);
    }
    assert_eq!(layer.handle().snapshot().keys, 10_000);
    // 9,910 have a state (a known key of which nothing was used was not there yet); 90,090 share 128 quotas.
    assert!((9_910..=9_910 + 128 * 10).contains(&passed), "{passed}");
    for (n, key) in known.iter().enumerate().filter(|(n, _)| n % 10 > 0) {
        assert_eq!(passes(&service, || keyed(key)).await, 10 - n % 10, "{key}");
    }
    // All are idle after a second: whoever comes now has a quota of its own.
    advance(Duration::from_secs(1)).await;
    for n in 0..9_000 {
        assert_eq!(passes(&service, || keyed(&format!("late-{n}"))).await, 10);
    }
    assert!(layer.handle().snapshot().keys <= 10_000);
}

// === headers ===

#[tokio::test(start_paused = true)]
async fn headers_on_admitted_and_refused_responses() {
    let told = async |headers| {
        let service = limit(Quota::per_second(10)).headers(headers).build().unwrap().layer(http());
        let first = service.clone().oneshot(Request::default()).await.unwrap();
        for _ in 0..9 {
            service.clone().oneshot(Request::default()).await.unwrap();
        }
        let refused = service.clone().oneshot(Request::default()).await.unwrap();
        assert_eq!(refused.status(), 429);
        [first.headers().clone(), refused.headers().clone()].map(|h| {
            let mut all: Vec<_> = h
                .iter()
                .filter(|(k, _)| k.as_str().contains("ratelimit"))
                .map(|(k, v)| format!("{k}: {}", v.to_str().unwrap()))
                .collect();
            all.sort();
            all
        })
    };
    let draft = [
        vec!["ratelimit-policy: \"default\";q=10;w=1", "ratelimit: \"default\";r=9;t=1"],
        vec!["ratelimit-policy: \"default\";q=10;w=1", "ratelimit: \"default\";r=0;t=1"],
    ];
    let legacy = [
        vec!["x-ratelimit-limit: 10", "x-ratelimit-remaining: 9", "x-ratelimit-reset: 1"],
        vec!["x-ratelimit-limit: 10", "x-ratelimit-remaining: 0", "x-ratelimit-reset: 1"],
    ];
    assert_eq!(told(LimitHeaders::Draft10).await, draft);
    assert_eq!(told(LimitHeaders::Legacy).await, legacy);
    assert_eq!(told(LimitHeaders::Both).await, [0, 1].map(|n| [&draft[n][..], &legacy[n]].concat()));
    assert_eq!(told(LimitHeaders::Off).await, [Vec::<String>::new(), Vec::new()]);
}

// === the laws ===

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Decision for decision what governor's direct limiter says, and its waits; and in any window no more than the
    /// burst and what came back.
    #[test]
    fn as_governor_says(
        interval in prop::sample::select(vec![1_u64, 7, 100, 1_000]),
        burst in 1_u32..20,
        steps in prop::collection::vec((0_u64..300_000, 1_u32..25), 1..150),
    ) {
        in_runtime(async move {
            let clock = governor::clock::FakeRelativeClock::default();
            let quota = governor::Quota::with_period(ms(interval)).unwrap().allow_burst(NonZero::new(burst).unwrap());
            let oracle = governor::RateLimiter::direct_with_clock(quota, clock.clone());
            let ours = by_cost(limit(Quota::per(1, ms(interval)).burst(burst))).build().unwrap().layer(http());
            let (start, mut taken) = (Instant::now(), Vec::new());
            for (micros, cost) in steps {
                let step = Duration::from_micros(micros * interval / 100);
                clock.advance(step);
                advance(step).await;
                let answer = ours.clone().oneshot(costs(cost)).await.unwrap();
                let rejection = Rejection::in_response(&answer);
                match oracle.check_n(NonZero::new(cost).unwrap()) {
                    Ok(Ok(())) => {
                        prop_assert_eq!(answer.status(), 200);
                        taken.push((start.elapsed(), cost));
                    }
                    Ok(Err(not_until)) => {
                        use governor::clock::Clock;
                        let wait = not_until.wait_time_from(clock.now());
                        prop_assert_eq!(rejection.and_then(Rejection::retry_after), Some(wait));
                    }
                    Err(_) => prop_assert_eq!(rejection.unwrap().reason(), Reason::CostAboveBurst),
                }
            }
            for (i, first) in taken.iter().enumerate() {
                let mut sum = 0;
                for (at, cost) in &taken[i..] {
                    sum += u128::from(*cost);
                    let back = (*at - first.0).as_nanos() / ms(interval).as_nanos();
                    prop_assert!(sum <= u128::from(burst) + back);
                }
            }
            Ok(())
        })?;
    }
}
