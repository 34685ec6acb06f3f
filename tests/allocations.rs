//! Law 13: what a call allocates, counted per thread, each case with its exact figure.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    cell::Cell,
    convert::Infallible,
    error::Error as StdError,
    fmt,
    future::{Future, Ready, pending, ready},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{Empty, Full};
use tower::{Layer, Service, service_fn};

use buttress::{
    AdaptiveRateLayer, Answer, Backoff, Budget, BulkheadLayer, CircuitBreakerLayer, Deadline, DeadlineLayer, Error,
    FallbackContext, FallbackLayer, HedgeLayer, Key, LastGood, LimitHeaders, OpenTime, Quota, RateLimitLayer,
    RetryLayer, TimeoutLayer, Until,
};

#[derive(Debug)]
struct Oops;

impl fmt::Display for Oops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("oops")
    }
}

impl StdError for Oops {}

/// One call from readiness to the end of its future; `None` if it is still pending.
fn call<S: Service<Req>, Req>(service: &mut S, request: Req) -> Option<Result<S::Response, S::Error>> {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    match pin!(service.call(request)).poll(&mut cx) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

/// As [`call`], and the response's body to its end or until it hangs.
fn call_and_read<S, Q, RB>(service: &mut S, request: Request<Q>) -> Option<Result<(), S::Error>>
where
    S: Service<Request<Q>, Response = Response<RB>>,
    RB: Body<Data = Bytes>,
{
    let response = match call(service, request)? {
        Ok(response) => response,
        Err(e) => return Some(Err(e)),
    };
    let mut cx = Context::from_waker(Waker::noop());
    let mut body = pin!(response.into_body());
    loop {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(_)) => {}
            Poll::Ready(None) => return Some(Ok(())),
            Poll::Pending => return None,
        }
    }
}

fn head() -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::HEAD;
    request
}

/// Allocations of `run`, after it ran once: the first use of a thread's own memory is not the call's.
fn allocations(mut run: impl FnMut()) -> u64 {
    run();
    measure(run).count_total
}

fn in_runtime(test: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let _entered = runtime.enter();
    test();
}

fn timeout() -> buttress::TimeoutBuilder {
    TimeoutLayer::builder().after(Duration::from_secs(1))
}

fn plain() -> impl Service<u32, Response = u32, Error = Oops, Future = Ready<Result<u32, Oops>>> + Clone {
    service_fn(|n: u32| ready(Ok(n)))
}

type HttpResult = Result<Response<Empty<Bytes>>, Infallible>;

fn http() -> impl Service<Request<()>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Future> + Clone {
    service_fn(|_: Request<()>| ready(HttpResult::Ok(Response::new(Empty::new()))))
}

fn hanging() -> impl Service<Request<()>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Future> + Clone
{
    service_fn(|_: Request<()>| pending::<HttpResult>())
}

/// Answers with a body that hangs.
fn streaming() -> impl Service<
    Request<()>,
    Response = Response<impl Body<Data = Bytes, Error = Infallible>>,
    Error = Infallible,
    Future: Future,
> + Clone {
    service_fn(|_: Request<()>| {
        let frames = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
        ready(Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(frames))))
    })
}

fn grpc(timeout: Option<&'static str>) -> Request<()> {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "application/grpc".parse().unwrap());
    if let Some(t) = timeout {
        headers.insert("grpc-timeout", t.parse().unwrap());
    }
    let mut request = Request::new(());
    *request.headers_mut() = headers;
    request
}

// === admitted ===

#[test]
fn plain_admitted_is_free_ready_and_pending() {
    in_runtime(|| {
        let mut service = timeout().build().unwrap().plain().layer(plain());
        assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
        let mut service = timeout().build().unwrap().plain().layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
        assert_eq!(allocations(|| assert!(call(&mut service, 1).is_none())), 0);
        let mut service = timeout().build().unwrap().boxed().layer(plain());
        assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
    });
}

#[test]
fn http_admitted_is_free_ready_pending_and_with_a_watched_body() {
    in_runtime(|| {
        let layer = timeout().build().unwrap();
        let (mut service, mut pending) = (layer.layer(http()), layer.layer(hanging()));
        assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
        assert_eq!(allocations(|| assert!(call_and_read(&mut pending, Request::new(())).is_none())), 0);
        let layer = timeout().until(Until::End).idle(Duration::from_secs(1)).build().unwrap();
        let (mut service, mut pending) = (layer.layer(http()), layer.layer(hanging()));
        assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
        assert_eq!(allocations(|| assert!(call_and_read(&mut pending, Request::new(())).is_none())), 0);
        // A body that hangs: its timer is inline too.
        let mut service = layer.layer(streaming());
        assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_none())), 0);
    });
}

