//! Fallbacks: a function, a backup, the last good answer; on HTTP, gRPC and plain services.
#![allow(clippy::disallowed_methods, reason = "tests read the clock they steer")]

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::{Instant, advance};
use tower::{
    Layer, Service, ServiceExt, service_fn,
    util::{BoxCloneService, MapResponse},
};

use buttress::{
    Answer, BoxError, CircuitBreaker, CircuitBreakerLayer, Deadline, Degraded, Error, FallbackContext, FallbackLayer,
    LastGood, Outcome, Reason, Rejection, State, TimeoutLayer,
    observe::{Event, Kind},
    testing::{OutcomesLayer, Probe, ProbeBody},
};

type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
type AnyBody = UnsyncBoxBody<Bytes, BoxError>;
type Backend<E = Infallible> = BoxCloneService<Request<RequestBody>, Response<AnyBody>, E>;

const S: Duration = Duration::from_secs(1);

fn full(text: &'static str) -> AnyBody {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|e| match e {}).boxed_unsync()
}

/// These frames, each ready at once, and then the end; or no end.
fn frames(frames: Vec<Result<Frame<Bytes>, BoxError>>, ends: bool) -> AnyBody {
    use futures_util::StreamExt;
    let frames = stream::iter(frames);
    if ends {
        StreamBody::new(frames).boxed_unsync()
    } else {
        StreamBody::new(frames.chain(stream::pending())).boxed_unsync()
    }
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn status_trailer(code: &'static str) -> Result<Frame<Bytes>, BoxError> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    Ok(Frame::trailers(trailers))
}

fn request(method: &str, uri: &str, headers: &[(&'static str, &'static str)]) -> Request<RequestBody> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(full("")).unwrap()
}

fn get(uri: &str) -> Request<RequestBody> {
    request("GET", uri, &[])
}

fn grpc() -> Request<RequestBody> {
    request("POST", "/a.B/C", &[("content-type", "application/grpc")])
}

/// A backend that answers with what the function makes, and counts its calls.
fn backend<E: Send + 'static>(
    answer: impl Fn(&Request<RequestBody>) -> Result<Response<AnyBody>, E> + Clone + Send + 'static,
) -> (Backend<E>, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let service = service_fn(move |request: Request<RequestBody>| {
        counted.fetch_add(1, Relaxed);
        std::future::ready(answer(&request))
    });
    (BoxCloneService::new(service), calls)
}

fn answers(status: u16, text: &'static str) -> Backend {
    backend(move |_| Ok(Response::builder().status(status).body(full(text)).unwrap())).0
}

fn respond(headers: &[(&'static str, &'static str)], text: &'static str) -> Response<AnyBody> {
    let mut response = Response::builder();
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(full(text)).unwrap()
}

/// The function that says "sorry", and a count of how often it was asked.
fn sorry(_: &FallbackContext<'_>) -> Answer {
    Answer::Http(Response::builder().status(203).body(Bytes::from_static(b"sorry")).unwrap())
}

async fn text<B: Body<Data = Bytes, Error: std::fmt::Debug>>(response: Response<B>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn degraded<B>(response: &Response<B>) -> Option<(&'static str, Outcome, Option<Reason>)> {
    let d = response.extensions().get::<Degraded>()?;
    Some((d.policy, d.outcome, d.rejection.as_ref().map(Rejection::reason)))
}

// === a function ===

#[tokio::test]
async fn a_failure_is_answered_and_marked() {
    let service = FallbackLayer::from_fn(|c: &FallbackContext<'_>| {
        assert_eq!((c.parts.uri.path(), &c.parts.headers["x-of"]), ("/p", &"me".parse().unwrap()));
        assert_eq!((c.grpc, c.outcome), (false, Outcome::Failure));
        assert!(c.rejection.is_none());
        sorry(c)
    })
    .layer(answers(500, "broken"));
    let response = service.oneshot(request("POST", "/p", &[("x-of", "me")])).await.unwrap();
    assert_eq!(response.status(), 203);
    assert_eq!(degraded(&response), Some(("fallback", Outcome::Failure, None)));
    assert!(!response.headers().contains_key("x-degraded"));
    assert_eq!(text(response).await, "sorry");
}

#[tokio::test]
async fn the_mark_is_a_header_where_asked_for() {
    let service = FallbackLayer::from_fn(sorry).header(true).layer(answers(500, ""));
    let response = service.oneshot(get("/")).await.unwrap();
    assert_eq!(response.headers()["x-degraded"], "1");
}

#[tokio::test]
async fn what_went_well_is_passed_on_untouched() {
    for status in [200, 204, 301, 404, 429] {
        let service = FallbackLayer::from_fn(|_: &FallbackContext<'_>| panic!("asked")).layer(answers(status, "x"));
        let response = service.oneshot(get("/")).await.unwrap();
        assert_eq!((response.status().as_u16(), degraded(&response)), (status, None));
    }
}

#[tokio::test]
async fn which_outcomes_are_answered_is_a_choice() {
    for (status, outcomes, answered) in [
        (429, &[Outcome::Throttled][..], true),
        (500, &[Outcome::Throttled], false),
        (200, &[Outcome::Throttled, Outcome::Failure], false),
        (200, &[Outcome::Success], false),
        (500, &[], false),
    ] {
        let service = FallbackLayer::from_fn(sorry).on(true, outcomes).layer(answers(status, ""));
        let response = service.oneshot(get("/")).await.unwrap();
        assert_eq!(response.status() == 203, answered, "{status} {outcomes:?}");
    }
}

/// An open breaker over a backend that fails if it is ever asked.
fn refused() -> CircuitBreaker<Backend> {
    let breaker = CircuitBreakerLayer::builder().build().unwrap();
    breaker.handle().force_open().unwrap();
    breaker.layer(answers(500, "reached"))
}

#[tokio::test]
async fn refusals_and_failures_are_answered_apart() {
    let response = FallbackLayer::from_fn(|c: &FallbackContext<'_>| {
        assert_eq!(c.rejection.map(|r| (r.policy(), r.reason())), Some(("circuit_breaker", Reason::ForcedOpen)));
        assert_eq!(c.outcome, Outcome::Ignored);
        sorry(c)
    })
    .layer(refused())
    .oneshot(get("/"))
    .await
    .unwrap();
    assert_eq!(degraded(&response), Some(("circuit_breaker", Outcome::Ignored, Some(Reason::ForcedOpen))));

    for (refusals, outcomes, refusal_is_answered, failure_is_answered) in
        [(true, &[][..], true, false), (false, &[Outcome::Failure], false, true), (false, &[], false, false)]
    {
        let layer = FallbackLayer::from_fn(sorry).on(refusals, outcomes);
        let refused = layer.layer(refused()).oneshot(get("/")).await.unwrap().status();
        let failed = layer.layer(answers(502, "")).oneshot(get("/")).await.unwrap().status();
        assert_eq!((refused == 203, failed == 203), (refusal_is_answered, failure_is_answered));
        // What is not answered is what it was.
        assert!(refused == 203 || refused == 503);
        assert!(failed == 203 || failed == 502);
    }
}

