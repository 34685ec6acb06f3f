//! The registry: names, snapshots, readiness, draining; and a scrape of everything over HTTP.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{Router, routing::get};
use buttress::{
    AdaptiveRateLayer, BulkheadLayer, CircuitBreakerLayer, DeadlineLayer, Error, FallbackLayer, HedgeLayer, OpenTime,
    Quota, RateLimitLayer, Reason, Registry, RetryLayer, TimeoutLayer,
    observe::{Event, Figure, metrics::publish},
    testing::{Probe, ProbeError},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, oneshot},
};
use tower::{Layer, Service, ServiceExt};

/// How long a test waits for what must come. Reached only by a failure, so it may be long.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it does not come")
}

fn is_ready(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
    pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

fn timeout(registry: &Registry) -> buttress::TimeoutBuilder {
    TimeoutLayer::builder().after(Duration::from_secs(1)).registry(registry)
}

// === names ===

#[test]
fn a_name_belongs_to_one_layer_of_a_registry() {
    let (registry, other) = (Registry::new(), Registry::new());
    let first = timeout(&registry).name("ledger").build().unwrap();
    let error = CircuitBreakerLayer::builder().name("ledger").registry(&registry).build().unwrap_err();
    let [field] = error.fields() else { panic!("{error}") };
    assert_eq!((field.field, &*field.value), ("name", "\"ledger\""));
    timeout(&other).name("ledger").build().unwrap();
    TimeoutLayer::builder().name("ledger").after(Duration::from_secs(1)).build().unwrap();

    // The kind is the name of one without.
    let _unnamed = timeout(&registry).build().unwrap();
    assert_eq!(timeout(&registry).build().unwrap_err().fields()[0].field, "name");

    // A service keeps it alive; when that is gone too the name is free.
    let service = first.layer(Probe::new());
    drop(first);
    assert!(timeout(&registry).name("ledger").build().is_err());
    assert!(registry.snapshot().get("ledger").is_some());
    drop(service);
    assert!(registry.snapshot().get("ledger").is_none());
    timeout(&registry).name("ledger").build().unwrap();
}

#[test]
fn a_registry_shows_only_names_that_are_taken() {
    let registry = Registry::new();
    let [a, b] = ["a", "b"].map(|name| timeout(&registry).name(name).build().unwrap());
    assert_eq!(format!("{registry:?}"), r#"Registry { names: ["a", "b"], draining: false }"#);
    drop(a);
    assert_eq!(format!("{registry:?}"), r#"Registry { names: ["b"], draining: false }"#);
    drop(b);
}

#[test]
fn a_builder_that_fails_takes_no_name() {
    let registry = Registry::new();
    let error = TimeoutLayer::builder().name("api").registry(&registry).build().unwrap_err();
    assert_eq!(error.fields()[0].field, "after");
    timeout(&registry).name("api").build().unwrap();
}

#[test]
fn every_builder_has_a_registry() {
    let registry = Registry::new();
    let kept = (
        timeout(&registry).build().unwrap(),
        CircuitBreakerLayer::builder().registry(&registry).build().unwrap(),
        BulkheadLayer::builder().limit(3).registry(&registry).build().unwrap(),
        DeadlineLayer::builder().client().registry(&registry).build().unwrap(),
        FallbackLayer::builder().registry(&registry).build_plain_from_fn(|_: &Error<ProbeError>| None::<()>).unwrap(),
    );
    let more = (
        RetryLayer::builder().registry(&registry).build().unwrap(),
        RateLimitLayer::builder().quota(Quota::per_second(1)).registry(&registry).build().unwrap(),
        AdaptiveRateLayer::builder().registry(&registry).build().unwrap(),
    );
    let seen = registry.snapshot();
    let kinds: Vec<_> = seen.policies.iter().map(|policy| policy.policy).collect();
    assert_eq!(
        kinds,
        ["adaptive_rate", "bulkhead", "circuit_breaker", "deadline", "fallback", "rate_limit", "retry", "timeout",]
    );
    assert!(seen.policies.iter().all(|policy| policy.admits && *policy.name == *policy.policy));
    drop((kept, more));
    assert!(registry.snapshot().policies.is_empty());
}

// === snapshots ===

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_what_the_handles_say() {
    let registry = Registry::new();
    let open = OpenTime::Fixed(Duration::from_secs(5));
    let breaker = CircuitBreakerLayer::builder().name("ledger").consecutive_failures(1).open(open).registry(&registry);
    let breaker = breaker.build().unwrap();
    let wall = BulkheadLayer::builder().name("db").limit(1).registry(&registry).build().unwrap();
    let (fails, hangs) = (Probe::new(), Probe::new());
    fails.fails();
    hangs.hangs();
    breaker.clone().plain().layer(fails).oneshot(()).await.unwrap_err();
    let runs = wall.clone().plain().layer(hangs).call(());
    tokio::time::advance(Duration::from_millis(1_500)).await;

    let seen = registry.snapshot();
    let figure = |name, figure| seen.get(name).unwrap().get(figure).unwrap();
    assert_eq!(figure("ledger", "state"), Figure::Word("open"));
    assert_eq!(figure("ledger", "in_state"), Figure::Time(Duration::from_millis(1_500)));
    assert_eq!(figure("ledger", "open_left"), Figure::Time(Duration::from_millis(3_500)));
    assert_eq!(figure("ledger", "failure_rate"), Figure::Unknown);
    assert_eq!(figure("db", "in_flight"), Figure::Count(1));
    let json = serde_json::to_value(&seen).unwrap();
    let [db, ledger] = &json["policies"].as_array().unwrap()[..] else { panic!("{json}") };
    assert_eq!((&db["name"], &db["limit"], &db["admits"]), (&"db".into(), &1.into(), &false.into()));
    assert_eq!((&ledger["policy"], &ledger["state"]), (&"circuit_breaker".into(), &"open".into()));
    assert_eq!((&ledger["open_left"], &ledger["failure_rate"]), (&3.5.into(), &serde_json::Value::Null));
    assert_eq!(json["draining"], false);

    // Backends say nothing of readiness unless somebody says so; what is not there is not ready.
    assert!(seen.is_ready() && seen.is_live());
    assert!(!seen.is_ready_with(&["ledger"]) && !seen.is_ready_with(&["db"]) && !seen.is_ready_with(&["what"]));
    drop(runs);
    breaker.handle().reset();
    assert!(registry.snapshot().is_ready_with(&["ledger", "db"]));
}

/// Whoever reads a snapshot at night sees whether the policy acts at all: of each that has a shadow, and wherever it is
/// read.
#[test]
fn every_snapshot_says_whether_it_is_in_shadow() {
    let registry = Registry::new();
    macro_rules! check {
        ($($builder:expr => $build:ident($($argument:expr)?),)*) => {$(
            let layer = $builder.shadow(true).registry(&registry).$build($($argument)?).unwrap();
            let told = || registry.snapshot().get(layer.name()).unwrap().get("shadow");
            assert_eq!((layer.handle().snapshot().shadow, told()), (true, Some(Figure::Flag(true))), "{layer:?}");
            layer.handle().shadow(false);
            assert_eq!((layer.handle().snapshot().shadow, told()), (false, Some(Figure::Flag(false))), "{layer:?}");
        )*};
    }
    check! {
        TimeoutLayer::builder().after(Duration::from_secs(1)) => build(),
        DeadlineLayer::builder().client() => build(),
        CircuitBreakerLayer::builder() => build(),
        BulkheadLayer::builder().limit(3) => build(),
        RateLimitLayer::builder().quota(Quota::per_second(1)) => build(),
        AdaptiveRateLayer::builder() => build(),
        RetryLayer::builder() => build(),
        HedgeLayer::builder().after(Duration::from_secs(1)) => build(),
        FallbackLayer::builder() => build_plain_from_fn(|_: &Error<ProbeError>| None::<()>),
    }
}

/// The layer and its services are gone, and one of its calls runs: the name is taken, so it is shown, and truly.
#[tokio::test(start_paused = true)]
async fn what_runs_is_shown_when_its_layer_is_gone() {
    let registry = Registry::new();
    let probe = Probe::new();
    probe.hangs();
    let wall = BulkheadLayer::builder().limit(5).queue(1).registry(&registry).build().unwrap().plain();
    let breaker = CircuitBreakerLayer::builder().registry(&registry).build().unwrap().plain();
    // Only a call that waits for its turn is one of the rate limit.
    let minute = Duration::from_secs(60);
    let limit = RateLimitLayer::builder().quota(Quota::per(1, minute)).wait(minute).registry(&registry);
    let limit = limit.build().unwrap().plain();
    let rate = AdaptiveRateLayer::builder().registry(&registry).build().unwrap().plain();
    let retry = RetryLayer::builder().registry(&registry).build().unwrap().plain().clone_with(|&()| Some(()));
    let hedge = HedgeLayer::builder().after(Duration::from_secs(9)).registry(&registry).build().unwrap().plain();
    let fallback = FallbackLayer::builder().registry(&registry);
    let fallback = fallback.build_plain_from_fn(|_: &Error<ProbeError>| None::<()>).unwrap();
    let timeout = timeout(&registry).build().unwrap().plain();
    let calls = [
        tokio::spawn(wall.layer(probe.clone()).oneshot(())),
        tokio::spawn(wall.layer(probe.clone()).oneshot(())),
        tokio::spawn(breaker.layer(probe.clone()).oneshot(())),
        tokio::spawn(limit.layer(probe.clone()).oneshot(())),
        tokio::spawn(limit.layer(probe.clone()).oneshot(())),
        tokio::spawn(rate.layer(probe.clone()).oneshot(())),
        tokio::spawn(retry.layer(probe.clone()).oneshot(())),
        tokio::spawn(hedge.layer(probe.clone()).oneshot(())),
        tokio::spawn(timeout.layer(probe.clone()).oneshot(())),
    ];
    let last = tokio::spawn(fallback.layer(probe.clone()).oneshot(()));
    tokio::task::yield_now().await;
    let names = |registry: &Registry| {
        registry.snapshot().policies.iter().map(|policy| policy.name.to_string()).collect::<Vec<_>>()
    };
    let before = format!("{:?}", registry.snapshot());
    let all = names(&registry);
    drop((wall, breaker, limit, rate, retry, hedge, fallback, timeout));
    assert_eq!((all.len(), names(&registry)), (8, all));
    assert_eq!(format!("{:?}", registry.snapshot()), before);
    let seen = registry.snapshot();
    let figure = |name, figure| seen.get(name).unwrap().get(figure);
    assert_eq!(figure("bulkhead", "in_flight"), Some(Figure::Count(2)));
    assert_eq!((figure("retry", "calls"), figure("hedge", "calls")), (Some(Figure::Count(1)), Some(Figure::Count(1))));
    let taken = BulkheadLayer::builder().limit(5).registry(&registry).build();
    assert_eq!(taken.unwrap_err().fields()[0].field, "name");

    // One of the two ends, and the figure is that of the other; with that one the name is free.
    let [first, ..] = &calls;
    first.abort();
    tokio::task::yield_now().await;
    assert_eq!(registry.snapshot().get("bulkhead").unwrap().get("in_flight"), Some(Figure::Count(1)));
    for call in calls.into_iter().chain([last]) {
        call.abort();
        let _ = call.await;
    }
    assert!(names(&registry).is_empty());
    BulkheadLayer::builder().limit(5).registry(&registry).build().unwrap();
}

// === draining ===

#[tokio::test(start_paused = true)]
async fn draining_waits_for_what_runs_and_refuses_what_comes() {
    let registry = Registry::new().drain_retry_after(Duration::from_secs(7));
    let probe = Probe::new();
    probe.hangs();
    let service = registry.drain_layer().plain().layer(probe.clone());
    let runs = tokio::spawn(service.clone().oneshot(()));
    tokio::task::yield_now().await;
    assert_eq!((registry.snapshot().in_flight, registry.drain_layer().handle().snapshot().in_flight), (1, 1));

    let mut drained = registry.drain();
    assert!(!is_ready(&mut drained));
    let seen = registry.snapshot();
    assert!(!seen.is_ready() && seen.is_live());
    let refused = service.clone().oneshot(()).await.unwrap_err();
    let Error::Rejected(refused) = refused else { panic!("{refused}") };
    assert_eq!((refused.policy(), refused.reason()), ("drain", Reason::Draining));
    assert_eq!(refused.retry_after(), Some(Duration::from_secs(7)));
    assert!(refused.is_refusal());
    assert_eq!(probe.calls(), 1);

    let waits = tokio::spawn(registry.drain());
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    runs.abort();
    assert!(runs.await.unwrap_err().is_cancelled());
    waits.await.unwrap();
    assert!(is_ready(&mut drained));
    let seen = registry.snapshot();
    assert!(!seen.is_live() && seen.in_flight == 0);
    assert_eq!(registry.drain_layer().handle().snapshot().rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn a_response_is_in_flight_to_the_end_of_its_body() {
    let registry = Registry::new();
    let inner = tower::service_fn(|_: Request<()>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"body"))))
    });
    let service = registry.drain_layer().layer(inner);
    let response = service.clone().oneshot(Request::new(())).await.unwrap();
    let mut drained = registry.drain();
    assert!(!is_ready(&mut drained));
    response.into_body().collect().await.unwrap();
    assert!(is_ready(&mut drained));

    let refused = service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let header = |name| refused.headers().get(name).map(|v| v.to_str().unwrap());
    assert_eq!((header("connection"), header("retry-after")), (Some("close"), Some("1")));
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&problem["policy"], &problem["reason"]), (&"drain".into(), &"draining".into()));

    let mut grpc = Request::new(());
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let refused = service.oneshot(grpc).await.unwrap();
    let header = |name| refused.headers().get(name).map(|v| v.to_str().unwrap());
    assert_eq!(refused.status(), StatusCode::OK);
    assert_eq!((header("grpc-status"), header("grpc-retry-pushback-ms")), (Some("14"), Some("1000")));
    assert_eq!(header("connection"), None);
}