#[test]
fn a_written_grpc_timeout_costs_its_value() {
    in_runtime(|| {
        let mut service = timeout().build().unwrap().layer(http());
        let bare = allocations(|| drop(grpc(Some("2S"))));
        assert_eq!(allocations(|| assert!(call(&mut service, grpc(Some("500m"))).is_some())), bare);
        assert_eq!(allocations(|| assert!(call(&mut service, grpc(Some("2S"))).is_some())), bare + 1);
    });
}

#[test]
fn a_deadline_costs_its_extension() {
    in_runtime(|| {
        let mut service = DeadlineLayer::server(Duration::from_secs(1)).layer(http());
        // The map, its table, the boxed value.
        assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 3);
        let mut service = DeadlineLayer::client().layer(http());
        assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
    });
}

/// Breakers with both kinds of window; both ask for slow calls.
fn breakers() -> [buttress::CircuitBreakerBuilder; 2] {
    let slow = || CircuitBreakerLayer::builder().slow_calls(Duration::from_secs(1), 1.0);
    [slow().count_window(100), slow().time_window(Duration::from_secs(10))]
}

#[test]
fn a_closed_breaker_is_free() {
    in_runtime(|| {
        for builder in breakers() {
            let layer = builder.build().unwrap();
            let mut service = layer.clone().plain().layer(plain());
            assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
            let mut pending = layer.clone().plain().layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
            assert_eq!(allocations(|| assert!(call(&mut pending, 1).is_none())), 0);
            let (mut service, mut pending) = (layer.layer(http()), layer.layer(hanging()));
            assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
            assert_eq!(allocations(|| assert!(call_and_read(&mut pending, Request::new(())).is_none())), 0);
        }
    });
}

#[test]
fn opening_half_opening_and_closing_are_free() {
    in_runtime(|| {
        let fails = service_fn(|fail: u32| ready(if fail > 0 { Err(Oops) } else { Ok(fail) }));
        for builder in breakers() {
            let open = OpenTime::Fixed(Duration::from_nanos(1));
            let builder = builder.consecutive_failures(1).open(open).probes(1).successes_to_close(1);
            let mut service = builder.build().unwrap().plain().layer(fails);
            let count = allocations(|| {
                assert!(call(&mut service, 1).unwrap().is_err());
                // Refused, or the probe, as the clock stands.
                let _ = call(&mut service, 0);
                let _ = call(&mut service, 0);
            });
            assert_eq!(count, 0);
        }
    });
}

fn retry() -> buttress::RetryBuilder {
    RetryLayer::builder()
        .backoff(Backoff::Constant(Duration::ZERO))
        .budget(Budget::new(1.0, 9, Duration::from_secs(9)).unwrap())
}

#[test]
fn a_plain_retry_is_free_with_and_without_failures() {
    in_runtime(|| {
        let layer = retry().build().unwrap().plain();
        let mut service = layer.layer(plain());
        assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
        let mut pending = layer.layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
        assert_eq!(allocations(|| assert!(call(&mut pending, 1).is_none())), 0);
        let fails = Cell::new(false);
        let shaky = service_fn(|n: u32| ready(if fails.replace(!fails.get()) { Ok(n) } else { Err(Oops) }));
        let mut service = layer.layer(shaky);
        assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
        // One that waits for its next attempt: the timer is inline too.
        let waits = retry().backoff(Backoff::Constant(Duration::from_millis(10))).build().unwrap().plain();
        let mut service = waits.layer(service_fn(|_: u32| ready(Err::<u32, _>(Oops))));
        assert_eq!(allocations(|| assert!(call(&mut service, 1).is_none())), 0);
    });
}