#[tokio::test]
async fn an_error_of_the_transport_is_answered_or_comes_back_as_it_was() {
    let broken = || backend(|_| Err(io::Error::new(io::ErrorKind::ConnectionReset, "gone"))).0;
    let response = FallbackLayer::from_fn(sorry).layer(broken()).oneshot(get("/")).await.unwrap();
    assert_eq!(degraded(&response), Some(("fallback", Outcome::Failure, None)));
    let pass_on = FallbackLayer::from_fn(|_: &FallbackContext<'_>| Answer::PassOn);
    let handle = pass_on.handle();
    let error: io::Error = pass_on.layer(broken()).oneshot(get("/")).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!((handle.snapshot().answered, handle.snapshot().passed_on), (0, 1));
}

#[tokio::test]
async fn passing_on_gives_back_what_the_backend_gave() {
    let service = FallbackLayer::from_fn(|_: &FallbackContext<'_>| Answer::PassOn).layer(answers(500, "the reason"));
    let response = service.oneshot(get("/")).await.unwrap();
    assert_eq!((response.status().as_u16(), degraded(&response)), (500, None));
    assert_eq!(text(response).await, "the reason");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_a_failure_and_a_deadline_is_the_callers() {
    let hangs = service_fn(|_: Request<RequestBody>| std::future::pending::<Result<Response<AnyBody>, Infallible>>());
    let timeout = TimeoutLayer::builder().after(S).build().unwrap();
    let layer = FallbackLayer::from_fn(sorry);
    let response = layer.layer(timeout.layer(hangs)).oneshot(get("/")).await.unwrap();
    assert_eq!(degraded(&response), Some(("timeout", Outcome::Failure, Some(Reason::Timeout))));

    let late = || Deadline::after(S / 2).scope(layer.layer(timeout.layer(hangs)).oneshot(get("/")));
    assert_eq!(late().await.unwrap().status(), 504);
    let layer = layer.on(false, &[Outcome::Cancelled]);
    let late = Deadline::after(S / 2).scope(layer.layer(timeout.layer(hangs)).oneshot(get("/")));
    assert_eq!(late.await.unwrap().status(), 203);
}

// === gRPC ===

/// A gRPC response whose head says nothing, with this body.
fn stream_of(frames_of: fn() -> AnyBody) -> Backend {
    backend(move |_| Ok(Response::new(frames_of()))).0
}

fn unavailable(c: &FallbackContext<'_>) -> Answer {
    assert!(c.grpc);
    Answer::GrpcStatus(14, "prices are 100 % away".into())
}

#[tokio::test]
async fn a_status_in_the_head_is_answered_with_a_message() {
    let (failing, _) = backend::<Infallible>(|_| Ok(respond(&[("grpc-status", "13")], "")));
    let layer = FallbackLayer::from_fn(|_: &FallbackContext<'_>| Answer::GrpcMessage(Bytes::from_static(b"\x08\x01")));
    let response = layer.layer(failing).oneshot(grpc()).await.unwrap();
    assert_eq!(degraded(&response), Some(("fallback", Outcome::Failure, None)));
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/grpc".parse().unwrap())
    );
    assert!(!response.headers().contains_key("grpc-status"));
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), &b"\0\0\0\0\x02\x08\x01"[..]);
}

#[tokio::test]
async fn early_trailers_are_seen() {
    let failing = stream_of(|| frames(vec![status_trailer("14")], true));
    let response = FallbackLayer::from_fn(unavailable).layer(failing).oneshot(grpc()).await.unwrap();
    assert_eq!(&response.headers()["grpc-status"], "14");
    assert_eq!(&response.headers()["grpc-message"], "prices are 100 %25 away");
    assert!(response.body().is_end_stream());
    // Neither a status nor trailers: it was cut off.
    let cut_off = stream_of(|| frames(vec![], true));
    let response = FallbackLayer::from_fn(unavailable).layer(cut_off).oneshot(grpc()).await.unwrap();
    assert!(degraded(&response).is_some());
    let broken = stream_of(|| frames(vec![Err("reset".into())], true));
    let response = FallbackLayer::from_fn(unavailable).layer(broken).oneshot(grpc()).await.unwrap();
    assert!(degraded(&response).is_some());
}

#[tokio::test]
async fn early_trailers_that_are_well_are_passed_on() {
    for code in ["0", "5", "8"] {
        let body: AnyBody = frames(vec![status_trailer(code)], true);
        let slot = Arc::new(Mutex::new(Some(body)));
        let (well, _) = backend::<Infallible>(move |_| Ok(Response::new(slot.lock().unwrap().take().unwrap())));
        let response = FallbackLayer::from_fn(unavailable).layer(well).oneshot(grpc()).await.unwrap();
        assert_eq!(degraded(&response), None);
        assert!(!response.body().is_end_stream());
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], code);
    }
}

#[tokio::test]
async fn a_message_that_has_come_is_passed_on_whatever_follows() {
    let failing = stream_of(|| frames(vec![data("first"), data("second"), status_trailer("14")], true));
    let response = FallbackLayer::from_fn(unavailable).layer(failing).oneshot(grpc()).await.unwrap();
    assert_eq!(degraded(&response), None);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "14");
    assert_eq!(body.to_bytes(), "firstsecond");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_silent_is_not_waited_for() {
    let silent = stream_of(|| frames(vec![], false));
    let call = FallbackLayer::from_fn(unavailable).layer(silent).oneshot(grpc());
    let response = tokio::time::timeout(S, call).await.expect("it does not wait").unwrap();
    assert_eq!(degraded(&response), None);
}