/// RFC 9113, 8.2.2, and RFC 9114, 4.2: elsewhere there is no such header, and a message that has it is malformed.
#[tokio::test(start_paused = true)]
async fn only_http1_is_told_to_close_its_connection() {
    let registry = Registry::new();
    let service = registry
        .drain_layer()
        .layer(tower::service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }));
    registry.drain().await;
    for (version, connection) in [
        (Version::HTTP_10, Some("close")),
        (Version::HTTP_11, Some("close")),
        (Version::HTTP_2, None),
        (Version::HTTP_3, None),
    ] {
        let request = Request::builder().version(version).body(()).unwrap();
        let refused = service.clone().oneshot(request).await.unwrap();
        let said = refused.headers().get("connection").map(|v| v.to_str().unwrap());
        assert_eq!((refused.status(), said), (StatusCode::SERVICE_UNAVAILABLE, connection), "{version:?}");
    }
}

/// A panic in the inner service, in `call` or in its future, leaves nobody inside.
#[tokio::test(start_paused = true)]
async fn a_panic_is_not_waited_for() {
    let registry = Registry::new();
    for in_call in [false, true] {
        let probe = Probe::new();
        if in_call {
            probe.panics_in_call()
        } else {
            probe.panics()
        }
        let service = registry.drain_layer().plain().layer(probe);
        assert!(tokio::spawn(service.oneshot(())).await.unwrap_err().is_panic());
    }
    assert_eq!(registry.snapshot().in_flight, 0);
    registry.drain().await;
}