/// Requests whose body can be sent again.
mod replayed {
    use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};

    use super::*;

    pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

    pub(super) fn request(body: &'static str) -> Request<Body> {
        Request::new(UnsyncBoxBody::new(Full::new(Bytes::from_static(body.as_bytes()))))
    }

    /// Reads the request's body and then answers.
    pub(super) fn server(
        status: u16,
    ) -> impl Service<Request<Body>, Response = Response<Empty<Bytes>>, Error = Infallible, Future: Future> + Clone
    {
        service_fn(move |request: Request<Body>| async move {
            let mut body = request.into_body();
            while body.frame().await.is_some() {}
            Ok::<_, Infallible>(Response::builder().status(status).body(Empty::new()).unwrap())
        })
    }
}

#[test]
fn an_http_retry_costs_what_its_docs_list() {
    in_runtime(|| {
        let count = |body: &'static str, status: u16, attempts: u32| {
            let mut service = retry().attempts(attempts).build().unwrap().layer(replayed::server(status));
            let run = || assert!(call_and_read(&mut service, replayed::request(body)).is_some());
            let mut bare = replayed::server(status);
            let without = allocations(|| assert!(call_and_read(&mut bare, replayed::request(body)).is_some()));
            allocations(run) - without
        };
        // `Attempts` in the extensions of the response: the map, its table, the value.
        assert_eq!(count("", 200, 1), 3);
        assert_eq!(count("hello", 200, 1), 3);
        // An empty body costs nothing, another the record, its list, and the box of its reader.
        assert_eq!(count("", 200, 2), 3);
        assert_eq!(count("hello", 200, 2), 3 + 3);
        // The second attempt: its reader.
        assert_eq!(count("hello", 503, 2), 3 + 4);
    });
}

#[test]
fn a_fallback_that_is_not_needed_is_free() {
    let layer = FallbackLayer::plain_from_fn(|_: &Error<Oops>| Some(0));
    let mut service = layer.layer(plain());
    assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
    let mut pending = layer.layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
    assert_eq!(allocations(|| assert!(call(&mut pending, 1).is_none())), 0);
    // Nor does an answer cost anything there.
    let mut failing = layer.layer(service_fn(|_: u32| ready(Err::<u32, _>(Oops))));
    assert_eq!(allocations(|| assert_eq!(call(&mut failing, 1).unwrap().unwrap(), 0)), 0);
}

#[test]
fn a_fallback_copies_the_head_and_looks_into_grpc() {
    let from_fn = FallbackLayer::from_fn(|_: &FallbackContext<'_>| Answer::PassOn);
    let mut service = from_fn.layer(http());
    // A head without headers and extensions is copied in place.
    assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
    // That of a header map allocates as its making did; and a body that is looked into gets a box.
    let message = service_fn(|_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::new(http_body_util::Full::new(Bytes::from_static(b"message")))))
    });
    let grpc = || {
        let mut request = Request::new(());
        request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        request
    };
    let bare = allocations(|| drop(grpc()));
    let mut service = from_fn.layer(message);
    assert_eq!(allocations(|| assert!(call_and_read(&mut service, grpc()).is_some())), 2 * bare + 1);
    // Of an empty body a backup's record is nothing, and neither is that of one chunk.
    let empty = || Request::new(Empty::<Bytes>::new());
    let backup = service_fn(|_: Request<Empty<Bytes>>| ready(HttpResult::Ok(Response::new(Empty::new()))));
    let mut service = FallbackLayer::to_service(backup).layer(backup);
    assert_eq!(allocations(|| assert!(call_and_read(&mut service, empty()).is_some())), 0);
    // A POST is not asked about, so nothing is kept of it.
    let mut service = FallbackLayer::last_good(LastGood::new(1 << 20, Duration::from_secs(1))).layer(http());
    let post = || Request::builder().method("POST").body(()).unwrap();
    assert_eq!(allocations(|| assert!(call_and_read(&mut service, post()).is_some())), 0);
}

const MAX_BYTES: usize = 4 << 20;