/// HTTP bodies are the caller's from their first byte.
#[tokio::test]
async fn http_bodies_are_not_looked_into() {
    let breaks = stream_of(|| frames(vec![Err("reset".into())], true));
    let response = FallbackLayer::from_fn(sorry).layer(breaks).oneshot(get("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
}

// === what the policies around it see ===

#[tokio::test]
async fn outside_a_degraded_answer_is_no_success() {
    let outcomes = OutcomesLayer::new();
    let handle = outcomes.handle();
    let fallback = FallbackLayer::from_fn(sorry).on(true, &[Outcome::Failure, Outcome::Throttled]);
    for (backend, outcome) in [(answers(500, ""), Outcome::Failure), (answers(429, ""), Outcome::Throttled)] {
        let response = outcomes.layer(fallback.layer(backend)).oneshot(get("/")).await.unwrap();
        assert_eq!(text(response).await, "sorry");
        assert_eq!(handle.take(), [outcome]);
    }
    drop(outcomes.layer(fallback.layer(refused())).oneshot(get("/")).await.unwrap());
    assert_eq!(handle.take(), [Outcome::Ignored]);
}

#[tokio::test]
async fn a_breaker_outside_opens_on_failures_that_are_covered_up() {
    let breaker = CircuitBreakerLayer::builder().consecutive_failures(3).build().unwrap();
    let service = breaker.layer(FallbackLayer::from_fn(sorry).layer(answers(500, "")));
    for _ in 0..3 {
        assert_eq!(service.clone().oneshot(get("/")).await.unwrap().status(), 203);
    }
    assert_eq!(breaker.handle().snapshot().state, State::Open);
}

#[tokio::test]
async fn the_inner_one_of_two_fallbacks_answers() {
    let outer = FallbackLayer::from_fn(|_: &FallbackContext<'_>| panic!("asked"));
    let service = outer.layer(FallbackLayer::from_fn(sorry).layer(answers(500, "")));
    assert_eq!(service.oneshot(get("/")).await.unwrap().status(), 203);
    let inner = FallbackLayer::from_fn(|_: &FallbackContext<'_>| Answer::PassOn);
    let service = FallbackLayer::from_fn(sorry).layer(inner.layer(answers(500, "")));
    assert_eq!(service.oneshot(get("/")).await.unwrap().status(), 203);
}

/// The caller's own short deadline ends the stream: nobody's failure, also through a fallback that looked into it.
#[tokio::test(start_paused = true)]
async fn whose_clock_cut_a_stream_is_seen_through_a_fallback() {
    for first in [vec![], vec![data("message")]] {
        let slot = Arc::new(Mutex::new(Some(frames(first, false))));
        let (hangs, _) = backend::<Infallible>(move |_| Ok(Response::new(slot.lock().unwrap().take().unwrap())));
        let timeout = TimeoutLayer::builder().after(10 * S).until(buttress::Until::End).build().unwrap();
        let outcomes = OutcomesLayer::new();
        let handle = outcomes.handle();
        let service = outcomes.layer(FallbackLayer::from_fn(unavailable).layer(timeout.layer(hangs)));
        let mut request = grpc();
        request.extensions_mut().insert(Deadline::after(S / 2));
        let response = service.oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "4");
        assert_eq!(handle.take(), [Outcome::Cancelled]);
    }
}

/// Looked into when its time is up already.
#[tokio::test(start_paused = true)]
async fn whose_clock_cut_a_stream_is_seen_where_it_is_looked_into() {
    let (hangs, _) = backend::<Infallible>(move |_| Ok(Response::new(frames(vec![], false))));
    let slow = tower::ServiceBuilder::new()
        .map_future(|f| async move {
            tokio::time::sleep(S).await;
            f.await
        })
        .service(hangs);
    let timeout = TimeoutLayer::builder().after(10 * S).until(buttress::Until::End).build().unwrap();
    let outcomes = OutcomesLayer::new();
    let handle = outcomes.handle();
    let service = outcomes.layer(FallbackLayer::from_fn(unavailable).layer(timeout.layer(slow)));
    let mut request = grpc();
    request.extensions_mut().insert(Deadline::after(S));
    let response = service.oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let _ = body.collect().await.unwrap();
    assert!(parts.extensions.get::<Degraded>().is_none());
    assert_eq!(handle.take(), [Outcome::Cancelled]);
}

// === a backup ===

/// A request with a body of several chunks.
fn upload(chunks: Vec<&'static str>) -> Request<RequestBody> {
    Request::post("/").body(frames(chunks.into_iter().map(data).collect(), true)).unwrap()
}

/// Reads the whole request, then answers.
fn reads(status: u16) -> (Backend, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let service = service_fn(move |request: Request<RequestBody>| {
        let noted = Arc::clone(&noted);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            noted.lock().unwrap().push(String::from_utf8(body.to_vec()).unwrap());
            Ok(Response::builder().status(status).body(full("from a service")).unwrap())
        }
    });
    (BoxCloneService::new(service), seen)
}

#[tokio::test]
async fn a_backup_gets_the_whole_request() {
    let ((failing, first), (backup, second)) = (reads(500), reads(200));
    let service = FallbackLayer::to_service(backup).header(true).layer(failing);
    let response = service.oneshot(upload(vec!["one ", "two ", "three"])).await.unwrap();
    assert_eq!(degraded(&response), Some(("fallback", Outcome::Failure, None)));
    assert_eq!((response.status().as_u16(), &response.headers()["x-degraded"]), (200, &"1".parse().unwrap()));
    assert_eq!(text(response).await, "from a service");
    assert_eq!(
        (&*first.lock().unwrap(), &*second.lock().unwrap()),
        (&vec!["one two three".to_owned()], &vec!["one two three".to_owned()])
    );
}

/// A backend that does not read what it is sent leaves it to the backup, as does one that reads half of it.
#[tokio::test]
async fn a_backup_gets_what_the_backend_left() {
    let half = service_fn(|request: Request<RequestBody>| async move {
        let mut body = request.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one ");
        Ok::<_, Infallible>(Response::builder().status(500).body(full("")).unwrap())
    });
    for failing in [BoxCloneService::new(half), answers(500, "")] {
        let (backup, seen) = reads(200);
        let service = FallbackLayer::to_service(backup).layer(failing);
        service.oneshot(upload(vec!["one ", "two"])).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), ["one two"]);
    }
}

/// Else the answer that is there would never come back.
#[tokio::test(start_paused = true)]
async fn a_backup_that_does_not_get_ready_by_the_deadline_has_failed() {
    let probe = Probe::new();
    probe.is_never_ready();
    let backup = MapResponse::new(probe.clone(), |_: Response<ProbeBody>| Response::new(full("backup")));
    let service = FallbackLayer::to_service(backup).layer(answers(500, "the first"));
    let start = Instant::now();
    let ambient = Deadline::after(S * 3).scope(service.clone().oneshot(get("/"))).await.unwrap();
    assert_eq!((ambient.status().as_u16(), start.elapsed()), (500, S * 3));
    let mut request = get("/");
    request.extensions_mut().insert(Deadline::after(S * 2));
    assert_eq!(service.oneshot(request).await.unwrap().status(), 500);
    assert_eq!((start.elapsed(), probe.calls()), (S * 5, 0));
}

/// Nobody waits for it any more: a backup that is ready is not called either.
#[tokio::test(start_paused = true)]
async fn a_backup_is_not_called_after_the_deadline() {
    let ms = Duration::from_millis;
    for (takes, status, called) in [(99, 200, 1), (100, 500, 0), (150, 500, 0)] {
        let slow = service_fn(move |_: Request<RequestBody>| async move {
            tokio::time::sleep(ms(takes)).await;
            Ok::<_, Infallible>(Response::builder().status(500).body(full("the first")).unwrap())
        });
        let (backup, calls) = backend::<Infallible>(|_| Ok(respond(&[], "backup")));
        let service = FallbackLayer::to_service(backup).layer(slow);
        let call = Deadline::after(ms(100)).scope(service.oneshot(get("/")));
        assert_eq!((call.await.unwrap().status().as_u16(), calls.load(Relaxed)), (status, called), "{takes} ms");
    }
}

#[tokio::test]
async fn a_backup_is_called_only_when_needed() {
    let (backup, calls) = backend::<Infallible>(|_| Ok(respond(&[], "backup")));
    let service = FallbackLayer::to_service(backup).layer(answers(200, "own"));
    assert_eq!(text(service.oneshot(get("/")).await.unwrap()).await, "own");
    assert_eq!(calls.load(Relaxed), 0);
}

#[tokio::test]
async fn a_backup_that_fails_as_well_leaves_the_first_answer() {
    let pass = |backup: Backend<io::Error>| async move {
        let layer = FallbackLayer::to_service(backup);
        let handle = layer.handle();
        let response = layer.layer(answers(500, "the first")).oneshot(get("/")).await.unwrap();
        assert_eq!((response.status().as_u16(), degraded(&response)), (500, None));
        assert_eq!(text(response).await, "the first");
        assert_eq!((handle.snapshot().answered, handle.snapshot().passed_on), (0, 1));
    };
    pass(backend(|_| Err(io::Error::other("gone"))).0).await;
    pass(backend(|_| Ok(Response::builder().status(503).body(full("")).unwrap())).0).await;
    pass(backend(|_| Ok(Response::builder().status(429).body(full("")).unwrap())).0).await;
    // One that never becomes ready, but says so.
    let broken = tower::util::BoxCloneService::new(NotReady);
    pass(broken).await;
}

