//! Deadlines in virtual time: where they come from, what they end, what goes on.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    future::{Future, pending, ready},
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

use buttress::{
    BoxError, Deadline, DeadlineLayer, Outcome, Reason, Rejection, TimeoutLayer,
    observe::{Event, Kind},
    testing::{OutcomesLayer, Probe},
};

const MILLIS: HeaderName = HeaderName::from_static("x-deadline-ms");

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn request(headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder();
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

fn hanging()
-> impl Service<Request<Empty<Bytes>>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Future> + Clone {
    service_fn(|_| pending())
}

/// What the inner service sees: ambient in `call`, ambient in its future, extension, and the headers.
#[derive(Debug, Default, Clone, PartialEq)]
struct Seen {
    in_call: Option<Deadline>,
    ambient: Option<Deadline>,
    extension: Option<Deadline>,
    grpc_timeout: Option<String>,
    millis: Option<String>,
}

async fn seen(layer: DeadlineLayer, request: Request<Empty<Bytes>>) -> Seen {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let inner = service_fn({
        let seen = Arc::clone(&seen);
        move |r: Request<Empty<Bytes>>| {
            let text = |name: &str| r.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
            *seen.lock().unwrap() = Seen {
                in_call: Deadline::current(),
                ambient: None,
                extension: r.extensions().get().copied(),
                grpc_timeout: text("grpc-timeout"),
                millis: text("x-deadline-ms"),
            };
            let seen = Arc::clone(&seen);
            async move {
                seen.lock().unwrap().ambient = Deadline::current();
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        }
    });
    layer.layer(inner).oneshot(request).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!((seen.in_call, seen.ambient), (seen.extension, seen.extension));
    seen
}

/// How long a hanging call lasts, and why it ended.
async fn ends(layer: &DeadlineLayer, request: Request<Empty<Bytes>>) -> (Duration, Reason) {
    let start = Instant::now();
    let response = layer.layer(hanging()).oneshot(request).await.unwrap();
    let rejection = Rejection::in_response(&response).unwrap();
    assert_eq!((rejection.policy(), rejection.retry_after()), ("deadline", None));
    (start.elapsed(), rejection.reason())
}

// === server ===

#[tokio::test(start_paused = true)]
async fn the_servers_deadline_is_the_callers_or_the_maximum() {
    let layer = DeadlineLayer::server(ms(1_000)).header(MILLIS);
    let at = |d| Some(Deadline::after(d));
    assert_eq!(seen(layer.clone(), request(&[])).await.extension, at(ms(1_000)));
    assert_eq!(seen(layer.clone(), request(&[("grpc-timeout", "300m")])).await.extension, at(ms(300)));
    assert_eq!(seen(layer.clone(), request(&[("grpc-timeout", "5S")])).await.extension, at(ms(1_000)));
    assert_eq!(seen(layer.clone(), request(&[("x-deadline-ms", "250")])).await.extension, at(ms(250)));
    let both = request(&[("x-deadline-ms", "250"), ("grpc-timeout", "200m")]);
    assert_eq!(seen(layer.clone(), both).await.extension, at(ms(200)));
    let mut own = request(&[("grpc-timeout", "200m")]);
    own.extensions_mut().insert(Deadline::after(ms(100)));
    assert_eq!(seen(layer.clone(), own).await.extension, at(ms(100)));
    let ambient = Deadline::after(ms(50)).scope(seen(layer, request(&[]))).await;
    assert_eq!(ambient.extension, at(ms(50)));
    // The header in milliseconds is off by default.
    let plain = DeadlineLayer::server(ms(1_000));
    assert_eq!(seen(plain, request(&[("x-deadline-ms", "250")])).await.extension, at(ms(1_000)));
}

#[tokio::test(start_paused = true)]
async fn our_timer_is_early_for_a_deadline_on_the_wire_and_exact_for_others() {
    let layer = DeadlineLayer::server(ms(1_000)).header(MILLIS);
    let exceeded = Reason::DeadlineExceeded;
    assert_eq!(ends(&layer, request(&[])).await, (ms(1_000), exceeded));
    assert_eq!(ends(&layer, request(&[GRPC])).await, (ms(1_000), exceeded));
    assert_eq!(ends(&layer, request(&[("grpc-timeout", "100m")])).await, (ms(99), exceeded));
    assert_eq!(ends(&layer, request(&[GRPC, ("grpc-timeout", "300m")])).await, (ms(297), exceeded));
    assert_eq!(ends(&layer, request(&[("x-deadline-ms", "100")])).await, (ms(100), exceeded));
    // A little more than the maximum: the transport's own timer is not the earlier one.
    assert_eq!(ends(&layer, request(&[("grpc-timeout", "2S")])).await, (ms(1_000), exceeded));
    assert_eq!(layer.handle().snapshot().deadline_exceeded, 6);
}

#[tokio::test(start_paused = true)]
async fn malformed_headers_are_counted_and_ignored() {
    let layer = DeadlineLayer::server(ms(1_000)).header(MILLIS);
    for (i, bad) in ["", "1", "123456789m", "-1S", "1.5S", "\u{7f}"].into_iter().enumerate() {
        let Ok(value) = http::HeaderValue::from_bytes(bad.as_bytes()) else { continue };
        let mut r = request(&[("x-deadline-ms", "1e3")]);
        r.headers_mut().insert("grpc-timeout", value);
        assert_eq!(seen(layer.clone(), r).await.extension, Some(Deadline::after(ms(1_000))), "{bad:?}");
        assert_eq!(layer.handle().snapshot().malformed_headers, 2 * (i as u64 + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_in_the_past_leaves_the_backend_alone() {
    let layer = DeadlineLayer::server(ms(1_000));
    let probe = Probe::new();
    let response = layer.layer(probe.clone()).oneshot(request(&[("grpc-timeout", "0m")])).await.unwrap();
    assert_eq!(response.status(), 504);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        body,
        r#"{"type":"about:blank","title":"Gateway Timeout","status":504,"detail":"the deadline passed","policy":"deadline","reason":"deadline_exceeded"}"#
    );
    let response = layer.layer(probe.clone()).oneshot(request(&[GRPC, ("grpc-timeout", "0S")])).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"4".parse().unwrap()));
    assert_eq!((probe.calls(), probe.held()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_tiny_deadline_is_tried_once() {
    // Its margin is longer than the deadline: the inner service gets the one poll that it can win.
    let layer = DeadlineLayer::server(ms(1_000));
    let response = layer.layer(Probe::new()).oneshot(request(&[GRPC, ("grpc-timeout", "1m")])).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("grpc-status"));
    assert_eq!(ends(&layer, request(&[GRPC, ("grpc-timeout", "1n")])).await.0, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn zero_refuses_everything_and_the_longest_is_no_bound() {
    let probe = Probe::new();
    let closed = DeadlineLayer::server(Duration::ZERO);
    probe.is_never_ready();
    assert_eq!(closed.layer(probe.clone()).oneshot(request(&[])).await.unwrap().status(), 504);
    assert_eq!((probe.ready_polls(), probe.calls()), (0, 0));

    let open = DeadlineLayer::server(Duration::MAX);
    assert_eq!(seen(open, request(&[])).await, Seen::default());
}

#[tokio::test(start_paused = true)]
async fn it_follows_into_the_response_body_and_ends_it() {
    let layer = DeadlineLayer::server(ms(100));
    let streaming = service_fn(|_: Request<Empty<Bytes>>| {
        let frames = stream::unfold(0, |n| async move {
            if n == 1 {
                pending::<()>().await;
            }
            let left = Deadline::current().map(|d| d.remaining().as_millis());
            Some((Ok::<_, BoxError>(Frame::data(Bytes::from(format!("{left:?}")))), n + 1))
        });
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(frames)))))
    });
    let start = Instant::now();
    let mut body = pin!(layer.layer(streaming).oneshot(request(&[])).await.unwrap().into_body());
    advance(ms(30)).await;
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "Some(70)");
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(start.elapsed(), ms(100));
    assert_eq!(Rejection::of(&*error).unwrap().reason(), Reason::DeadlineExceeded);

    let collected =
        layer.layer(streaming).oneshot(request(&[GRPC])).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "4");
}

#[tokio::test(start_paused = true)]
async fn it_bounds_the_call_a_handler_makes_with_no_code_in_the_handler() {
    // handler -> client stack -> backend, as three services in a row.
    let seen = Arc::new(Mutex::new(None));
    let backend = service_fn({
        let seen = Arc::clone(&seen);
        move |r: Request<Empty<Bytes>>| {
            *seen.lock().unwrap() = r.headers().get("grpc-timeout").map(|v| v.to_str().unwrap().to_owned());
            ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
        }
    });
    let client = DeadlineLayer::client().layer(backend);
    let handler = service_fn(move |_: Request<Empty<Bytes>>| {
        let client = client.clone();
        async move {
            sleep(ms(20)).await;
            client.oneshot(request(&[GRPC])).await
        }
    });
    let server = DeadlineLayer::server(ms(60_000)).layer(handler);
    server.oneshot(request(&[("grpc-timeout", "500m")])).await.unwrap();
    assert_eq!(seen.lock().unwrap().as_deref(), Some("480000u"));
}

// === client ===

#[tokio::test(start_paused = true)]
async fn the_client_writes_what_it_knows() {
    let layer = DeadlineLayer::client().header(MILLIS);
    assert_eq!(seen(layer.clone(), request(&[GRPC])).await, Seen::default());

    let known = Deadline::after(ms(200));
    let grpc = known.scope(seen(layer.clone(), request(&[GRPC]))).await;
    assert_eq!((grpc.grpc_timeout.as_deref(), grpc.millis.as_deref()), (Some("200000u"), Some("200")));
    assert_eq!(grpc.extension, Some(known));
    // An HTTP request gets the header that was asked for, and no gRPC's.
    let http = known.scope(seen(layer.clone(), request(&[]))).await;
    assert_eq!((http.grpc_timeout.as_deref(), http.millis.as_deref()), (None, Some("200")));
    // What the caller wrote stays if it is shorter, and bounds everything.
    let shorter = known.scope(seen(layer.clone(), request(&[GRPC, ("grpc-timeout", "50m")]))).await;
    assert_eq!((shorter.grpc_timeout.as_deref(), shorter.millis.as_deref()), (Some("50m"), Some("50")));
    let longer = known.scope(seen(layer.clone(), request(&[GRPC, ("grpc-timeout", "5S")]))).await;
    assert_eq!(longer.grpc_timeout.as_deref(), Some("200000u"));
}

#[tokio::test(start_paused = true)]
async fn the_client_ends_before_the_transport_does() {
    let layer = DeadlineLayer::client();
    let exceeded = Reason::DeadlineExceeded;
    assert_eq!(ends(&layer, request(&[GRPC, ("grpc-timeout", "50m")])).await, (ms(49), exceeded));
    let known = Deadline::after(ms(50));
    assert_eq!(known.scope(ends(&layer, request(&[GRPC]))).await, (ms(49), exceeded));
    let known = Deadline::after(ms(50));
    assert_eq!(known.scope(ends(&layer, request(&[]))).await, (ms(50), exceeded));
}

// === what others see of it ===

#[tokio::test(start_paused = true)]
async fn a_deadline_is_nobodys_failure() {
    for headers in [&[("grpc-timeout", "50m")][..], &[GRPC, ("grpc-timeout", "50m")]] {
        let (inside, outside) = (OutcomesLayer::new(), OutcomesLayer::new());
        let service = outside.layer(DeadlineLayer::server(ms(1_000)).layer(inside.layer(hanging())));
        service.oneshot(request(headers)).await.unwrap();
        assert_eq!([inside.handle().take(), outside.handle().take()], [[Outcome::Cancelled], [Outcome::Cancelled]]);
    }
}

#[tokio::test(start_paused = true)]
async fn events_shadow_and_names() {
    let seen: Arc<Mutex<Vec<Event>>> = Arc::default();
    let layer = DeadlineLayer::builder()
        .name("edge")
        .server(ms(50))
        .observer({
            let seen = Arc::clone(&seen);
            move |e: &Event| seen.lock().unwrap().push(e.clone())
        })
        .build()
        .unwrap();
    assert_eq!(layer.name(), "edge");
    ends(&layer, request(&[])).await;
    layer.handle().shadow(true);
    let call = layer.layer(hanging()).oneshot(request(&[]));
    assert!(tokio::time::timeout(ms(1_000), call).await.is_err());
    let events: Vec<_> = seen.lock().unwrap().iter().map(|e| (e.name.to_string(), e.kind.clone())).collect();
    let reason = Reason::DeadlineExceeded;
    let expected = [Kind::Rejected { reason }, Kind::WouldHaveRejected { reason }];
    assert_eq!(events, expected.map(|kind| ("edge".to_owned(), kind)));
    assert_eq!(layer.handle().snapshot().would_have_rejected, 1);
}

/// As `grpc-timeout` is: what somebody wrote by hand stays where it is shorter, and bounds the call.
#[tokio::test(start_paused = true)]
async fn a_millisecond_header_is_only_lowered() {
    for (by_hand, written, ends) in [(None, "1000", 1_000), (Some("300"), "300", 300), (Some("5000"), "1000", 1_000)] {
        let seen: Arc<Mutex<Option<String>>> = Arc::default();
        let told = Arc::clone(&seen);
        let service = DeadlineLayer::client().header(MILLIS).layer(service_fn(move |r: Request<Empty<Bytes>>| {
            *told.lock().unwrap() = r.headers().get(MILLIS).map(|v| v.to_str().unwrap().to_owned());
            std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
        }));
        let headers: Vec<_> = by_hand.map(|value| ("x-deadline-ms", value)).into_iter().collect();
        let start = Instant::now();
        Deadline::after(ms(1_000)).scope(service.oneshot(request(&headers))).await.unwrap();
        assert_eq!((seen.lock().unwrap().as_deref(), start.elapsed()), (Some(written), ms(ends)), "{by_hand:?}");
    }
}

/// Only who has the header below has a timer that ours must be before.
#[tokio::test(start_paused = true)]
async fn without_a_header_there_is_no_margin() {
    let start = Instant::now();
    let call = DeadlineLayer::server(ms(10_000)).layer(hanging()).oneshot(request(&[GRPC]));
    Deadline::after(ms(84)).scope(call).await.unwrap();
    assert_eq!(start.elapsed(), ms(84));
}

/// In shadow the layer binds nobody, those further in neither: they see what callers say and not the bound that is
/// tried.
#[tokio::test(start_paused = true)]
async fn a_bound_in_shadow_is_not_carried_on() {
    let layer = DeadlineLayer::builder().server(ms(50)).shadow(true).build().unwrap();
    let service = layer.layer(TimeoutLayer::builder().after(ms(1_000)).build().unwrap().layer(hanging()));
    for (timeout, ends, would) in
        [(None, 1_000, 1), (Some("100m"), 100, 2), (Some("20m"), 20, 3), (Some("0m"), 1_000, 4)]
    {
        let start = Instant::now();
        let headers: Vec<_> = timeout.map(|t| ("grpc-timeout", t)).into_iter().collect();
        let response = service.clone().oneshot(request(&headers)).await.unwrap();
        // Where a caller's timer is known to be at work, ours is a little earlier.
        let took = start.elapsed();
        assert!(took <= ms(ends) && took + ms(1) >= ms(ends), "{timeout:?}: {took:?}");
        let reason = Rejection::in_response(&response).unwrap().reason();
        assert_eq!(reason, if ends == 1_000 { Reason::Timeout } else { Reason::DeadlineExceeded }, "{timeout:?}");
        assert_eq!(layer.handle().snapshot().would_have_rejected, would, "{timeout:?}");
    }
}

#[test]
fn the_builder_checks() {
    let fields =
        |b: buttress::DeadlineBuilder| -> Vec<_> { b.build().unwrap_err().fields().iter().map(|e| e.field).collect() };
    assert_eq!(fields(DeadlineLayer::builder()), ["server"]);
    assert_eq!(fields(DeadlineLayer::builder().server(Duration::ZERO).name("")), ["name", "server"]);
    assert_eq!(fields(DeadlineLayer::builder().server(Duration::MAX)), ["server"]);
    assert!(DeadlineLayer::builder().client().header(MILLIS).build().is_ok());
}

// === after a wait ===

/// Answers after so long with this code, and notes for how long each call was to last by its header.
fn peer(
    takes: u64,
    code: &'static str,
    told: &Told,
) -> impl Service<Request<Empty<Bytes>>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Send> + Clone + use<>
{
    let tells = Arc::clone(told);
    service_fn(move |request: Request<Empty<Bytes>>| {
        let timeout = request.headers().get("grpc-timeout").map_or("none", |v| v.to_str().unwrap());
        tells.lock().unwrap().push(timeout.to_owned());
        async move {
            sleep(ms(takes)).await;
            let head = Response::builder().header(GRPC.0, GRPC.1).header("grpc-status", code);
            Ok(head.body(Empty::new()).unwrap())
        }
    })
}

type Told = Arc<Mutex<Vec<String>>>;

/// Two calls at once, of which the second has to wait.
async fn two<S, B>(service: S, headers: &[(&str, &str)])
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible> + Clone,
{
    let call = || service.clone().oneshot(request(headers));
    let (first, second) = tokio::join!(call(), call());
    drop((first.unwrap(), second.unwrap()));
}

/// Whoever has waited has less time left, and says so: the header is not what it was when the wait began.
#[tokio::test(start_paused = true)]
async fn the_header_of_a_call_that_waited_says_what_is_left() {
    use buttress::{AdaptiveRateLayer, BulkheadLayer, FallbackLayer, Quota, RateLimitLayer};
    let second = |told: &Mutex<Vec<String>>| told.lock().unwrap()[1].clone();

    let told = Told::default();
    let inner = peer(600, "0", &told);
    let bulkhead = BulkheadLayer::builder().limit(1).queue(1).wait(ms(5_000)).build().unwrap();
    let service = DeadlineLayer::client().layer(bulkhead.layer(inner.clone()));
    Deadline::after(ms(1_000)).scope(two(service, &[GRPC])).await;
    assert_eq!(second(&told), "400000u");

    let told = Told::default();
    let inner = peer(10, "0", &told);
    let rate = RateLimitLayer::builder().quota(Quota::per(1, ms(600))).wait(ms(5_000)).build().unwrap();
    Deadline::after(ms(1_000)).scope(two(DeadlineLayer::client().layer(rate.layer(inner)), &[GRPC])).await;
    assert_eq!(second(&told), "400000u");
    // A timeout around it has a bound of its own in there.
    let told = Told::default();
    let inner = peer(10, "0", &told);
    let timeout = TimeoutLayer::builder().after(ms(800)).build().unwrap();
    let rate = RateLimitLayer::builder().quota(Quota::per(1, ms(600))).wait(ms(5_000)).build().unwrap();
    two(timeout.layer(rate.layer(inner)), &[GRPC]).await;
    assert_eq!(*told.lock().unwrap(), ["805000u", "202000u"]);
    // In shadow it has none, and whatever it is for it changes nothing.
    let told = Told::default();
    let inner = peer(10, "0", &told);
    let timeout = TimeoutLayer::builder().after(ms(800)).shadow(true).build().unwrap();
    let rate = RateLimitLayer::builder().quota(Quota::per(1, ms(600))).wait(ms(5_000)).build().unwrap();
    two(timeout.layer(rate.layer(inner)), &[GRPC, ("grpc-timeout", "10S")]).await;
    assert_eq!(*told.lock().unwrap(), ["10S", "10S"]);

    let told = Told::default();
    let inner = peer(10, "0", &told);
    let adaptive = AdaptiveRateLayer::builder().wait(ms(5_000)).build().unwrap();
    let hint = service_fn(|_: Request<Empty<Bytes>>| {
        let head = Response::builder().status(429).header("retry-after", "1");
        ready(Ok::<_, Infallible>(head.body(Empty::<Bytes>::new()).unwrap()))
    });
    adaptive.layer(hint).oneshot(request(&[])).await.unwrap();
    let call = DeadlineLayer::client().layer(adaptive.layer(inner)).oneshot(request(&[GRPC]));
    Deadline::after(ms(3_000)).scope(call).await.unwrap();
    assert_eq!(*told.lock().unwrap(), ["2000000u"]);

    let told = Told::default();
    let (inner, backup) = (peer(600, "14", &Told::default()), peer(10, "0", &told));
    let service = DeadlineLayer::client().layer(FallbackLayer::to_service(backup).layer(inner));
    Deadline::after(ms(1_000)).scope(service.oneshot(request(&[GRPC]))).await.unwrap();
    assert_eq!(*told.lock().unwrap(), ["400000u"]);
    // Who said nothing of a time has not begun to.
    let told = Told::default();
    let (inner, backup) = (peer(600, "14", &Told::default()), peer(10, "0", &told));
    let call = FallbackLayer::to_service(backup).layer(inner).oneshot(request(&[GRPC]));
    Deadline::after(ms(1_000)).scope(call).await.unwrap();
    assert_eq!(*told.lock().unwrap(), ["none"]);
}