/// Many waiters, each woken once the last call is over, whichever it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_waits_is_woken_whatever_thread_the_last_call_is_on() {
    for _ in 0..200 {
        let registry = Registry::new();
        let service = registry.drain_layer().plain().layer(tower::service_fn(|()| async {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(())
        }));
        let calls: Vec<_> = (0..8).map(|_| tokio::spawn(service.clone().oneshot(()))).collect();
        let waits: Vec<_> = (0..3).map(|_| tokio::spawn(registry.drain())).collect();
        for task in waits {
            soon(task).await.unwrap();
        }
        assert_eq!(registry.snapshot().in_flight, 0);
        for call in calls {
            // Ended or refused, but never lost.
            assert!(matches!(soon(call).await.unwrap(), Ok(()) | Err(Error::Rejected(_))));
        }
    }
}

async fn serve(
    app: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = axum::serve(listener, app).with_graceful_shutdown(stop);
    (addr, tokio::spawn(async move { server.await.unwrap() }))
}

fn client() -> Client<HttpConnector, Empty<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

async fn fetch(client: &Client<HttpConnector, Empty<Bytes>>, uri: String) -> Option<(StatusCode, Bytes)> {
    let response = client.get(uri.parse().unwrap()).await.ok()?;
    let status = response.status();
    Some((status, response.into_body().collect().await.ok()?.to_bytes()))
}