#[derive(Clone)]
struct NotReady;

impl Service<Request<RequestBody>> for NotReady {
    type Response = Response<AnyBody>;
    type Error = io::Error;
    type Future = std::future::Pending<Result<Response<AnyBody>, io::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Err(io::Error::other("not ready")))
    }

    fn call(&mut self, _: Request<RequestBody>) -> Self::Future {
        panic!("called without being ready")
    }
}

#[tokio::test]
async fn a_grpc_backup_that_fails_in_early_trailers_has_failed() {
    let failing = || stream_of(|| frames(vec![status_trailer("14")], true));
    let backup = stream_of(|| frames(vec![status_trailer("13")], true));
    let response = FallbackLayer::to_service(backup).layer(failing()).oneshot(grpc()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().trailers().unwrap()["grpc-status"], "14");
    let backup = stream_of(|| frames(vec![data("message"), status_trailer("0")], true));
    let response = FallbackLayer::to_service(backup).layer(failing()).oneshot(grpc()).await.unwrap();
    assert_eq!(degraded(&response), Some(("fallback", Outcome::Failure, None)));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "message");
}

#[tokio::test]
async fn a_body_past_the_cap_is_sent_once() {
    const KIB: &str = match std::str::from_utf8(&[b'x'; 1024]) {
        Ok(text) => text,
        Err(_) => "",
    };
    // 1,088 bytes each: 60 fit into 64 KiB and 61 do not.
    for (chunks, sent_again) in [(60, true), (61, false)] {
        let ((failing, first), (backup, second)) = (reads(500), reads(200));
        let service = FallbackLayer::to_service(backup).layer(failing);
        let response = service.oneshot(upload(vec![KIB; chunks])).await.unwrap();
        assert_eq!(response.status() == 200, sent_again, "{chunks}");
        assert_eq!(first.lock().unwrap()[0].len(), chunks * 1024);
        assert_eq!(second.lock().unwrap().len(), usize::from(sent_again));
    }
}

#[tokio::test]
async fn bodies_of_axum_and_tonic_have_a_backup_too() {
    async fn run<B: buttress::Replay<Data = Bytes> + Send + 'static>(body: B)
    where
        B::Error: std::fmt::Debug,
    {
        let failing = service_fn(|request: Request<B>| async move {
            assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "hello");
            Ok::<_, Infallible>(Response::builder().status(500).body(Full::<Bytes>::default()).unwrap())
        });
        let backup = service_fn(|request: Request<B>| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, Infallible>(Response::new(Full::new(body)))
        });
        let service = FallbackLayer::to_service(backup).layer(failing);
        let response = service.oneshot(Request::new(body)).await.unwrap();
        assert_eq!(text(response).await, "hello");
    }
    run(axum::body::Body::from("hello")).await;
    run(tonic::body::Body::new(Full::new(Bytes::from("hello")))).await;
    run(Full::new(Bytes::from("hello"))).await;
    run(full("hello")).await;
}

/// A body that is fed by a channel, and its other end.
fn fed() -> (tokio::sync::mpsc::Sender<&'static str>, RequestBody) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
    let chunks = stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|chunk| chunk.map(data)));
    (sender, StreamBody::new(chunks).boxed_unsync())
}

/// A body keeps the waker it was polled with, and the waker must not keep the body.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_drops_the_body_that_was_recorded() {
    let reads = service_fn(|request: Request<RequestBody>| async move {
        request.into_body().collect().await.unwrap();
        Ok::<_, Infallible>(Response::new(full("")))
    });
    let (sender, body) = fed();
    sender.send("first").await.unwrap();
    let call = FallbackLayer::to_service(reads).layer(reads).oneshot(Request::new(body));
    assert!(tokio::time::timeout(S, call).await.is_err());
    assert!(sender.is_closed());
}

#[tokio::test]
async fn an_attempt_waits_for_no_attempt_that_was_given_up() {
    use futures_util::task::{ArcWake, waker};
    use std::task::Context;
    struct Woken(AtomicU32);
    impl ArcWake for Woken {
        fn wake_by_ref(this: &Arc<Self>) {
            this.0.fetch_add(1, Relaxed);
        }
    }
    // While the first attempt polls the body, its waker is called and then the second attempt asks for it as well.
    let second: Arc<Mutex<Option<RequestBody>>> = Arc::default();
    let woken = Arc::new(Woken(AtomicU32::new(0)));
    let (other, its_waker) = (Arc::clone(&second), waker(Arc::clone(&woken)));
    let mut polls = 0;
    let body: RequestBody = StreamBody::new(stream::poll_fn(move |cx: &mut Context<'_>| {
        polls += 1;
        if polls > 1 {
            return std::task::Poll::Ready(None::<Result<Frame<Bytes>, BoxError>>);
        }
        cx.waker().wake_by_ref();
        let mut other = other.lock().unwrap();
        let polled = std::pin::Pin::new(other.as_mut().unwrap()).poll_frame(&mut Context::from_waker(&its_waker));
        assert!(polled.is_pending());
        std::task::Poll::Pending
    }))
    .boxed_unsync();
    let source = buttress::Replay::split(body, 1_000);
    let mut first: RequestBody = buttress::Replay::attempt(&source);
    *second.lock().unwrap() = Some(buttress::Replay::attempt(&source));
    let nobody = futures_util::task::noop_waker();
    assert!(std::pin::Pin::new(&mut first).poll_frame(&mut Context::from_waker(&nobody)).is_pending());
    drop(first);
    assert!(woken.0.load(Relaxed) > 0);
}

#[tokio::test]
async fn a_backup_may_have_a_fallback_of_its_own() {
    let backup = FallbackLayer::from_fn(sorry).layer(answers(500, "the second"));
    let backup = backup.map_response(|r| r.map(|body| body.boxed_unsync()));
    let response = FallbackLayer::to_service(backup).layer(answers(500, "the first")).oneshot(get("/")).await.unwrap();
    assert_eq!(degraded(&response), Some(("fallback", Outcome::Failure, None)));
    assert_eq!(text(response).await, "sorry");
}

/// The transport may be reading on another thread while the backup takes over: what it got then is not lost.
#[tokio::test]
async fn what_comes_while_an_attempt_is_given_up_goes_to_the_next() {
    type Source = <RequestBody as buttress::Replay>::Source;
    for cap in [1_000, 64 + 5] {
        let source: Arc<Mutex<Option<Source>>> = Arc::default();
        let second: Arc<Mutex<Option<RequestBody>>> = Arc::default();
        let (takes, makes) = (Arc::clone(&source), Arc::clone(&second));
        let mut chunks = ["one ", "two ", "three"].into_iter().enumerate();
        let body = StreamBody::new(stream::poll_fn(move |_| {
            let chunk = chunks.next();
            if matches!(chunk, Some((1, _))) {
                let source = takes.lock().unwrap().take().unwrap();
                *makes.lock().unwrap() = Some(buttress::Replay::attempt(&source));
                <RequestBody as buttress::Replay>::only(&source, 1);
            }
            std::task::Poll::Ready(chunk.map(|(_, text)| data(text)))
        }));
        let split = buttress::Replay::split(body.boxed_unsync(), cap);
        let mut first: RequestBody = buttress::Replay::attempt(&split);
        *source.lock().unwrap() = Some(split);
        for text in ["one ", "two "] {
            assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), text);
        }
        let second = second.lock().unwrap().take().unwrap();
        assert_eq!(second.collect().await.unwrap().to_bytes(), "one two three", "{cap}");
        assert!(first.frame().await.unwrap().is_err());
    }
}