/// A `LastGood` full of answers with so many headers and so long a body, and how many bytes it really takes.
fn full_last_good(headers: usize, length: usize, vary: bool) -> (LastGood, i64) {
    let broken = Cell::new(false);
    let backend = service_fn(|_: Request<()>| {
        let mut response = Response::builder().status(if broken.get() { 500 } else { 200 });
        for n in 0..headers {
            response = response.header(format!("x-header-{n}"), "some value");
        }
        if vary {
            response = response.header("vary", "x-key");
        }
        ready(Ok::<_, Infallible>(response.body(Full::new(Bytes::from(vec![b'x'; length]))).unwrap()))
    });
    let mut made = None;
    let used = measure(|| {
        let last_good = LastGood::new(MAX_BYTES, Duration::from_secs(1));
        let mut service = FallbackLayer::last_good(last_good.clone()).layer(backend);
        // Twice, for what was given out is shared, and that takes a little more.
        for is_broken in [false, true] {
            broken.set(is_broken);
            for n in 0..15_000 {
                let request = Request::builder().uri(format!("/{n}")).body(()).unwrap();
                assert!(call_and_read(&mut service, request).is_some());
            }
        }
        made = Some(last_good);
    });
    (made.unwrap(), used.bytes_current)
}

/// Law 12, by what the allocator gave, also where answers are so small that what is around them is most of it. And what
/// may be used is used.
#[test]
fn last_good_takes_no_more_than_it_may() {
    in_runtime(|| {
        for (headers, length, vary) in [
            (0, 1, false),
            (1, 1, false),
            (3, 1, false),
            (10, 10, false),
            (7, 100, false),
            (0, 1, true),
            (3, 9_999, false),
        ] {
            let (last_good, takes) = full_last_good(headers, length, vary);
            let share = takes as f64 / MAX_BYTES as f64;
            let case = format!("{headers} headers, {length} bytes, vary {vary}: {last_good:?} takes {share:.2}");
            assert!(last_good.kept().1 > MAX_BYTES as u64 / 10 * 9, "{case}");
            assert!((0.5..1.0).contains(&share), "{case}");
        }
    });
}

#[test]
fn a_bulkhead_with_room_is_free_also_for_streams() {
    in_runtime(|| {
        let layer = BulkheadLayer::builder().limit(4).build().unwrap();
        let mut service = layer.clone().plain().layer(plain());
        assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
        let mut pending = layer.clone().plain().layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
        assert_eq!(allocations(|| assert!(call(&mut pending, 1).is_none())), 0);
        let (mut service, mut pending) = (layer.layer(http()), layer.layer(hanging()));
        assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
        assert_eq!(allocations(|| assert!(call_and_read(&mut pending, Request::new(())).is_none())), 0);
        // The slots of leases are there after the first stream.
        let mut streaming = layer.layer(streaming());
        assert_eq!(allocations(|| assert!(call_and_read(&mut streaming, Request::new(())).is_none())), 0);
    });
}

#[test]
fn a_bulkhead_is_free_also_with_a_known_key() {
    in_runtime(|| {
        let layer = BulkheadLayer::builder().limit(4).per_key(Key::GrpcMethod).build().unwrap();
        let (mut service, mut pending) = (layer.layer(http()), layer.layer(hanging()));
        assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
        assert_eq!(allocations(|| assert!(call_and_read(&mut pending, Request::new(())).is_none())), 0);
        let mut streaming = layer.layer(streaming());
        assert_eq!(allocations(|| assert!(call_and_read(&mut streaming, Request::new(())).is_none())), 0);
        // A new one: its state, twice counted, its bytes; now and then its shard's table.
        let keys: Vec<http::Uri> = (0..1_000).map(|n| format!("/{n}").parse().unwrap()).collect();
        let used = measure(|| {
            for key in &keys {
                let mut request = Request::new(());
                *request.uri_mut() = key.clone();
                assert!(call_and_read(&mut service, request).is_some());
            }
        });
        assert_eq!(layer.handle().snapshot().keys, 1_001);
        assert!(used.bytes_current <= 2_000 * 1_000, "{} bytes a key", used.bytes_current / 1_000);
    });
}

#[test]
fn a_breaker_is_free_also_with_a_known_key() {
    in_runtime(|| {
        let slow = || CircuitBreakerLayer::builder().slow_calls(Duration::from_secs(1), 0.5);
        for builder in [CircuitBreakerLayer::builder(), CircuitBreakerLayer::builder().count_window(100), slow()] {
            let layer = builder.per_key(Key::GrpcMethod).build().unwrap();
            let (mut service, mut pending) = (layer.layer(http()), layer.layer(hanging()));
            assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
            assert_eq!(allocations(|| assert!(call_and_read(&mut pending, Request::new(())).is_none())), 0);
        }
    });
}