/// A real server under load is drained and stopped: each call has an answer, whole, or a refusal; and each that the
/// handler began was answered. Only who comes once the port is closed gets nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_under_load_loses_no_call() {
    const CALLERS: usize = 16;
    let registry = Registry::new();
    let (begun, held) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let handler = {
        let (begun, held) = (Arc::clone(&begun), Arc::clone(&held));
        move || async move {
            // The first of each caller hangs until it drains, the rest is quick.
            if begun.fetch_add(1, SeqCst) >= 200 {
                held.notified().await;
            }
            "whole".to_owned()
        }
    };
    let app = Router::new().route("/", get(handler)).layer(registry.drain_layer());
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let (addr, server) = serve(app, async move { stopped.notified().await }).await;
    let stopping = Arc::new(AtomicBool::new(false));

    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let stopping = Arc::clone(&stopping);
            tokio::spawn(async move {
                let (mut ok, mut refused, client) = (0_u64, 0_u64, client());
                while refused < 3 {
                    match fetch(&client, format!("http://{addr}/")).await {
                        Some((StatusCode::OK, body)) if body == "whole" => ok += 1,
                        Some((StatusCode::SERVICE_UNAVAILABLE, _)) => refused += 1,
                        None if stopping.load(SeqCst) => break,
                        other => panic!("a call was lost: {other:?}"),
                    }
                }
                (ok, refused)
            })
        })
        .collect();

    // Once every caller has a call that hangs in the handler, draining begins.
    soon(async {
        while registry.snapshot().in_flight < CALLERS as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let drained = registry.drain();
    held.notify_waiters();
    // Permits for those that had not begun to wait when the others were told.
    let tells = tokio::spawn(async move {
        loop {
            held.notify_one();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    soon(drained).await;
    tells.abort();
    let (mut ok, mut refused) = (0, 0);
    for caller in callers {
        let (o, r) = soon(caller).await.unwrap();
        (ok, refused) = (ok + o, refused + r);
    }
    stopping.store(true, SeqCst);
    stop.notify_one();
    soon(server).await.unwrap();
    assert_eq!(ok, begun.load(SeqCst));
    assert_eq!(refused, 3 * CALLERS as u64);
    assert_eq!(registry.drain_layer().handle().snapshot().rejected, refused);
}

/// HTTP/1.1 is told to close, and is closed; HTTP/2, which has no such header, gets none.
#[tokio::test]
async fn a_refusal_closes_its_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let registry = Registry::new();
    let app = Router::new().route("/", get(|| async { "hello" })).layer(registry.drain_layer());
    let (addr, server) = serve(app, std::future::pending()).await;
    drop(registry.drain());
    let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    // To its end, which comes only because the server closes.
    soon(socket.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nconnection: close\r\n"), "{answer}");

    let h2 = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>();
    let response = soon(h2.get(format!("http://{addr}/").parse().unwrap())).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::SERVICE_UNAVAILABLE, http::Version::HTTP_2));
    assert_eq!(response.headers().get("connection"), None);
    assert_eq!(response.headers().get("retry-after").unwrap(), "1");
    server.abort();
}

// === a scrape ===

/// The one recorder of this process, installed after the layers were made and used; a server with a route for it.
#[tokio::test]
async fn a_scrape_over_http_has_the_figures() {
    let registry = Registry::new();
    let open = OpenTime::Fixed(Duration::from_secs(3_600));
    let breaker = CircuitBreakerLayer::builder().name("scraped").consecutive_failures(2).open(open);
    let breaker = breaker.observer(|_: &Event| {}).registry(&registry).build().unwrap();
    let wall = BulkheadLayer::builder().name("scraped wall").limit(9).registry(&registry).build().unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let handler = {
        let fails = Arc::clone(&fails);
        move || async move { if fails.load(SeqCst) { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK } }
    };
    let work = Router::new().route("/", get(handler)).layer((breaker, wall));
    work.clone().oneshot(Request::new(axum::body::Body::empty())).await.unwrap();

    let handle = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
    let scrape = move || async move {
        publish();
        handle.render()
    };
    let (addr, server) = serve(work.route("/metrics", get(scrape)), std::future::pending()).await;
    let client = client();
    for _ in 0..5 {
        assert_eq!(fetch(&client, format!("http://{addr}/")).await.unwrap().0, StatusCode::OK);
    }
    fails.store(true, SeqCst);
    for expected in [500, 500, 503, 503, 503] {
        assert_eq!(fetch(&client, format!("http://{addr}/")).await.unwrap().0, expected);
    }
    let (_, text) = fetch(&client, format!("http://{addr}/metrics")).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    for line in [
        "buttress_calls_total{policy=\"circuit_breaker\",name=\"scraped\",outcome=\"success\"} 5",
        "buttress_calls_total{policy=\"circuit_breaker\",name=\"scraped\",outcome=\"failure\"} 2",
        "buttress_rejected_total{policy=\"circuit_breaker\",name=\"scraped\",reason=\"circuit_open\"} 3",
        "buttress_circuit_breaker_state{policy=\"circuit_breaker\",name=\"scraped\",state=\"open\"} 1",
        "buttress_circuit_breaker_state{policy=\"circuit_breaker\",name=\"scraped\",state=\"closed\"} 0",
        "buttress_admitted_total{policy=\"bulkhead\",name=\"scraped wall\"} 7",
        "buttress_in_flight{policy=\"bulkhead\",name=\"scraped wall\"} 0",
        "buttress_limit{policy=\"bulkhead\",name=\"scraped wall\"} 9",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    server.abort();
}

/// As the docs of `drain` have it.
async fn serve_until(
    told_to_stop: impl Future<Output = ()>,
    bound: Duration,
    registry: Registry,
    listener: TcpListener,
    app: Router,
) -> std::io::Result<()> {
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) });
    let server = tokio::spawn(server.into_future());
    told_to_stop.await;
    let stopping = async {
        registry.drain().await;
        drop(stop);
        server.await
    };
    match tokio::time::timeout(bound, stopping).await {
        Ok(served) => served?,
        Err(_) => Ok(()),
    }
}