// === the last good answer ===

/// A backend that answers well until it is broken: then 500.
#[derive(Clone, Default)]
struct Moody(Arc<AtomicU32>);

impl Moody {
    fn breaks(&self) {
        self.0.store(1, Relaxed);
    }

    fn heals(&self) {
        self.0.store(0, Relaxed);
    }

    fn over(&self, well: impl Fn(&Request<RequestBody>) -> Response<AnyBody> + Clone + Send + 'static) -> Backend {
        let broken = Arc::clone(&self.0);
        backend(move |request| {
            Ok(match broken.load(Relaxed) {
                0 => well(request),
                _ => Response::builder().status(500).body(full("broken")).unwrap(),
            })
        })
        .0
    }
}

/// What comes back for `second` when the backend is broken after `first` was read to its end.
async fn after(
    layer: FallbackLayer<LastGood>,
    first: Request<RequestBody>,
    headers: &'static [(&'static str, &'static str)],
    second: Request<RequestBody>,
) -> String {
    let moody = Moody::default();
    let service = layer.layer(moody.over(move |_| respond(headers, "good")));
    assert_eq!(text(service.clone().oneshot(first).await.unwrap()).await, "good");
    moody.breaks();
    text(service.oneshot(second).await.unwrap()).await
}

fn mebibyte() -> FallbackLayer<LastGood> {
    FallbackLayer::last_good(LastGood::new(1 << 20, 60 * S))
}

#[tokio::test(start_paused = true)]
async fn the_last_good_answer_is_given_with_its_age() {
    let (moody, layer) = (Moody::default(), mebibyte());
    let service = layer.layer(moody.over(|_| respond(&[("etag", "\"1\""), ("connection", "close")], "good")));
    assert_eq!(text(service.clone().oneshot(get("/a")).await.unwrap()).await, "good");
    moody.breaks();
    advance(10 * S).await;
    let response = service.clone().oneshot(get("/a")).await.unwrap();
    assert_eq!(degraded(&response), Some(("fallback", Outcome::Failure, None)));
    assert_eq!(
        (&response.headers()["age"], &response.headers()["etag"]),
        (&"10".parse().unwrap(), &"\"1\"".parse().unwrap())
    );
    assert!(!response.headers().contains_key("connection"));
    assert_eq!(text(response).await, "good");
    // `max_age` counts from the response, and to the last instant.
    advance(50 * S).await;
    assert_eq!(text(service.clone().oneshot(get("/a")).await.unwrap()).await, "good");
    advance(Duration::from_millis(1)).await;
    assert_eq!(text(service.clone().oneshot(get("/a")).await.unwrap()).await, "broken");
    // A new one takes its place.
    moody.heals();
    text(service.clone().oneshot(get("/a")).await.unwrap()).await;
    moody.breaks();
    assert_eq!(text(service.clone().oneshot(get("/a")).await.unwrap()).await, "good");
    assert_eq!((layer.handle().snapshot().answered, layer.handle().snapshot().passed_on), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn the_age_it_came_with_is_part_of_its_age() {
    let (moody, layer) = (Moody::default(), mebibyte());
    let service = layer.layer(moody.over(|_| respond(&[("age", "30")], "good")));
    text(service.clone().oneshot(get("/a")).await.unwrap()).await;
    moody.breaks();
    advance(10 * S).await;
    assert_eq!(service.oneshot(get("/a")).await.unwrap().headers()["age"], "40");
}

#[tokio::test]
async fn it_is_shared_by_every_service_of_the_layer() {
    let (moody, layer) = (Moody::default(), mebibyte());
    let backend = moody.over(|_| respond(&[], "good"));
    text(layer.layer(backend.clone()).oneshot(get("/")).await.unwrap()).await;
    moody.breaks();
    assert_eq!(text(layer.clone().layer(backend).oneshot(get("/")).await.unwrap()).await, "good");
}

#[tokio::test]
async fn a_refusal_is_answered_with_the_last_good_one() {
    let breaker = CircuitBreakerLayer::builder().build().unwrap();
    let service = mebibyte().layer(breaker.layer(answers(200, "good")));
    text(service.clone().oneshot(get("/")).await.unwrap()).await;
    breaker.handle().force_open().unwrap();
    let response = service.oneshot(get("/")).await.unwrap();
    assert_eq!(degraded(&response), Some(("circuit_breaker", Outcome::Ignored, Some(Reason::ForcedOpen))));
    assert_eq!(text(response).await, "good");
}

#[tokio::test]
async fn the_key_is_method_host_and_uri() {
    let asks = |uri: &str, host| {
        let mut request = get(uri);
        request.headers_mut().insert("host", http::HeaderValue::from_static(host));
        request
    };
    let (same, other) = ("good", "broken");
    for (second, expected) in [
        (asks("/a?q=1", "x.org"), same),
        (asks("/a?q=1", "X.org"), same),
        (asks("/a?q=2", "x.org"), other),
        (asks("/a", "x.org"), other),
        (asks("/b?q=1", "x.org"), other),
        (asks("/a?q=1", "y.org"), other),
        (request("HEAD", "/a?q=1", &[("host", "x.org")]), other),
        (request("POST", "/a?q=1", &[("host", "x.org")]), other),
    ] {
        let what = format!("{second:?}");
        assert_eq!(after(mebibyte(), asks("/a?q=1", "x.org"), &[], second).await, expected, "{what}");
    }
}

#[tokio::test]
async fn vary_chooses_among_answers() {
    let moody = Moody::default();
    let service = mebibyte().layer(moody.over(|request| {
        let german = request.headers().get("accept-language").is_some_and(|v| v == "de");
        respond(&[("vary", "Accept-Language, accept")], if german { "gut" } else { "good" })
    }));
    let in_language = |language| request("GET", "/", &[("accept-language", language)]);
    for language in ["de", "en"] {
        text(service.clone().oneshot(in_language(language)).await.unwrap()).await;
    }
    moody.breaks();
    for (language, expected) in [("de", "gut"), ("en", "good"), ("fr", "broken")] {
        assert_eq!(text(service.clone().oneshot(in_language(language)).await.unwrap()).await, expected);
    }
    assert_eq!(after(mebibyte(), get("/"), &[("vary", "*")], get("/")).await, "broken");
}

#[tokio::test]
async fn what_its_headers_forbid_is_not_kept() {
    for value in ["no-store", "private", "no-cache", "max-age=60, Private", "private=\"x-a\"", "NO-STORE"] {
        let headers: &'static [_] = vec![("cache-control", value)].leak();
        assert_eq!(after(mebibyte(), get("/"), headers, get("/")).await, "broken", "{value}");
    }
    assert_eq!(after(mebibyte(), get("/"), &[("set-cookie", "id=1")], get("/")).await, "broken");
    assert_eq!(after(mebibyte(), get("/"), &[("x-degraded", "1")], get("/")).await, "broken");
    for value in ["max-age=0", "public", "must-revalidate", "x-no-store"] {
        let headers: &'static [_] = vec![("cache-control", value)].leak();
        assert_eq!(after(mebibyte(), get("/"), headers, get("/")).await, "good", "{value}");
    }
}

#[tokio::test]
async fn one_users_answer_is_not_given_to_another() {
    let authorized = || request("GET", "/", &[("authorization", "Bearer a")]);
    let other = || request("GET", "/", &[("authorization", "Bearer b")]);
    let across = || FallbackLayer::last_good(LastGood::new(1 << 20, 60 * S).across_authorization(true));
    // Neither what an authorized request brought is kept, nor is such a request answered.
    assert_eq!(after(mebibyte(), authorized(), &[], get("/")).await, "broken");
    assert_eq!(after(mebibyte(), authorized(), &[], authorized()).await, "broken");
    assert_eq!(after(mebibyte(), authorized(), &[("cache-control", "public")], get("/")).await, "broken");
    assert_eq!(after(mebibyte(), get("/"), &[], authorized()).await, "broken");
    for (first, second) in [(authorized(), other()), (authorized(), get("/")), (get("/"), authorized())] {
        assert_eq!(after(across(), first, &[], second).await, "good");
    }
    let cookie = || request("GET", "/", &[("cookie", "session=1")]);
    assert_eq!(after(mebibyte(), cookie(), &[], get("/")).await, "broken");
    assert_eq!(after(mebibyte(), cookie(), &[("cache-control", "public, max-age=9")], get("/")).await, "good");
    assert_eq!(after(mebibyte(), get("/"), &[], cookie()).await, "good");
}

#[tokio::test]
async fn parts_and_errors_are_not_kept() {
    let range = || request("GET", "/", &[("range", "bytes=0-3")]);
    assert_eq!(after(mebibyte(), range(), &[], get("/")).await, "broken");
    assert_eq!(after(mebibyte(), get("/"), &[], range()).await, "broken");
    for status in [206, 301, 404] {
        let (moody, layer) = (Moody::default(), mebibyte());
        let service = layer.layer(moody.over(move |_| Response::builder().status(status).body(full("x")).unwrap()));
        text(service.clone().oneshot(get("/")).await.unwrap()).await;
        moody.breaks();
        assert_eq!(text(service.oneshot(get("/")).await.unwrap()).await, "broken", "{status}");
    }
}

#[tokio::test]
async fn only_what_was_read_to_its_end_is_kept() {
    let (moody, last_good) = (Moody::default(), LastGood::new(1 << 20, 60 * S));
    let layer = FallbackLayer::last_good(last_good.clone());
    let service = layer.layer(moody.over(|request| {
        let ends = request.uri().path() != "/breaks";
        let mut body = vec![data("go"), data("od")];
        body.extend((!ends).then(|| Err("reset".into())));
        Response::new(frames(body, true))
    }));
    // Left after a frame.
    let mut body = service.clone().oneshot(get("/left")).await.unwrap().into_body();
    assert!(body.frame().await.is_some());
    assert_eq!(last_good.kept().0, 0);
    drop(body);
    // Broken off.
    assert!(service.clone().oneshot(get("/breaks")).await.unwrap().into_body().collect().await.is_err());
    assert_eq!(last_good.kept().0, 0);
    // Streamed, to its end: kept with the last frame, whole, and not before it.
    let mut body = service.clone().oneshot(get("/whole")).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "go");
    assert_eq!(last_good.kept().0, 0);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "od");
    assert_eq!(last_good.kept().0, 1);
    moody.breaks();
    assert_eq!(text(service.clone().oneshot(get("/whole")).await.unwrap()).await, "good");
    assert_eq!(text(service.clone().oneshot(get("/left")).await.unwrap()).await, "broken");
}

