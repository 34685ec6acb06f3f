//! Timeouts in virtual time: exact instants, whose clock ran out, bodies, configuration.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    future::{Future, pending, ready},
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, StreamBody};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use buttress::{
    Backoff, BoxError, Deadline, DeadlineLayer, Error, Outcome, Reason, Rejection, RetryLayer, TimeoutBuilder,
    TimeoutConfig, TimeoutLayer, Until,
    observe::{Event, Kind},
    testing::{OutcomesLayer, Probe},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn after(d: Duration) -> TimeoutBuilder {
    TimeoutLayer::builder().after(d)
}

fn get() -> Request<Empty<Bytes>> {
    Request::new(Empty::new())
}

fn grpc(timeout: Option<&str>) -> Request<Empty<Bytes>> {
    let mut request = Request::post("/x.Y/Z").header("content-type", "application/grpc");
    if let Some(t) = timeout {
        request = request.header("grpc-timeout", t);
    }
    request.body(Empty::new()).unwrap()
}

type Chunks = Vec<Result<Frame<Bytes>, BoxError>>;

/// A service whose response has these frames, then hangs if told so.
fn streaming(
    frames: impl Fn() -> Chunks + Clone,
    then_hangs: bool,
) -> impl Service<
    Request<Empty<Bytes>>,
    Response = Response<impl Body<Data = Bytes, Error = BoxError>>,
    Error = Infallible,
    Future: Future,
> + Clone {
    service_fn(move |_: Request<Empty<Bytes>>| {
        let frames = stream::iter(frames());
        let rest = if then_hangs { stream::pending().left_stream() } else { stream::empty().right_stream() };
        ready(Ok(Response::new(StreamBody::new(frames.chain(rest)))))
    })
}

fn data(s: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(s.as_bytes())))
}

// === to the head ===