/// A program of its own that is told to stop while a stream runs that never ends: it stops, at its bound.
#[tokio::test]
async fn a_server_stops_within_its_bound_whatever_streams() {
    const BOUND: Duration = Duration::from_secs(3_600);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, told) = oneshot::channel::<()>();
    let (say, said) = oneshot::channel();
    let program = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let took = runtime.block_on(async {
            let registry = Registry::new();
            let endless = || async {
                let first = axum::response::sse::Event::default().data("first");
                let events = stream::iter([Ok::<_, Infallible>(first)]).chain(stream::pending());
                axum::response::Sse::new(events)
            };
            let app = Router::new().route("/events", get(endless)).layer(registry.drain_layer());
            let told_to_stop = async {
                told.await.unwrap();
                // Nothing moves on the sockets from here on, so the bound is what comes next.
                tokio::time::pause();
            };
            let listener = TcpListener::from_std(listener).unwrap();
            let begun = tokio::time::Instant::now();
            serve_until(told_to_stop, BOUND, registry, listener, app).await.unwrap();
            begun.elapsed()
        });
        drop(runtime);
        say.send(took).unwrap();
    });

    let client = client();
    let mut events = soon(client.get(format!("http://{addr}/events").parse().unwrap())).await.unwrap().into_body();
    let first = soon(events.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "data: first\n\n");
    tell.send(()).unwrap();
    let took = soon(said).await.unwrap();
    assert!(took >= BOUND && took < BOUND + PATIENCE, "{took:?}");
    // The stream was cut off, for it had no end.
    assert!(soon(events.frame()).await.is_none_or(|frame| frame.is_err()));
    program.join().unwrap();
}