#[tokio::test]
async fn an_answer_to_head_is_kept_at_its_head() {
    let head = || request("HEAD", "/", &[]);
    let moody = Moody::default();
    let service = mebibyte().layer(moody.over(|_| respond(&[("content-length", "1000")], "")));
    drop(service.clone().oneshot(head()).await.unwrap());
    moody.breaks();
    let response = service.oneshot(head()).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["content-length"]), (200, &"1000".parse().unwrap()));
}

/// RFC 9110, 8.6: what is said of the length is that of the GET. A server reads it off the body where the head is
/// silent.
#[tokio::test]
async fn a_kept_answer_to_head_says_of_its_length_what_it_said_then() {
    let head = || request("HEAD", "/", &[]);
    let said = |response: &Response<_>| {
        let written = response.headers().get("content-length").map(|length| length.to_str().unwrap().parse().unwrap());
        written.or(Body::size_hint(response.body()).exact())
    };
    for (headers, body, length) in [
        (&[][..], Some("hello"), Some(5)),
        (&[("content-length", "9")], Some(""), Some(9)),
        (&[], Some(""), Some(0)),
        (&[], None, None),
    ] {
        let moody = Moody::default();
        let service = mebibyte().layer(moody.over(move |_| match body {
            Some(text) => respond(headers, text),
            None => Response::new(frames(vec![data("a stream")], true)),
        }));
        let response = service.clone().oneshot(head()).await.unwrap();
        assert_eq!(said(&response), length);
        drop(response);
        moody.breaks();
        let response = service.oneshot(head()).await.unwrap();
        assert_eq!((degraded(&response).is_some(), said(&response)), (true, length));
        assert!(response.body().is_end_stream());
        assert_eq!(text(response).await, "");
    }
}

#[tokio::test]
async fn what_was_of_one_connection_or_one_moment_is_not_kept() {
    let moody = Moody::default();
    let names = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "x-hop",
        "retry-after",
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ];
    let service = mebibyte().layer(moody.over(move |_| {
        let mut response = respond(&[("etag", "\"1\""), ("x-rated", "5")], "good");
        for name in names {
            response.headers_mut().insert(name, "x-hop".parse().unwrap());
        }
        response
    }));
    text(service.clone().oneshot(get("/")).await.unwrap()).await;
    moody.breaks();
    let response = service.oneshot(get("/")).await.unwrap();
    let mut kept: Vec<_> = response.headers().keys().map(http::HeaderName::as_str).collect();
    kept.sort_unstable();
    assert_eq!(kept, ["age", "etag", "x-rated"]);
}

#[tokio::test]
async fn what_a_request_forbids_to_store_is_not_kept() {
    for (value, expected) in [("no-store", "broken"), ("max-age=0, No-Store", "broken"), ("no-cache", "good")] {
        let asks = || request("GET", "/", &[("cache-control", value)]);
        assert_eq!(after(mebibyte(), asks(), &[], get("/")).await, expected, "{value}");
        // It may be answered with what another one brought.
        assert_eq!(after(mebibyte(), get("/"), &[], asks()).await, "good", "{value}");
    }
}

#[tokio::test]
async fn memory_is_bounded() {
    let (moody, last_good) = (Moody::default(), LastGood::new(10_000, 60 * S));
    let layer = FallbackLayer::last_good(last_good.clone());
    let service = layer.layer(moody.over(|request| {
        let length = request.uri().query().and_then(|q| q.parse().ok()).unwrap_or(1_000);
        let body = Full::new(Bytes::from(vec![b'x'; length])).map_err(|e| match e {}).boxed_unsync();
        Response::new(body)
    }));
    for n in 0..100 {
        text(service.clone().oneshot(get(&format!("/{n}"))).await.unwrap()).await;
        assert!(last_good.kept().1 <= 10_000, "{:?}", last_good.kept());
    }
    assert!((5..=8).contains(&last_good.kept().0), "{:?}", last_good.kept());
    // One that is too long by itself is passed on and not kept.
    let response = service.clone().oneshot(get("/long?20000")).await.unwrap();
    assert_eq!(text(response).await.len(), 20_000);
    moody.breaks();
    assert_eq!(text(service.oneshot(get("/long?20000")).await.unwrap()).await, "broken");
}

