//! Bulkheads with a limit for each key: whoever fills its own takes nothing of others.
#![allow(missing_docs, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    future::{Future, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{Request, Response, StatusCode, Uri};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

use buttress::{
    Bulkhead, BulkheadBuilder, BulkheadLayer, BulkheadSnapshot, Deadline, Key, MissingKey, Reason, Rejection,
    testing::{Probe, laws},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// By the path, which every request has.
fn per_path(limit: usize) -> BulkheadBuilder {
    BulkheadLayer::builder().limit(limit).per_key(Key::GrpcMethod)
}

/// By a header, which may be missing.
fn per_tenant(limit: usize) -> BulkheadBuilder {
    let tenant = |parts: &http::request::Parts| Some(parts.headers.get("tenant")?.to_str().ok()?.to_owned());
    BulkheadLayer::builder().limit(limit).key_fn(tenant)
}

fn to(path: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = path.parse::<Uri>().unwrap();
    request
}

fn numbered(n: usize) -> Request<()> {
    to(&format!("/{n}"))
}

fn snapshot(layer: &BulkheadLayer) -> BulkheadSnapshot {
    layer.handle().snapshot()
}

/// In flight, waiting, keys.
fn counts(layer: &BulkheadLayer) -> (usize, usize, usize) {
    let snapshot = snapshot(layer);
    (snapshot.in_flight, snapshot.waiting, snapshot.keys)
}

/// A service behind the bulkhead whose calls hang, and how they are told to end.
fn hanging(layer: &BulkheadLayer) -> (Bulkhead<Probe>, Probe) {
    let probe = Probe::new();
    probe.hangs();
    (layer.layer(probe.clone()), probe)
}

/// A call that was polled once.
fn call<S: Service<Request<()>>>(service: &mut S, request: Request<()>) -> Pin<Box<S::Future>> {
    let ready = poll_fn(|cx| service.poll_ready(cx)).now_or_never();
    assert!(ready.is_some_and(|r| r.is_ok()));
    Box::pin(service.call(request))
}

/// What became of a call: `None` if it is pending.
fn status<F, B, E>(call: &mut Pin<Box<F>>) -> Option<u16>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: std::fmt::Debug,
{
    Some(call.as_mut().now_or_never()?.unwrap().status().as_u16())
}

fn reason<F, B, E>(call: &mut Pin<Box<F>>) -> Option<Reason>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: std::fmt::Debug,
{
    let response = call.as_mut().now_or_never()?.unwrap();
    Some(response.extensions().get::<Rejection>()?.reason())
}

// === tenants ===

#[tokio::test(start_paused = true)]
async fn one_that_is_full_touches_no_other() {
    let layer = per_path(2).build().unwrap();
    let (mut service, probe) = hanging(&layer);
    let mut full: Vec<_> = (0..3).map(|_| call(&mut service, to("/a"))).collect();
    assert_eq!(reason(&mut full[2]), Some(Reason::BulkheadFull));
    let mut others: Vec<_> = (0..100).map(|n| call(&mut service, numbered(n))).collect();
    assert!(others.iter_mut().all(|call| status(call).is_none()));
    assert_eq!((counts(&layer), snapshot(&layer).rejected), ((102, 0, 101), 1));
    probe.answers();
    assert!(others.iter_mut().all(|call| status(call) == Some(200)));
    assert!(full[..2].iter_mut().all(|call| status(call) == Some(200)));
    assert_eq!(counts(&layer), (0, 0, 101));
}

#[tokio::test(start_paused = true)]
async fn each_has_a_queue_and_hands_its_permits_to_its_own() {
    let layer = per_path(1).queue(1).wait(ms(50)).build().unwrap();
    let (mut service, probe) = hanging(&layer);
    let (a, b) = (call(&mut service, to("/a")), call(&mut service, to("/b")));
    let (mut waits, mut no_place) = (call(&mut service, to("/a")), call(&mut service, to("/a")));
    assert_eq!((status(&mut waits), reason(&mut no_place)), (None, Some(Reason::BulkheadFull)));
    let mut other = call(&mut service, to("/b"));
    assert_eq!(status(&mut other), None);
    assert_eq!((counts(&layer), probe.calls()), ((2, 2, 2), 2));
    advance(ms(20)).await;
    assert_eq!(snapshot(&layer).oldest_wait, Some(ms(20)));
    drop(b);
    assert_eq!((status(&mut waits), status(&mut other), probe.calls()), (None, None, 3), "b's is b's");
    drop(a);
    assert_eq!((status(&mut waits), counts(&layer)), (None, (2, 0, 2)));
    let mut late = call(&mut service, to("/a"));
    advance(ms(50)).await;
    assert_eq!(reason(&mut late), Some(Reason::QueueTimeout));
}

#[tokio::test(start_paused = true)]
async fn fifty_services_share_the_limit_of_a_key() {
    let layer = per_path(3).build().unwrap();
    let mut calls: Vec<_> = (0..50).map(|_| call(&mut hanging(&layer).0, to("/a"))).collect();
    assert_eq!(calls.iter_mut().filter_map(status).count(), 47);
    assert_eq!(counts(&layer), (3, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_wait_for_a_key_and_a_late_call_is_refused() {
    let layer = per_path(1).queue(1).build().unwrap();
    let (mut service, _probe) = hanging(&layer);
    let _runs = call(&mut service, to("/a"));
    let within = |n| {
        let mut request = to("/a");
        request.extensions_mut().insert(Deadline::after(ms(n)));
        request
    };
    let mut waits = call(&mut service, within(10));
    assert_eq!(status(&mut waits), None);
    advance(ms(10)).await;
    assert_eq!(reason(&mut waits), Some(Reason::DeadlineExceeded));
    assert_eq!(reason(&mut call(&mut service, within(0))), Some(Reason::DeadlineExceeded));
    assert_eq!(counts(&layer), (1, 0, 1));
}

// === requests without a key ===

#[tokio::test(start_paused = true)]
async fn without_a_key_a_request_is_refused_shares_or_is_not_limited() {
    let refuses = per_tenant(1).build().unwrap();
    let (mut service, probe) = hanging(&refuses);
    let mut call_ = call(&mut service, to("/"));
    let response = call_.as_mut().now_or_never().unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.extensions().get::<Rejection>().unwrap().reason(), Reason::KeyMissing);
    assert_eq!((probe.calls(), probe.held(), counts(&refuses)), (0, 0, (0, 0, 0)));

    let shares = per_tenant(1).missing_key(MissingKey::Shared).build().unwrap();
    let (mut service, _probe) = hanging(&shares);
    let (mut one, mut two) = (call(&mut service, to("/")), call(&mut service, to("/")));
    assert_eq!((status(&mut one), reason(&mut two)), (None, Some(Reason::BulkheadFull)));
    let mut request = to("/");
    request.headers_mut().insert("tenant", "a".parse().unwrap());
    assert_eq!(status(&mut call(&mut service, request)), None, "it has a limit of its own");

    let unlimited = per_tenant(1).missing_key(MissingKey::Unlimited).build().unwrap();
    let (mut service, probe) = hanging(&unlimited);
    let mut all: Vec<_> = (0..10).map(|_| call(&mut service, to("/"))).collect();
    assert!(all.iter_mut().all(|call| status(call).is_none()));
    assert_eq!(counts(&unlimited), (10, 0, 0), "they are counted all the same");
    probe.answers();
    assert!(all.iter_mut().all(|call| status(call) == Some(200)));
    assert_eq!(counts(&unlimited), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn shadow_lets_all_in_and_says_what_it_would_have_refused() {
    let layer = per_tenant(1).shadow(true).build().unwrap();
    let (mut service, _probe) = hanging(&layer);
    let tenant = || {
        let mut request = to("/");
        request.headers_mut().insert("tenant", "a".parse().unwrap());
        request
    };
    let mut calls = [call(&mut service, to("/")), call(&mut service, tenant()), call(&mut service, tenant())];
    assert!(calls.iter_mut().all(|call| status(call).is_none()));
    let told = snapshot(&layer);
    assert_eq!((told.would_have_rejected, told.rejected, counts(&layer)), (2, 0, (3, 0, 1)));
    layer.handle().shadow(false);
    assert_eq!(reason(&mut call(&mut service, tenant())), Some(Reason::BulkheadFull));
    assert_eq!(reason(&mut call(&mut service, to("/"))), Some(Reason::KeyMissing));
}

#[tokio::test(start_paused = true)]
async fn services_without_heads_share_one_state() {
    let layer = per_path(1).build().unwrap();
    let probe = Probe::new();
    probe.hangs();
    let mut plain = layer.clone().plain().layer(probe.clone());
    let runs: Pin<Box<_>> = Box::pin(plain.call(()));
    let second = pin!(plain.call(())).now_or_never().unwrap();
    assert_eq!(Rejection::of(&second.unwrap_err()).map(Rejection::reason), Some(Reason::BulkheadFull));
    assert_eq!(counts(&layer), (1, 0, 0));
    // It is known before: a closed door does not touch the house.
    let mut other = layer.clone().plain().layer(probe.clone());
    probe.is_never_ready();
    assert!(poll_fn(|cx| Service::<()>::poll_ready(&mut other, cx)).now_or_never().is_some());
    assert_eq!(probe.ready_polls(), 0);
    assert_eq!(status(&mut call(&mut hanging(&layer).0, to("/a"))), None, "keys have their own");
    drop(runs);
    assert_eq!(snapshot(&layer).in_flight, 0);
}

// === the bound ===

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_is_bounded_and_hurts_nobody_who_is_known() {
    let layer = per_path(1).max_keys(1_000).build().unwrap();
    let (mut service, probe) = hanging(&layer);
    let mut known: Vec<_> = (0..500).map(|n| call(&mut service, numbered(n))).collect();
    assert!(known.iter_mut().all(|call| status(call).is_none()));
    let answers = Probe::new();
    let mut flood = layer.layer(answers.clone());
    for n in 1_000..101_000 {
        assert_eq!(status(&mut call(&mut flood, numbered(n))), Some(200));
        assert!(n % 1_000 > 0 || snapshot(&layer).keys <= 1_000);
    }
    assert_eq!(answers.calls(), 100_000);
    assert!(counts(&layer).2 <= 1_000);
    assert_eq!((counts(&layer).0, probe.in_flight()), (500, 500));
    for n in 0..500 {
        assert_eq!(reason(&mut call(&mut flood, numbered(n))), Some(Reason::BulkheadFull), "{n} is as full as before");
    }
    known.truncate(250);
    for n in 250..500 {
        assert_eq!(status(&mut call(&mut flood, numbered(n))), Some(200));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_busy_is_never_evicted_and_what_is_idle_makes_room() {
    let layer = per_path(2).max_keys(2).build().unwrap();
    let (mut service, _probe) = hanging(&layer);
    let (a, b) = (call(&mut service, to("/a")), call(&mut service, to("/b")));
    // There is one overflow state for two keys: it has the limit of one.
    let overflow: Vec<_> = ["/c", "/d", "/e"].map(|key| call(&mut service, to(key))).into();
    assert_eq!(counts(&layer), (4, 0, 2));
    drop(overflow);
    assert_eq!(counts(&layer), (2, 0, 2));
    drop(a);
    advance(ms(1_000)).await;
    let c = call(&mut service, to("/c"));
    let c2 = call(&mut service, to("/c"));
    assert_eq!(reason(&mut call(&mut service, to("/c"))), Some(Reason::BulkheadFull));
    let mut d = [call(&mut service, to("/d")), call(&mut service, to("/d"))];
    assert!(d.iter_mut().all(|call| status(call).is_none()), "c is no longer in the overflow");
    assert_eq!(counts(&layer), (5, 0, 2));
    // b was there all the time.
    let b2 = call(&mut service, to("/b"));
    assert_eq!(reason(&mut call(&mut service, to("/b"))), Some(Reason::BulkheadFull));
    drop((b, b2, c, c2, d));
    assert_eq!(counts(&layer), (0, 0, 2));
}

// === streams and cancellation ===

fn streaming() -> impl Service<
    Request<()>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = Infallible>>,
    Error = Infallible,
    Future: Future,
> + Clone {
    service_fn(|_: Request<()>| {
        let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        ready(Ok(Response::new(body)))
    })
}

#[tokio::test(start_paused = true)]
async fn a_stream_holds_the_permit_of_its_key_and_its_key() {
    let layer = per_path(1).max_keys(1).permit_lease(ms(100)).build().unwrap();
    let mut service = layer.layer(streaming());
    let a = call(&mut service, to("/a")).await.unwrap();
    assert_eq!(reason(&mut call(&mut service, to("/a"))), Some(Reason::BulkheadFull));
    advance(ms(2_000)).await;
    // Its reader has stalled for long enough, but only a call of its own key asks for that.
    let overflow = call(&mut service, to("/b")).await.unwrap();
    assert_eq!((counts(&layer), snapshot(&layer).permits_expired), ((2, 0, 1), 0));
    let a2 = call(&mut service, to("/a")).await.unwrap();
    assert_eq!((counts(&layer), snapshot(&layer).permits_expired), ((2, 0, 1), 1));
    // The stream of the expired one still runs: its key stays, and its end gives nothing back twice. The overflow has
    // a stream that stalls as well, which is no matter to a.
    drop(a2);
    advance(ms(2_000)).await;
    let c = call(&mut service, to("/c")).await.unwrap();
    assert_eq!((counts(&layer), snapshot(&layer).permits_expired), ((1, 0, 1), 2));
    assert_eq!(reason(&mut call(&mut service, to("/b"))), Some(Reason::BulkheadFull), "a has the only state");
    drop((a, overflow));
    assert_eq!(counts(&layer), (1, 0, 1));
    drop(c);
    assert_eq!(counts(&layer), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unlimited_stream_gives_back_what_it_took() {
    let layer = per_tenant(1).missing_key(MissingKey::Unlimited).build().unwrap();
    let mut service = layer.layer(streaming());
    let bodies = [call(&mut service, to("/")).await.unwrap(), call(&mut service, to("/")).await.unwrap()];
    assert_eq!(counts(&layer), (2, 0, 0));
    drop(bodies);
    assert_eq!(counts(&layer), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn dropped_calls_give_back_place_and_permit_and_their_key_is_idle() {
    let layer = per_path(1).queue(2).max_keys(1).build().unwrap();
    let (mut service, probe) = hanging(&layer);
    let runs = call(&mut service, to("/a"));
    let (mut left, mut waits) = (call(&mut service, to("/a")), call(&mut service, to("/a")));
    assert_eq!((status(&mut left), status(&mut waits), counts(&layer)), (None, None, (1, 2, 1)));
    drop(left);
    assert_eq!(counts(&layer), (1, 1, 1));
    drop(runs);
    // It was called, and has not noticed; it leaves, and nobody holds the key any more.
    drop(waits);
    assert_eq!((counts(&layer), probe.in_flight()), ((0, 0, 1), 0));
    advance(ms(1_000)).await;
    let _b = call(&mut service, to("/b"));
    let mut overflow = call(&mut service, to("/a"));
    assert_eq!((status(&mut overflow), counts(&layer)), (None, (2, 0, 1)));
}

#[tokio::test(start_paused = true)]
async fn panics_leave_nothing_behind() {
    let layer = per_path(1).build().unwrap();
    let (mut service, probe) = hanging(&layer);
    probe.panics_in_call();
    let panic = catch_unwind(AssertUnwindSafe(|| drop(call(&mut service, to("/a")))));
    assert!(panic.is_err());
    assert_eq!(counts(&layer), (0, 0, 1));
    let layer = BulkheadLayer::builder().limit(1).key_fn(|_| panic!("a user's")).build().unwrap();
    let (mut service, probe) = hanging(&layer);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(call(&mut service, to("/a"))))).is_err());
    assert_eq!((counts(&layer), probe.calls()), ((0, 0, 0), 0));
}

/// The key is seen after readiness: what the readied instance holds goes back.
#[tokio::test(start_paused = true)]
async fn a_late_refusal_and_a_wait_hold_nothing_of_the_inner_service() {
    let layer = per_path(1).build().unwrap();
    let (mut fills, _probe) = hanging(&layer);
    let mut held = Vec::new();
    laws::late_refusal(|p| layer.layer(p), Request::<()>::default, async || held.push(fills.call(to("/")))).await;
    let layer = per_path(1).queue(1).build().unwrap();
    let (mut service, probe) = hanging(&layer);
    let _runs = call(&mut service, to("/a"));
    let mut waits = call(&mut service, to("/a"));
    assert_eq!((status(&mut waits), probe.held(), probe.calls()), (None, 0, 1));
}

// === by hand ===

#[tokio::test(start_paused = true)]
async fn a_limit_set_by_hand_is_that_of_all_keys_and_of_those_to_come() {
    let layer = per_path(1).queue(5).max_keys(2).build().unwrap();
    let (mut service, probe) = hanging(&layer);
    let mut calls: Vec<_> = ["/a", "/a", "/a", "/b", "/b", "/c", "/c"].map(|key| call(&mut service, to(key))).into();
    assert!(calls.iter_mut().all(|call| status(call).is_none()));
    assert_eq!((counts(&layer), probe.calls()), ((3, 4, 2), 3));
    layer.handle().resize(2).unwrap();
    assert!(calls.iter_mut().all(|call| status(call).is_none()));
    assert_eq!((counts(&layer), probe.calls(), snapshot(&layer).limit), ((6, 1, 2), 6, 2));
    drop(calls);
    layer.handle().resize(3).unwrap();
    advance(ms(1_000)).await;
    let four: Vec<_> = (0..4).map(|_| call(&mut service, to("/new"))).collect();
    assert_eq!(counts(&layer), (3, 1, snapshot(&layer).keys));
    layer.handle().update(buttress::BulkheadConfig { limit: 1, queue: 0, ..snapshot(&layer).config }).unwrap();
    assert_eq!(reason(&mut call(&mut service, to("/new"))), Some(Reason::BulkheadFull));
    assert_eq!(snapshot(&layer).config.limit, 1);
    // Who waits goes in with shadow, whatever its key.
    layer.handle().shadow(true);
    assert_eq!(counts(&layer).1, 0);
    drop(four);
}

#[tokio::test(start_paused = true)]
async fn bad_keys_are_an_error_with_all_others() {
    let builder = per_path(0).key_fn(|_| None).max_keys(0).trusted([([10, 0, 0, 0].into(), 33)]);
    let error = builder.build().unwrap_err();
    let fields: Vec<_> = error.fields().iter().map(|f| f.field).collect();
    assert_eq!(fields, ["limit", "max_keys", "per_key", "trusted"]);
    let nobody = BulkheadLayer::builder().limit(1).per_key(Key::ForwardedFor { proxies: 0 }).build();
    assert_eq!(nobody.unwrap_err().fields().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_keep_to_the_limit_of_each_key() {
    let layer = per_path(2).queue(50).max_keys(4).build().unwrap();
    let running: std::sync::Arc<[std::sync::atomic::AtomicUsize; 8]> = Default::default();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40_usize {
        let running = running.clone();
        let inner = service_fn(move |request: Request<()>| {
            let running = running.clone();
            async move {
                use std::sync::atomic::Ordering::SeqCst;
                let key: usize = request.uri().path()[1..].parse().unwrap();
                let before = running[key].fetch_add(1, SeqCst);
                // Its own state and, before that, one of the overflow.
                assert!(before < 4, "{before} of {key}");
                tokio::task::yield_now().await;
                running[key].fetch_sub(1, SeqCst);
                Ok::<_, Infallible>(Response::new(http_body_util::Empty::<Bytes>::new()))
            }
        });
        let service = layer.layer(inner);
        tasks.spawn(async move {
            for round in 0..50 {
                let response = service.clone().oneshot(numbered((n + round) % 8)).await.unwrap();
                assert_eq!(response.status(), 200);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!((counts(&layer).0, counts(&layer).1), (0, 0));
}