/// What the docs say of a key: its breaker, twice counted, its bytes twice, now and then its shard's table.
#[test]
fn a_breaker_of_a_key_is_small() {
    in_runtime(|| {
        let builder = CircuitBreakerLayer::builder;
        for (builder, most) in [(builder(), 1_250), (builder().count_window(100), 900)] {
            let layer = builder.per_key(Key::GrpcMethod).build().unwrap();
            let mut service = layer.layer(http());
            let keys: Vec<http::Uri> = (0..1_000).map(|n| format!("/{n}").parse().unwrap()).collect();
            let used = measure(|| {
                for key in &keys {
                    let mut request = Request::new(());
                    *request.uri_mut() = key.clone();
                    assert!(call_and_read(&mut service, request).is_some());
                }
            });
            assert_eq!(layer.handle().snapshot().keys, 1_000);
            assert!(used.bytes_current <= most * 1_000, "{} bytes a key", used.bytes_current / 1_000);
        }
    });
}

#[test]
fn waiting_and_being_called_are_free_once_the_queue_has_been_as_long() {
    in_runtime(|| {
        let layer = BulkheadLayer::builder().limit(1).queue(2).build().unwrap();
        let mut hanging = layer.clone().plain().layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
        let mut service = layer.plain().layer(plain());
        let mut cx = Context::from_waker(Waker::noop());
        let count = allocations(|| {
            let runs = hanging.call(1);
            let (mut first, mut second) = (pin!(service.call(2)), pin!(service.call(3)));
            assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
            drop(runs);
            assert!(second.as_mut().poll(&mut cx).is_pending() && first.as_mut().poll(&mut cx).is_ready());
            assert!(second.as_mut().poll(&mut cx).is_ready());
        });
        assert_eq!(count, 0);
    });
}

#[test]
fn being_drained_is_free_until_it_drains() {
    let registry = buttress::Registry::new();
    let layer = registry.drain_layer();
    let mut service = layer.clone().plain().layer(plain());
    assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
    let mut pending = layer.clone().plain().layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
    assert_eq!(allocations(|| assert!(call(&mut pending, 1).is_none())), 0);
    let mut service = layer.layer(http());
    assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);

    drop(registry.drain());
    let mut plain = layer.clone().plain().layer(plain());
    assert_eq!(allocations(|| assert!(call(&mut plain, 1).unwrap().is_err())), 0);
    // With its delay as any other refusal; `connection` finds room in the map of headers.
    assert_eq!(allocations(|| assert!(call(&mut service, Request::new(())).is_some())), 7);
    let bare = allocations(|| drop(grpc(None)));
    assert_eq!(allocations(|| assert!(call(&mut service, grpc(None)).is_some())) - bare, 7);
}

/// With a recorder the first call of a layer takes the handles, and a first refusal its own.
#[cfg(feature = "metrics")]
#[test]
fn metrics_are_free_once_the_handles_are_there() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        in_runtime(|| {
            let breaker = CircuitBreakerLayer::builder().build().unwrap();
            let bulkhead = BulkheadLayer::builder().limit(1).build().unwrap();
            let mut service = breaker.clone().plain().layer(bulkhead.clone().plain().layer(plain()));
            assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
            let mut service = breaker.layer(bulkhead.layer(http()));
            assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
            breaker.handle().force_open().unwrap();
            let mut service = breaker.plain().layer(plain());
            assert_eq!(allocations(|| assert!(call(&mut service, 1).unwrap().is_err())), 0);
            assert!(recorder.handle().render().contains("buttress_rejected_total"));
        });
    });
}

// === refused ===

/// Deadlines that have passed, on a refused path without a delay.
fn late(mut request: Request<()>) -> Request<()> {
    request.extensions_mut().insert(Deadline::at(tokio::time::Instant::now()));
    request
}

#[test]
fn plain_refused_is_free() {
    in_runtime(|| {
        let mut service = timeout().build().unwrap().plain().layer(plain());
        let past = Deadline::at(tokio::time::Instant::now());
        let mut cx = Context::from_waker(Waker::noop());
        let count = allocations(|| {
            let mut scoped = pin!(past.scope(async { assert!(call(&mut service, 1).unwrap().is_err()) }));
            assert!(scoped.as_mut().poll(&mut cx).is_ready());
        });
        assert_eq!(count, 0);
    });
}