#[tokio::test]
async fn a_cache_control_that_can_not_be_read_as_text_still_forbids() {
    let moody = Moody::default();
    let service = mebibyte().layer(moody.over(|_| {
        let mut response = respond(&[], "good");
        let value = http::HeaderValue::from_bytes(b"private, x=\"\xe9\"").unwrap();
        response.headers_mut().insert("cache-control", value);
        response
    }));
    text(service.clone().oneshot(get("/")).await.unwrap()).await;
    moody.breaks();
    assert_eq!(text(service.oneshot(get("/")).await.unwrap()).await, "broken");
}

#[tokio::test]
async fn an_answer_shorter_than_announced_is_not_kept() {
    for length in ["5", "3"] {
        let headers: &'static [_] = vec![("content-length", length)].leak();
        assert_eq!(after(mebibyte(), get("/"), headers, get("/")).await, "broken", "{length}");
    }
}

#[tokio::test]
async fn headers_of_several_lines_are_kept_whole() {
    let moody = Moody::default();
    let service = mebibyte().layer(moody.over(|_| respond(&[("link", "a"), ("link", "b")], "good")));
    text(service.clone().oneshot(get("/")).await.unwrap()).await;
    moody.breaks();
    let response = service.oneshot(get("/")).await.unwrap();
    assert_eq!(response.headers().get_all("link").iter().collect::<Vec<_>>(), ["a", "b"]);
}

/// Streams without an end, one for each of many callers, must not add up.
#[tokio::test]
async fn what_is_still_read_is_bounded_too() {
    let last_good = LastGood::new(10_000, 60 * S);
    let chunks = |request: &Request<RequestBody>| {
        let chunk = Ok(Frame::data(Bytes::from(vec![b'x'; 4_000])));
        Ok::<_, Infallible>(Response::new(frames(vec![chunk], request.uri().path() == "/whole")))
    };
    let service = FallbackLayer::last_good(last_good.clone()).layer(backend(chunks).0);
    let mut open = Vec::new();
    for n in 0..2 {
        let mut body = service.clone().oneshot(get(&format!("/{n}"))).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        open.push(body);
    }
    for kept in [0, 1] {
        let response = service.clone().oneshot(get("/whole")).await.unwrap();
        assert_eq!(text(response).await.len(), 4_000);
        assert_eq!(last_good.kept().0, kept);
        open.clear();
    }
}

/// The last good answer is the youngest response, and not the one whose reader was the slowest.
#[tokio::test(start_paused = true)]
async fn an_older_answer_that_is_read_later_is_not_the_last() {
    for vary in ["", "accept-language"] {
        let moody = Moody::default();
        let service = mebibyte().layer(moody.over(move |request| {
            let text = match request.headers()["x-n"].as_bytes() {
                b"0" => "old",
                b"1" => "vieux",
                _ => "new",
            };
            Response::builder().header("vary", vary).body(full(text)).unwrap()
        }));
        let ask = |n: u32, language: &str| {
            let mut request = get("/");
            request.headers_mut().insert("x-n", n.into());
            request.headers_mut().insert("accept-language", language.parse().unwrap());
            service.clone().oneshot(request)
        };
        let slow = ask(0, "en").await.unwrap();
        let french = ask(1, "fr").await.unwrap();
        advance(50 * S).await;
        let young = ask(2, "en").await.unwrap();
        assert_eq!(text(young).await, "new");
        advance(5 * S).await;
        text(slow).await;
        // Another variant is another answer, however old.
        text(french).await;
        advance(4 * S).await;
        moody.breaks();
        let of_french = if vary.is_empty() { "new" } else { "vieux" };
        assert_eq!(text(ask(3, "fr").await.unwrap()).await, of_french, "{vary}");
        advance(6 * S).await;
        let response = ask(4, "en").await.unwrap();
        assert_eq!(response.headers()["age"], "15", "{vary}");
        assert_eq!(text(response).await, "new", "{vary}");
    }
}

/// A header or a chunk is mostly the rest of the buffer that a connection was read into: what is kept is a copy, and so
/// is what is still being read.
#[tokio::test]
async fn what_is_kept_holds_no_buffer_of_a_connection() {
    struct Buffer(Arc<AtomicU32>, &'static [u8]);
    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            self.1
        }
    }
    impl Drop for Buffer {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Relaxed);
        }
    }
    let held = Arc::new(AtomicU32::new(0));
    let buffer = {
        let held = Arc::clone(&held);
        move |text| {
            held.fetch_add(1, Relaxed);
            Bytes::from_owner(Buffer(Arc::clone(&held), text))
        }
    };
    let header = |text| http::HeaderValue::from_maybe_shared(buffer(text)).unwrap();
    let moody = Moody::default();
    let service = mebibyte().layer(moody.over({
        let buffer = buffer.clone();
        move |_| {
            let mut response = Response::new(frames(vec![Ok(Frame::data(buffer(b"good")))], true));
            response.headers_mut().insert("vary", "accept".parse().unwrap());
            response.headers_mut().insert("etag", http::HeaderValue::from_maybe_shared(buffer(b"\"1\"")).unwrap());
            response
        }
    }));
    let mut request = get("/");
    request.headers_mut().insert("accept", header(b"text/plain"));
    let mut response = service.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers_mut().remove("etag").unwrap(), "\"1\"");
    drop(response.body_mut().frame().await.unwrap());
    assert_eq!(held.load(Relaxed), 0, "while it is read");
    assert_eq!(text(response).await, "");
    moody.breaks();
    let mut request = get("/");
    request.headers_mut().insert("accept", "text/plain".parse().unwrap());
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.headers()["etag"], "\"1\"");
    assert_eq!((text(response).await.as_str(), held.load(Relaxed)), ("good", 0));
}

/// Keys that were made of what a request brought: the headers of which a response says that it depends on them.
#[tokio::test]
async fn keys_of_what_is_still_read_count() {
    let last_good = LastGood::new(10_000, 60 * S);
    let respond = |request: &Request<RequestBody>| {
        let body = frames(vec![data("good")], request.uri().path() == "/whole");
        Ok::<_, Infallible>(Response::builder().header("vary", "accept").body(body).unwrap())
    };
    let service = FallbackLayer::last_good(last_good.clone()).layer(backend(respond).0);
    let long = |path| {
        let mut request = get(path);
        request.headers_mut().insert("accept", "x".repeat(4_000).parse().unwrap());
        request
    };
    let open = [service.clone().oneshot(long("/0")).await.unwrap(), service.clone().oneshot(long("/1")).await.unwrap()];
    text(service.clone().oneshot(long("/whole")).await.unwrap()).await;
    assert_eq!(last_good.kept().0, 0);
    drop(open);
    text(service.oneshot(long("/whole")).await.unwrap()).await;
    assert_eq!(last_good.kept().0, 2);
}

#[tokio::test]
async fn zero_keeps_nothing() {
    for (bytes, age) in [(0, 60 * S), (1 << 20, Duration::ZERO), (0, Duration::ZERO)] {
        let last_good = LastGood::new(bytes, age);
        assert_eq!(after(FallbackLayer::last_good(last_good.clone()), get("/"), &[], get("/")).await, "broken");
        assert_eq!(last_good.kept(), (0, 0));
    }
}