#[tokio::test(start_paused = true)]
async fn fires_exactly_counted_from_call() {
    let probe = Probe::new();
    probe.hangs();
    let layer = after(ms(100)).build().unwrap().plain();
    let mut service = layer.layer(probe.clone());
    let call = ServiceExt::<()>::ready(&mut service).await.unwrap().call(());
    // Not polled for a while: the time counts from `call` all the same.
    advance(ms(30)).await;
    let start = Instant::now();
    let error = call.await.unwrap_err();
    assert_eq!(start.elapsed(), ms(70));
    let Error::Rejected(rejection) = error else { panic!("{error:?}") };
    assert_eq!((rejection.policy(), rejection.name(), rejection.reason()), ("timeout", "timeout", Reason::Timeout));
    assert_eq!((rejection.retry_after(), rejection.is_refusal()), (None, false));
    assert_eq!(probe.in_flight(), 0);
    assert_eq!(layer.handle().snapshot().timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_the_same_instant_wins() {
    let slow = service_fn(|(): ()| async {
        sleep(ms(100)).await;
        Ok::<_, Infallible>("there")
    });
    assert_eq!(after(ms(100)).build().unwrap().plain().layer(slow).oneshot(()).await.unwrap(), "there");
    assert!(after(ms(99)).build().unwrap().plain().layer(slow).oneshot(()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_an_http_response() {
    let layer = after(ms(10)).name("db").build().unwrap();
    let service = layer.layer(streaming_head_hangs());
    let response = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(response.status(), 504);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(Rejection::in_response(&response).map(Rejection::name), Some("db"));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        body,
        r#"{"type":"about:blank","title":"Gateway Timeout","status":504,"detail":"the call took too long","policy":"timeout","reason":"timeout"}"#
    );

    let response = service.oneshot(grpc(None)).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"4".parse().unwrap()));
    assert_eq!(response.headers()["grpc-message"], "the call took too long");
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

fn streaming_head_hangs()
-> impl Service<Request<Empty<Bytes>>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Future> + Clone {
    service_fn(|_| pending())
}

#[tokio::test(start_paused = true)]
async fn a_name_is_told_only_when_asked() {
    for (expose, shown) in [(false, false), (true, true)] {
        let layer = after(ms(1)).name("ledger-db").expose_name(expose).build().unwrap();
        let response = layer.layer(streaming_head_hangs()).oneshot(get()).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(String::from_utf8_lossy(&body).contains("ledger-db"), shown);
    }
}

#[tokio::test(start_paused = true)]
async fn the_function_of_the_request_goes_before_the_fixed_bound() {
    let layer = after(ms(50))
        .after_fn(|parts| match parts.uri.path() {
            "/fast" => Some(ms(10)),
            "/zero" => Some(Duration::ZERO),
            "/free" => Some(Duration::MAX),
            _ => None,
        })
        .build()
        .unwrap();
    for (path, took) in [("/fast", Some(ms(10))), ("/zero", Some(ms(0))), ("/other", Some(ms(50))), ("/free", None)] {
        let request = Request::get(path).body(Empty::<Bytes>::new()).unwrap();
        let start = Instant::now();
        let call = layer.layer(streaming_head_hangs()).oneshot(request);
        match (tokio::time::timeout(ms(5_000), call).await, took) {
            (Ok(response), Some(took)) => {
                assert_eq!((response.unwrap().status().as_u16(), start.elapsed()), (504, took), "{path}");
            }
            (Err(_), None) => {}
            (_, took) => panic!("{path}: expected {took:?}"),
        }
    }
    // An answer that is ready at once is in time, even with zero.
    let quick = layer.layer(streaming(Vec::new, false));
    assert_eq!(quick.oneshot(Request::get("/zero").body(Empty::new()).unwrap()).await.unwrap().status(), 200);
}

// === the caller's deadline ===

#[tokio::test(start_paused = true)]
async fn never_later_than_the_deadline() {
    let layer = after(ms(100)).build().unwrap().plain();
    let probe = Probe::new();
    probe.hangs();
    let start = Instant::now();
    let call = layer.layer(probe.clone()).oneshot(());
    let error = Deadline::after(ms(40)).scope(call).await.unwrap_err();
    assert_eq!(start.elapsed(), ms(40));
    assert_eq!(Rejection::of(&error).unwrap().reason(), Reason::DeadlineExceeded);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.timed_out, snapshot.deadline_exceeded), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_extension_counts_and_the_earliest_wins() {
    let layer = after(ms(100)).build().unwrap();
    for (on_request, ambient, took) in [(ms(30), ms(60), ms(30)), (ms(60), ms(30), ms(30)), (ms(200), ms(300), ms(100))]
    {
        let mut request = get();
        request.extensions_mut().insert(Deadline::after(on_request));
        let start = Instant::now();
        let call = layer.layer(streaming_head_hangs()).oneshot(request);
        let response = Deadline::after(ambient).scope(call).await.unwrap();
        assert_eq!(start.elapsed(), took);
        let reason = if took == ms(100) { Reason::Timeout } else { Reason::DeadlineExceeded };
        assert_eq!(Rejection::in_response(&response).unwrap().reason(), reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_in_the_past_is_refused_and_the_backend_untouched() {
    let probe = Probe::new();
    let layer = after(ms(100)).build().unwrap();
    let mut late = get();
    late.extensions_mut().insert(Deadline::at(Instant::now()));
    let response = layer.layer(probe.clone()).oneshot(late).await.unwrap();
    assert_eq!(response.status(), 504);
    let response = layer.layer(probe.clone()).oneshot(grpc(Some("0m"))).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
    assert_eq!((probe.calls(), probe.held()), (0, 0));
}

// === on the wire ===

/// The `grpc-timeout` that the inner service is given.
async fn written(layer: &TimeoutLayer, request: Request<Empty<Bytes>>) -> Option<String> {
    let seen = Arc::new(Mutex::new(None));
    let inner = service_fn({
        let seen = Arc::clone(&seen);
        move |r: Request<Empty<Bytes>>| {
            *seen.lock().unwrap() = r.headers().get("grpc-timeout").map(|v| v.to_str().unwrap().to_owned());
            ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
        }
    });
    layer.layer(inner).oneshot(request).await.unwrap();
    Arc::try_unwrap(seen).unwrap_or_default().into_inner().unwrap()
}

#[tokio::test(start_paused = true)]
async fn sets_or_lowers_grpc_timeout() {
    let layer = after(ms(100)).build().unwrap();
    assert_eq!(written(&layer, grpc(None)).await.as_deref(), Some("101000u"));
    assert_eq!(written(&layer, grpc(Some("5S"))).await.as_deref(), Some("101000u"));
    assert_eq!(written(&layer, grpc(Some("50m"))).await.as_deref(), Some("50m"));
    assert_eq!(written(&layer, grpc(Some("soon"))).await.as_deref(), Some("101000u"));
    assert_eq!(layer.handle().snapshot().malformed_headers, 1);
    assert_eq!(written(&layer, get()).await, None);

    let one_second = after(ms(1000)).build().unwrap();
    assert_eq!(written(&one_second, grpc(None)).await.as_deref(), Some("1005000u"));
    // Never past the caller's deadline.
    let call = written(&layer, grpc(None));
    assert_eq!(Deadline::after(ms(70)).scope(call).await.as_deref(), Some("70000000n"));
    let call = written(&layer, grpc(None));
    assert_eq!(Deadline::after(Duration::from_micros(100_500)).scope(call).await.as_deref(), Some("100500u"));
}

#[tokio::test(start_paused = true)]
async fn on_grpc_the_timer_beats_the_transports_own() {
    let layer = after(ms(500)).build().unwrap();
    let start = Instant::now();
    let response = layer.layer(streaming_head_hangs()).oneshot(grpc(Some("200m"))).await.unwrap();
    assert_eq!((start.elapsed(), &response.headers()["grpc-status"]), (ms(198), &"4".parse().unwrap()));
    assert_eq!(Rejection::in_response(&response).unwrap().reason(), Reason::DeadlineExceeded);
}

// === to the end of the body ===

#[tokio::test(start_paused = true)]
async fn until_head_leaves_the_body_alone() {
    let layer = after(ms(10)).build().unwrap();
    let response = layer.layer(streaming(|| vec![data("a")], true)).oneshot(get()).await.unwrap();
    let mut body = pin!(response.into_body());
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    assert!(tokio::time::timeout(ms(10_000), body.frame()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn until_end_ends_a_hanging_http_body_with_an_error() {
    let layer = after(ms(100)).until(Until::End).build().unwrap();
    let start = Instant::now();
    let response = layer.layer(streaming(|| vec![data("a")], true)).oneshot(get()).await.unwrap();
    let mut body = pin!(response.into_body());
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(start.elapsed(), ms(100));
    assert_eq!(Rejection::of(&*error).unwrap().reason(), Reason::Timeout);
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
    assert_eq!(layer.handle().snapshot().timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn until_end_ends_a_hanging_grpc_body_with_trailers() {
    let layer = after(ms(100)).until(Until::End).build().unwrap();
    let response = layer.layer(streaming(|| vec![data("a")], true)).oneshot(grpc(None)).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "4");
    assert_eq!(trailers["grpc-message"], "the call took too long");
    assert_eq!(collected.to_bytes(), "a");
}

#[tokio::test(start_paused = true)]
async fn until_end_bounds_a_body_that_never_waits() {
    let layer = after(ms(100)).until(Until::End).build().unwrap();
    let endless = service_fn(|_: Request<Empty<Bytes>>| {
        let frames = stream::repeat_with(|| data("more"));
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(frames))))
    });
    let mut body = pin!(layer.layer(endless).oneshot(get()).await.unwrap().into_body());
    for _ in 0..10 {
        assert!(body.frame().await.unwrap().is_ok());
        advance(ms(10)).await;
    }
    // At 100 ms sharp a frame that is there still wins.
    assert!(body.frame().await.unwrap().is_ok());
    advance(ms(1)).await;
    assert_eq!(Rejection::of(&*body.frame().await.unwrap().unwrap_err()).unwrap().reason(), Reason::Timeout);
}

#[tokio::test(start_paused = true)]
async fn idle_bounds_each_wait_and_does_not_run_while_nobody_reads() {
    let layer = TimeoutLayer::builder().idle(ms(50)).build().unwrap();
    let paced = service_fn(|_: Request<Empty<Bytes>>| {
        let frames = stream::unfold(0, |n| async move {
            sleep(ms(if n < 5 { 49 } else { 51 })).await;
            Some((data("x"), n + 1))
        });
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(frames)))))
    });
    let mut body = pin!(layer.layer(paced).oneshot(get()).await.unwrap().into_body());
    for _ in 0..5 {
        assert!(body.frame().await.unwrap().is_ok());
        // The reader takes its time; that is not the backend's.
        advance(ms(1_000)).await;
    }
    let start = Instant::now();
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(start.elapsed(), ms(50));
    assert_eq!(Rejection::of(&*error).unwrap().reason(), Reason::Timeout);
}

#[tokio::test(start_paused = true)]
async fn idle_bounds_the_first_frame_too_and_leaves_the_head_alone() {
    let layer = TimeoutLayer::builder().idle(ms(50)).build().unwrap();
    let slow_head = service_fn(|r: Request<Empty<Bytes>>| async {
        sleep(ms(500)).await;
        streaming(Vec::new, true).oneshot(r).await
    });
    let start = Instant::now();
    let response = layer.layer(slow_head).oneshot(get()).await.unwrap();
    assert!(pin!(response.into_body()).frame().await.unwrap().is_err());
    assert_eq!(start.elapsed(), ms(550));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_bounds_a_body_under_until_end() {
    let layer = after(ms(100)).until(Until::End).build().unwrap();
    let call = layer.layer(streaming(Vec::new, true)).oneshot(get());
    let response = Deadline::after(ms(40)).scope(call).await.unwrap();
    let start = Instant::now();
    let error = pin!(response.into_body()).frame().await.unwrap().unwrap_err();
    assert_eq!(start.elapsed(), ms(40));
    assert_eq!(Rejection::of(&*error).unwrap().reason(), Reason::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn malformed_headers_of_a_watched_response_are_counted() {
    let layer = after(ms(100)).until(Until::End).build().unwrap();
    let odd = service_fn(|_: Request<Empty<Bytes>>| {
        let response = Response::builder().header("content-length", "many").header("grpc-status", "fine");
        ready(Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap()))
    });
    layer.layer(odd).oneshot(get()).await.unwrap();
    assert_eq!(layer.handle().snapshot().malformed_headers, 1);
    layer.layer(odd).oneshot(grpc(None)).await.unwrap();
    assert_eq!(layer.handle().snapshot().malformed_headers, 2);
}

// === whose clock ran out, as policies inside and outside see it ===

/// What a policy inside and one outside a 100 ms timeout book for a call under this deadline.
async fn booked(until: Until, deadline: Option<Duration>, request: Request<Empty<Bytes>>) -> [Vec<Outcome>; 2] {
    let (inside, outside) = (OutcomesLayer::new(), OutcomesLayer::new());
    let timeout = after(ms(100)).until(until).build().unwrap();
    let hanging = streaming(Vec::new, true);
    let backend = service_fn(move |r| {
        let hanging = hanging.clone();
        async move {
            if until == Until::Head {
                pending::<()>().await;
            }
            hanging.oneshot(r).await
        }
    });
    let service = outside.layer(timeout.layer(inside.layer(backend)));
    let call = async {
        let response = service.oneshot(request).await.unwrap();
        let _ = response.into_body().collect().await;
    };
    match deadline {
        Some(d) => Deadline::after(d).scope(call).await,
        None => call.await,
    }
    [inside.handle().take(), outside.handle().take()]
}

#[tokio::test(start_paused = true)]
async fn the_operators_timeout_is_a_failure_inside_and_outside() {
    for until in [Until::Head, Until::End] {
        for request in [get(), grpc(None)] {
            let failure = || vec![Outcome::Failure];
            assert_eq!(booked(until, None, request).await, [failure(), failure()], "{until:?}");
        }
    }
}

/// Why a gRPC call ends that hangs, when, and what it was to who stands outside and inside.
macro_rules! ends {
    ($timeout:expr; $($layer:expr),+) => {{
        let (outside, inside) = (OutcomesLayer::new(), OutcomesLayer::new());
        let hangs = service_fn(|_: Request<Empty<Bytes>>| pending::<Result<Response<Empty<Bytes>>, Infallible>>());
        let stack = ServiceBuilder::new().layer(outside.clone())$(.layer($layer))+.layer(inside.clone());
        let start = Instant::now();
        let response = stack.service(hangs).oneshot(grpc($timeout)).await.unwrap();
        let reason = Rejection::in_response(&response).unwrap().reason();
        drop(response);
        (reason, start.elapsed(), outside.handle().take(), inside.handle().take())
    }};
}

/// It stands in `grpc-timeout` too, which is read by whatever stands inside: that is not the caller's word for all
/// that.
#[tokio::test(start_paused = true)]
async fn an_own_timeout_around_what_reads_deadlines_stays_the_operators() {
    use Outcome::{Cancelled, Failure};
    let timeout = |n| after(ms(n)).build().unwrap();
    let server = || DeadlineLayer::server(ms(10_000));
    let ours = (Reason::Timeout, ms(500), vec![Failure], vec![Failure]);
    assert_eq!(ends!(None; timeout(500), server()), ours);
    assert_eq!(ends!(None; timeout(500), DeadlineLayer::client()), ours);
    assert_eq!(ends!(None; timeout(500), timeout(1_000)), ours);
    assert_eq!(ends!(None; timeout(500), timeout(1_000), server(), DeadlineLayer::client()), ours);
    assert_eq!(ends!(None; server(), timeout(500), timeout(1_000)), ours);
    // Of three attempts the last is cut off by the timeout of them all.
    let retry = || RetryLayer::builder().backoff(Backoff::Constant(Duration::ZERO)).build().unwrap();
    let attempts = (Reason::Timeout, ms(500), vec![Failure], vec![Failure; 3]);
    assert_eq!(ends!(None; timeout(500), retry(), timeout(200), DeadlineLayer::client()), attempts);
    // The caller's own is that, and the one that ends first is the one that counts.
    assert_eq!(ends!(Some("2S"); timeout(500), server()), ours);
    assert_eq!(ends!(Some("2S"); timeout(500), timeout(1_000), server()), ours);
    let callers = (Reason::DeadlineExceeded, ms(297), vec![Cancelled], vec![Cancelled]);
    assert_eq!(ends!(Some("300m"); timeout(500), server()), callers);
    assert_eq!(ends!(Some("300m"); timeout(500), timeout(400), DeadlineLayer::client()), callers);
    // A call that is made meanwhile says what it means: the timer here is only for a head, or in shadow.
    for shadow in [false, true] {
        let upstream = service_fn(|_: Request<Empty<Bytes>>| {
            let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
            ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let client = DeadlineLayer::client().layer(upstream);
        let handler = service_fn(move |_: Request<Empty<Bytes>>| client.clone().oneshot(grpc(Some("60S"))));
        let server = after(ms(500)).shadow(shadow).build().unwrap().layer(handler);
        let start = Instant::now();
        let response = server.oneshot(grpc(None)).await.unwrap();
        let trailers = response.into_body().collect().await.unwrap().trailers().cloned().unwrap();
        assert_eq!((start.elapsed(), &trailers["grpc-status"]), (ms(59_995), &"4".parse().unwrap()));
    }
    // What panicked inside of one is inside no more.
    let probe = Probe::new();
    probe.panics();
    let panics = tokio::spawn(timeout(500).layer(probe).oneshot(grpc(None))).await;
    assert!(panics.unwrap_err().is_panic());
    let (reason, took, ..) = ends!(Some("2S"); server());
    assert_eq!((reason, took), (Reason::DeadlineExceeded, ms(1_995)));
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_is_nobodys_failure() {
    for until in [Until::Head, Until::End] {
        for request in [get(), grpc(None)] {
            let cancelled = || vec![Outcome::Cancelled];
            assert_eq!(booked(until, Some(ms(50)), request).await, [cancelled(), cancelled()], "{until:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn plain_services_see_the_same() {
    for (deadline, outcome) in [(ms(1_000), Outcome::Failure), (ms(50), Outcome::Cancelled)] {
        let (inside, outside) = (OutcomesLayer::new(), OutcomesLayer::new());
        let probe = Probe::new();
        probe.hangs();
        let timeout = after(ms(100)).build().unwrap().flat();
        let service = outside.clone().flat().layer(timeout.layer(inside.clone().plain().layer(probe)));
        assert!(Deadline::after(deadline).scope(service.oneshot(())).await.is_err());
        assert_eq!([inside.handle().take(), outside.handle().take()], [[outcome], [outcome]]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_is_cancelled() {
    let (inside, outside) = (OutcomesLayer::new(), OutcomesLayer::new());
    let events = Arc::new(Mutex::new(0));
    let count = Arc::clone(&events);
    let timeout = after(ms(100)).observer(move |_: &Event| *count.lock().unwrap() += 1).build().unwrap();
    let service = outside.layer(timeout.layer(inside.layer(streaming_head_hangs())));
    assert!(tokio::time::timeout(ms(50), service.oneshot(get())).await.is_err());
    assert_eq!([inside.handle().take(), outside.handle().take()], [[Outcome::Cancelled], [Outcome::Cancelled]]);
    assert_eq!((timeout.handle().snapshot().timed_out, *events.lock().unwrap()), (0, 0));
}

// === shared state, events, shadow, live changes ===

#[tokio::test(start_paused = true)]
async fn every_service_of_a_layer_shares_its_state() {
    let layer = after(ms(10)).build().unwrap();
    let handle = layer.handle();
    for _ in 0..3 {
        layer.clone().layer(streaming_head_hangs()).oneshot(get()).await.unwrap();
    }
    let probe = Probe::new();
    probe.hangs();
    assert!(layer.plain().layer(probe).oneshot(()).await.is_err());
    assert_eq!(handle.snapshot().timed_out, 4);
}

#[tokio::test(start_paused = true)]
async fn events_name_the_policy_and_a_panicking_observer_is_contained() {
    let seen: Arc<Mutex<Vec<Event>>> = Arc::default();
    let layer = after(ms(10))
        .name("pay")
        .observer(|_: &Event| panic!("an observer's own trouble"))
        .observer({
            let seen = Arc::clone(&seen);
            move |e: &Event| seen.lock().unwrap().push(e.clone())
        })
        .build()
        .unwrap();
    let service = layer.layer(streaming_head_hangs());
    assert_eq!(service.clone().oneshot(get()).await.unwrap().status(), 504);
    Deadline::after(ms(5)).scope(service.clone().oneshot(get())).await.unwrap();
    assert_eq!(layer.layer(Probe::new()).oneshot(get()).await.unwrap().status(), 200);
    let kinds: Vec<_> = seen.lock().unwrap().iter().map(|e| (e.policy, e.name.to_string(), e.kind.clone())).collect();
    let of = |kind| ("timeout", "pay".to_owned(), kind);
    assert_eq!(kinds, [of(Kind::TimedOut), of(Kind::Rejected { reason: Reason::DeadlineExceeded })]);
}

/// Two bounds that run out at the same instant are one call that would have been ended.
#[tokio::test(start_paused = true)]
async fn shadow_reports_once_what_runs_out_together() {
    let layer = after(ms(100)).until(Until::End).idle(ms(50)).shadow(true).build().unwrap();
    let service = service_fn(|_: Request<Empty<Bytes>>| async {
        sleep(ms(50)).await;
        let late = stream::once(Box::pin(async {
            sleep(ms(200)).await;
            data("late")
        }));
        Ok::<_, Infallible>(Response::new(StreamBody::new(late)))
    });
    let response = layer.layer(service).oneshot(grpc(None)).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "late");
    assert_eq!(layer.handle().snapshot().would_have_rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn shadow_reports_once_and_lets_go_on() {
    let seen: Arc<Mutex<Vec<Kind>>> = Arc::default();
    let layer = after(ms(100))
        .until(Until::End)
        .idle(ms(10))
        .shadow(true)
        .observer({
            let seen = Arc::clone(&seen);
            move |e: &Event| seen.lock().unwrap().push(e.kind.clone())
        })
        .build()
        .unwrap();
    let slow = service_fn(|_: Request<Empty<Bytes>>| async {
        sleep(ms(200)).await;
        let late = stream::once(Box::pin(async {
            sleep(ms(200)).await;
            data("late")
        }));
        Ok::<_, Infallible>(Response::new(StreamBody::new(late)))
    });
    let call = async {
        let response = layer.layer(slow).oneshot(grpc(None)).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "late");
    };
    call.await;
    let timeout = Kind::WouldHaveRejected { reason: Reason::Timeout };
    assert_eq!(*seen.lock().unwrap(), [timeout.clone(), timeout]);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.timed_out, snapshot.would_have_rejected), (0, 2));
    // Nothing is enforced by way of the wire either.
    assert_eq!(written(&layer, grpc(None)).await, None);

    layer.handle().shadow(false);
    assert!(layer.layer(slow).oneshot(grpc(None)).await.unwrap().headers().contains_key("grpc-status"));
}

#[tokio::test(start_paused = true)]
async fn update_holds_for_calls_that_start_from_now_on() {
    let layer = after(ms(100)).build().unwrap();
    let service = layer.layer(streaming_head_hangs());
    let mut running = pin!(service.clone().oneshot(get()));
    assert!((&mut running).now_or_never().is_none());
    let config = TimeoutConfig { after: Some(ms(20)), ..TimeoutConfig::default() };
    layer.handle().update(config).unwrap();
    assert_eq!(layer.handle().snapshot().config, config);

    let start = Instant::now();
    service.oneshot(get()).await.unwrap();
    assert_eq!(start.elapsed(), ms(20));
    running.await.unwrap();
    assert_eq!(start.elapsed(), ms(100));

    let nothing = layer.handle().update(TimeoutConfig::default()).unwrap_err();
    assert_eq!(nothing.fields()[0].field, "after");
    assert_eq!(layer.handle().snapshot().config, config);
}

// === configuration ===

#[test]
fn bad_configuration_lists_every_field() {
    let bad =
        |b: TimeoutBuilder| -> Vec<&'static str> { b.build().unwrap_err().fields().iter().map(|e| e.field).collect() };
    assert_eq!(bad(TimeoutLayer::builder()), ["after"]);
    assert_eq!(bad(after(Duration::ZERO)), ["after"]);
    assert_eq!(bad(after(Duration::MAX)), ["after"]);
    assert_eq!(bad(after(Duration::MAX).idle(Duration::ZERO).name("é")), ["name", "after", "idle"]);
    assert_eq!(bad(after(ms(1)).name("")), ["name"]);
    assert!(TimeoutLayer::builder().after_fn(|_| None).build().is_ok());
    assert!(TimeoutLayer::builder().idle(ms(1)).build().is_ok());

    let text = after(Duration::ZERO).build().unwrap_err().to_string();
    assert_eq!(text, "bad configuration: `after` is 0ns, expected a duration from 1ns to 365 days");
}

#[tokio::test(start_paused = true)]
async fn a_year_is_not_too_long_for_the_timer() {
    let layer = after(Duration::from_secs(365 * 24 * 3600)).build().unwrap();
    let start = Instant::now();
    assert_eq!(layer.layer(streaming_head_hangs()).oneshot(get()).await.unwrap().status(), 504);
    assert_eq!(start.elapsed(), Duration::from_secs(365 * 24 * 3600));
}

/// Bodies with timers can be a `Default`, as tonic's interceptors need, and the trailers pass through.
#[tokio::test(start_paused = true)]
async fn trailers_pass_through() {
    let layer = after(ms(100)).until(Until::End).build().unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let with_trailers = streaming(move || vec![data("a"), Ok(Frame::trailers(trailers.clone()))], false);
    let collected = layer.layer(with_trailers).oneshot(grpc(None)).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "a");
}

/// tonic's own timer on `grpc-timeout` ends the call with an error. If nobody polled for a while both timers are due at
/// once, the inner one answers first, and its CANCELLED would hide what happened.
#[tokio::test(start_paused = true)]
async fn a_transports_own_timer_does_not_win_because_nobody_polled() {
    let transport = |after: Duration| {
        service_fn(move |_: Request<Empty<Bytes>>| async move {
            sleep(after).await;
            Err::<Response<Empty<Bytes>>, _>("timeout expired")
        })
    };
    let layer = after(ms(100)).build().unwrap();
    // The transport's error comes at ...; nobody polls until ...; is it our answer that comes back?
    for (request, error_at, polled_at, ours) in
        [(grpc(None), 101, 500, true), (grpc(None), 50, 60, false), (get(), 101, 500, false)]
    {
        let mut call = pin!(layer.layer(transport(ms(error_at))).oneshot(request));
        assert!((&mut call).now_or_never().is_none());
        advance(ms(polled_at)).await;
        assert_eq!(call.await.is_ok(), ours);
    }
}

/// The peer has the bound from `grpc-timeout`, and its timer ends the call with CANCELLED (tonic's server) or
/// DEADLINE_EXCEEDED.
#[tokio::test(start_paused = true)]
async fn a_peers_own_timer_does_not_win_because_nobody_polled() {
    let layer = after(ms(100)).build().unwrap();
    for (code, answers_at, polled_at, ours) in [
        ("1", 101, 500, true),
        ("4", 101, 500, true),
        ("1", 50, 60, false),
        ("14", 101, 500, false),
        ("0", 101, 500, false),
    ] {
        let peer = service_fn(move |_: Request<Empty<Bytes>>| async move {
            sleep(ms(answers_at)).await;
            let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", code);
            Ok::<_, Infallible>(head.body(Empty::<Bytes>::new()).unwrap())
        });
        let (outside, inside) = (OutcomesLayer::new(), OutcomesLayer::new());
        let mut call = pin!(outside.layer(layer.layer(inside.layer(peer))).oneshot(grpc(None)));
        assert!((&mut call).now_or_never().is_none());
        advance(ms(polled_at)).await;
        let answer = call.await.unwrap();
        let reason = Rejection::in_response(&answer).map(Rejection::reason);
        assert_eq!(reason, ours.then_some(Reason::Timeout), "{code} at {answers_at}");
        assert!(!ours || [outside, inside].iter().all(|side| side.handle().take() == [Outcome::Failure]));
    }
    // In shadow it is told of once, whatever comes behind that head.
    let layer = after(ms(100)).until(Until::End).shadow(true).build().unwrap();
    let peer = service_fn(|_: Request<Empty<Bytes>>| async {
        sleep(ms(101)).await;
        let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "1");
        let frames = stream::iter([data("a")]).chain(stream::once(async {
            sleep(ms(50)).await;
            data("b")
        }));
        Ok::<_, Infallible>(head.body(StreamBody::new(Box::pin(frames))).unwrap())
    });
    let mut call = pin!(layer.layer(peer).oneshot(grpc(None)));
    assert!((&mut call).now_or_never().is_none());
    advance(ms(500)).await;
    assert_eq!(call.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "ab");
    assert_eq!(layer.handle().snapshot().would_have_rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn shadow_reports_a_request_that_came_too_late_once() {
    let layer = after(ms(10)).until(Until::End).shadow(true).build().unwrap();
    let mut late = get();
    late.extensions_mut().insert(Deadline::at(Instant::now()));
    let call = layer.layer(streaming(|| vec![data("a")], false)).oneshot(late);
    assert_eq!(call.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "a");
    assert_eq!(layer.handle().snapshot().would_have_rejected, 1);
}