#[test]
fn http_refused_costs_its_header_map_and_its_extensions() {
    in_runtime(|| {
        let layer = timeout().name("db").expose_name(true).build().unwrap();
        let mut service = layer.layer(http());
        let bare = allocations(|| drop(late(Request::new(()))));
        assert_eq!(allocations(|| assert!(call(&mut service, late(Request::new(()))).is_some())) - bare, 5);
        let bare = allocations(|| drop(late(grpc(None))));
        assert_eq!(allocations(|| assert!(call(&mut service, late(grpc(None))).is_some())) - bare, 5);

        let open = CircuitBreakerLayer::builder().name("db").expose_name(true).build().unwrap();
        open.handle().force_open().unwrap();
        let mut service = open.clone().plain().layer(plain());
        assert_eq!(allocations(|| assert!(call(&mut service, 1).unwrap().is_err())), 0);
        let mut service = open.layer(http());
        assert_eq!(allocations(|| assert!(call(&mut service, Request::new(())).is_some())), 5);
        // No document, but its length.
        assert_eq!(allocations(|| assert!(call(&mut service, head()).is_some())), 6);
        let bare = allocations(|| drop(grpc(None)));
        assert_eq!(allocations(|| assert!(call(&mut service, grpc(None)).is_some())) - bare, 5);

        let full = BulkheadLayer::builder().limit(1).name("db").expose_name(true).build().unwrap();
        let _runs = full.layer(hanging()).call(Request::new(()));
        let mut service = full.clone().plain().layer(plain());
        assert_eq!(allocations(|| assert!(call(&mut service, 1).unwrap().is_err())), 0);
        let mut service = full.layer(http());
        assert_eq!(allocations(|| assert!(call(&mut service, Request::new(())).is_some())), 5);
        let bare = allocations(|| drop(grpc(None)));
        assert_eq!(allocations(|| assert!(call(&mut service, grpc(None)).is_some())) - bare, 5);
    });
}

#[test]
fn a_delay_costs_two_more() {
    in_runtime(|| {
        let open = OpenTime::Fixed(Duration::from_millis(12_345));
        let layer = CircuitBreakerLayer::builder().consecutive_failures(1).open(open).build().unwrap();
        let fails = service_fn(|_: Request<()>| {
            ready(Ok::<_, Infallible>(Response::builder().status(500).body(Empty::<Bytes>::new()).unwrap()))
        });
        let mut service = layer.layer(fails);
        call(&mut service, Request::new(()));
        assert_eq!(allocations(|| assert!(call(&mut service, Request::new(())).is_some())), 7);
        assert_eq!(allocations(|| assert!(call(&mut service, head()).is_some())), 7);
        let bare = allocations(|| drop(grpc(None)));
        assert_eq!(allocations(|| assert!(call(&mut service, grpc(None)).is_some())) - bare, 7);
    });
}

fn rate() -> buttress::RateLimitBuilder {
    RateLimitLayer::builder().quota(Quota::per_second(1_000_000))
}

#[test]
fn a_rate_limit_is_free_also_with_a_known_key() {
    in_runtime(|| {
        let layer = rate().build().unwrap();
        let mut service = layer.clone().plain().layer(plain());
        assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
        let mut pending = layer.clone().plain().layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
        assert_eq!(allocations(|| assert!(call(&mut pending, 1).is_none())), 0);
        let (mut service, mut pending) = (layer.layer(http()), layer.layer(hanging()));
        assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
        assert_eq!(allocations(|| assert!(call_and_read(&mut pending, Request::new(())).is_none())), 0);

        let per_method = rate().per_key(Key::GrpcMethod).wait(Duration::from_secs(1)).build().unwrap();
        let tiers = rate().per_key(Key::GrpcMethod).quota_fn(|_| Some(Quota::per_second(1_000))).build().unwrap();
        let charged = rate().per_key(Key::GrpcMethod).charge_fn(|_| 2).cost_fn(|_| 3).build().unwrap();
        for layer in [per_method, tiers, charged] {
            let mut service = layer.layer(http());
            assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
        }
        let by_number = rate().build_plain_per_key(|n: &u32| Some((*n).into())).unwrap();
        let mut service = by_number.layer(plain());
        call(&mut service, 1);
        assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
        // The address, as text on the stack.
        let layer = rate().per_key(Key::ConnectInfo).build().unwrap();
        let mut service = layer.layer(http());
        for peer in ["1.2.3.4:5", "[2001:db8::1]:5"] {
            let with_peer = || {
                let mut request = Request::new(());
                request.extensions_mut().insert(peer.parse::<std::net::SocketAddr>().unwrap());
                request
            };
            let bare = allocations(|| drop(with_peer()));
            assert_eq!(allocations(|| assert!(call(&mut service, with_peer()).is_some())), bare);
        }
    });
}