/// On real time, for a paused clock runs ahead of sockets: it stops as soon as what runs has ended, long before its
/// bound.
#[tokio::test]
async fn a_server_that_stops_lets_end_what_runs() {
    let (registry, held) = (Registry::new(), Arc::new(Notify::new()));
    let (begun, begins) = oneshot::channel::<()>();
    let handler = {
        let (held, begun) = (Arc::clone(&held), Arc::new(std::sync::Mutex::new(Some(begun))));
        move || async move {
            drop(begun.lock().unwrap().take());
            held.notified().await;
            "whole"
        }
    };
    let app = Router::new().route("/", get(handler)).layer(registry.drain_layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, told) = oneshot::channel::<()>();
    let told_to_stop = async { drop(told.await) };
    let server = tokio::spawn(serve_until(told_to_stop, 10 * PATIENCE, registry.clone(), listener, app));
    let call = tokio::spawn(async move { fetch(&client(), format!("http://{addr}/")).await });
    drop(soon(begins).await);
    drop(tell);
    while !registry.snapshot().draining {
        tokio::task::yield_now().await;
    }
    let (status, _) = soon(fetch(&client(), format!("http://{addr}/"))).await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!server.is_finished());
    held.notify_one();
    assert_eq!(soon(call).await.unwrap(), Some((StatusCode::OK, Bytes::from_static(b"whole"))));
    soon(server).await.unwrap().unwrap();
}

/// Polled by hand: who waits for the drain and goes leaves no waker behind.
#[tokio::test(start_paused = true)]
async fn a_drain_that_nobody_waits_for_goes_on() {
    let registry = Registry::new();
    let probe = Probe::new();
    probe.hangs();
    let mut service = registry.drain_layer().plain().layer(probe);
    std::future::poll_fn(|cx| Service::<()>::poll_ready(&mut service, cx)).await.unwrap();
    let call = service.call(());
    let mut first = registry.drain();
    let mut second = registry.drain();
    assert!(!is_ready(&mut first) && !is_ready(&mut second));
    drop(first);
    drop(call);
    assert!(matches!(pin!(second).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(())));
    assert!(registry.snapshot().draining);
}