#[tokio::test]
async fn nothing_of_grpc_is_kept() {
    let last_good = LastGood::new(1 << 20, 60 * S);
    let service = FallbackLayer::last_good(last_good.clone())
        .layer(stream_of(|| frames(vec![data("message"), status_trailer("0")], true)));
    service.oneshot(grpc()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(last_good.kept(), (0, 0));
}

// === plain services ===

#[tokio::test]
async fn a_function_of_the_error() {
    let layer = FallbackLayer::plain_from_fn(|e: &Error<io::Error>| match e {
        Error::Inner(e) if e.kind() == io::ErrorKind::NotFound => Some(0),
        _ => None,
    });
    let service = layer.layer(service_fn(|n: u32| async move {
        match n {
            0 => Err(io::Error::from(io::ErrorKind::NotFound)),
            1 => Err(io::Error::from(io::ErrorKind::TimedOut)),
            n => Ok(n),
        }
    }));
    assert_eq!(service.clone().oneshot(7).await.unwrap(), 7);
    assert_eq!(service.clone().oneshot(0).await.unwrap(), 0);
    assert!(matches!(service.oneshot(1).await, Err(Error::Inner(e)) if e.kind() == io::ErrorKind::TimedOut));
    let figures = layer.handle().snapshot();
    assert_eq!((figures.answered, figures.passed_on), (1, 1));
}

#[tokio::test]
async fn a_stack_of_plain_policies_keeps_its_error() {
    let breaker = CircuitBreakerLayer::builder().build().unwrap();
    breaker.handle().force_open().unwrap();
    let backend = service_fn(|n: u32| async move { Err::<u32, _>(io::Error::other(n.to_string())) });
    let refusals = FallbackLayer::flat_from_fn(|e: &Error<io::Error>| Rejection::of(e).map(|_| 1)).on(true, &[]);
    assert_eq!(refusals.layer(breaker.clone().plain().layer(backend)).oneshot(0).await.unwrap(), 1);
    let failures = FallbackLayer::flat_from_fn(|_: &Error<io::Error>| Some(2)).on(false, &[Outcome::Failure]);
    let service = failures.layer(breaker.clone().plain().layer(backend));
    assert!(matches!(service.clone().oneshot(0).await, Err(Error::Rejected(_))));
    breaker.handle().reset();
    assert_eq!(service.oneshot(0).await.unwrap(), 2);
    let boxed = FallbackLayer::boxed_from_fn(|e: &BoxError| (e.to_string() == "7").then_some(7));
    let service = boxed.layer(breaker.plain().layer(backend));
    assert_eq!(service.clone().oneshot(7).await.unwrap(), 7);
    assert!(service.oneshot(8).await.is_err());
}

/// A builder has the forms that there are, with what only a builder sets.
#[tokio::test]
async fn the_builder_has_every_form() {
    let named = || FallbackLayer::builder().name("stock").shadow(true);
    let backend = service_fn(|_: u32| async { Err::<u32, _>(io::Error::other("x")) });
    let breaker = CircuitBreakerLayer::builder().build().unwrap().plain();

    let flat = named().build_flat_from_fn(|_: &Error<io::Error>| Some(1)).unwrap();
    assert!(flat.layer(breaker.layer(backend)).oneshot(0).await.is_err());
    flat.handle().shadow(false);
    assert_eq!(flat.layer(breaker.layer(backend)).oneshot(0).await.unwrap(), 1);

    let boxed = named().build_boxed_from_fn(|_: &BoxError| Some(2)).unwrap();
    assert!(boxed.layer(backend).oneshot(0).await.is_err());
    boxed.handle().shadow(false);
    assert_eq!(boxed.layer(backend).oneshot(0).await.unwrap(), 2);

    assert_eq!((flat.name(), boxed.name()), ("stock", "stock"));
    for bad in [
        FallbackLayer::builder().name("").build_flat_from_fn(|_: &Error<io::Error>| Some(1)).map(drop),
        FallbackLayer::builder().name("").build_boxed_from_fn(|_: &BoxError| Some(1)).map(drop),
    ] {
        assert_eq!(bad.unwrap_err().fields()[0].field, "name");
    }
}

#[tokio::test]
async fn closures_need_no_types_where_the_layer_says_them() {
    let layer = FallbackLayer::from_fn(|c| match c.parts.uri.path() {
        "/a" => Answer::PassOn,
        _ => sorry(c),
    });
    assert_eq!(layer.layer(answers(500, "")).oneshot(get("/a")).await.unwrap().status(), 500);
    let plain = FallbackLayer::plain_from_fn(|_| Some(1));
    let failing = service_fn(|_: u32| async { Err::<u32, _>(io::Error::other("x")) });
    assert_eq!(plain.layer(failing).oneshot(0).await.unwrap(), 1);
}

// === name, shadow, events ===

#[tokio::test]
async fn events_and_a_name() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&events);
    let layer = FallbackLayer::builder()
        .name("prices")
        .on(true, &[Outcome::Failure, Outcome::Throttled])
        .header(true)
        .observer(move |e: &Event| noted.lock().unwrap().push((e.policy, e.name.to_string(), e.kind.clone())))
        .build_from_fn(sorry)
        .unwrap();
    assert_eq!(layer.name(), "prices");
    let response = layer.layer(answers(429, "")).oneshot(get("/")).await.unwrap();
    assert_eq!(response.headers()["x-degraded"], "1");
    layer.layer(answers(200, "")).oneshot(get("/")).await.unwrap();
    let fell = Kind::FellBack { outcome: Outcome::Throttled };
    assert_eq!(*events.lock().unwrap(), [("fallback", "prices".to_owned(), fell)]);
    assert_eq!(FallbackLayer::from_fn(sorry).name(), "fallback");
    let error = FallbackLayer::builder().name("").build_from_fn(sorry).unwrap_err();
    assert_eq!(error.fields()[0].field, "name");
}

#[tokio::test]
async fn in_shadow_it_counts_and_passes_on() {
    let layer = FallbackLayer::builder().shadow(true).build_from_fn(sorry).unwrap();
    let service = layer.layer(answers(500, "broken"));
    assert_eq!(text(service.clone().oneshot(get("/")).await.unwrap()).await, "broken");
    let handle = layer.handle();
    assert_eq!((handle.snapshot().answered, handle.snapshot().would_have_answered), (0, 1));
    handle.shadow(false);
    assert_eq!(text(service.oneshot(get("/")).await.unwrap()).await, "sorry");
}

#[tokio::test]
async fn nobody_is_asked_to_be_clone_or_sync() {
    /// Not `Sync`, not `Clone`, and not `Unpin`.
    struct Odd(
        #[allow(dead_code, reason = "for what it makes of the type")] std::cell::Cell<u8>,
        std::marker::PhantomPinned,
    );
    impl Body for Odd {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            std::task::Poll::Ready(None)
        }
    }
    let service = service_fn(|_: Request<Odd>| async {
        Ok::<_, Infallible>(Response::builder().status(500).body(Odd(0.into(), std::marker::PhantomPinned)).unwrap())
    });
    let call =
        FallbackLayer::from_fn(sorry).layer(service).oneshot(Request::new(Odd(0.into(), std::marker::PhantomPinned)));
    assert_eq!(text(call.await.unwrap()).await, "sorry");
    let _: Empty<Bytes> = Empty::new();
}