#[test]
fn headers_of_a_rate_limit_cost_their_map_and_their_values() {
    in_runtime(|| {
        let allocated = |headers| {
            let mut service = rate().headers(headers).build().unwrap().layer(http());
            allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some()))
        };
        // The map is two: its table and its entries.
        assert_eq!(allocated(LimitHeaders::Draft10), 2 + 2);
        assert_eq!(allocated(LimitHeaders::Legacy), 2 + 3);
    });
}

#[test]
fn an_adaptive_rate_is_free() {
    in_runtime(|| {
        let layer = AdaptiveRateLayer::builder().build().unwrap();
        let mut service = layer.clone().plain().layer(plain());
        assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
        let (mut service, mut pending) = (layer.layer(http()), layer.layer(hanging()));
        assert_eq!(allocations(|| assert!(call_and_read(&mut service, Request::new(())).is_some())), 0);
        assert_eq!(allocations(|| assert!(call_and_read(&mut pending, Request::new(())).is_none())), 0);
    });
}

#[test]
fn a_rate_limit_refuses_as_the_others() {
    in_runtime(|| {
        let layer = RateLimitLayer::builder().quota(Quota::per(1, Duration::from_secs(3_600))).build().unwrap();
        let mut service = layer.clone().plain().layer(plain());
        assert!(call(&mut service, 1).unwrap().is_ok());
        assert_eq!(allocations(|| assert!(call(&mut service, 1).unwrap().is_err())), 0);
        let mut service = layer.layer(http());
        assert_eq!(allocations(|| assert!(call(&mut service, Request::new(())).is_some())), 7);
        let bare = allocations(|| drop(grpc(None)));
        assert_eq!(allocations(|| assert!(call(&mut service, grpc(None)).is_some())) - bare, 7);
    });
}

fn hedge() -> buttress::HedgeBuilder {
    HedgeLayer::builder().after(Duration::ZERO).budget(Budget::unlimited())
}

#[test]
fn a_plain_hedge_is_free_up_to_its_second_attempt() {
    in_runtime(|| {
        for builder in [hedge(), hedge().after(Duration::from_millis(10)), hedge().quantile(0.9)] {
            let layer = builder.build().unwrap().plain();
            let mut service = layer.layer(plain());
            assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
            // The first one waits: with a timer, with a second one beside it, or with neither.
            let mut pending = layer.layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
            assert_eq!(allocations(|| assert!(call(&mut pending, 1).is_none())), 0);
        }
        // One that failed, and the next.
        let fails = Cell::new(false);
        let shaky = service_fn(|n: u32| ready(if fails.replace(!fails.get()) { Ok(n) } else { Err(Oops) }));
        let mut service = hedge().build().unwrap().plain().layer(shaky);
        assert_eq!(allocations(|| assert_eq!(call(&mut service, 1).unwrap().unwrap(), 1)), 0);
        // Each after the second, and the list of them.
        let hangs = |max| {
            let layer = hedge().max(max).build().unwrap().plain();
            let mut service = layer.layer(service_fn(|_: u32| pending::<Result<u32, Oops>>()));
            allocations(|| assert!(call(&mut service, 1).is_none()))
        };
        assert_eq!([1, 2, 3, 4].map(hangs), [0, 2, 3, 4]);
    });
}

#[test]
fn an_http_hedge_costs_what_its_docs_list() {
    in_runtime(|| {
        let count = |body: &'static str| {
            let mut service = hedge().build().unwrap().layer(replayed::server(200));
            let run = || assert!(call_and_read(&mut service, replayed::request(body)).is_some());
            let mut bare = replayed::server(200);
            let without = allocations(|| assert!(call_and_read(&mut bare, replayed::request(body)).is_some()));
            allocations(run) - without
        };
        // An empty body costs nothing, another the record, its list, and the box of its reader.
        assert_eq!((count(""), count("hello")), (0, 3));
    });
}
