//! Deadlines that travel from hop to hop, and win against the timers of the transport.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::StatusCode, routing::get};
use buttress::{DeadlineLayer, TimeoutLayer};
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream};
use http::Request;
use http_body_util::BodyExt;
use tonic::{Code, Status, client::GrpcService};
use tonic_health::pb::health_client::HealthClient;
use tower::{BoxError, Layer};

use crate::{
    health::{Manners, ask, bare, channel, layered, without_timer},
    rig::{BOTH, Server, Version, hyper, nothing, soon},
};

/// A call of a tonic client, whatever its layers are.
type Call = Arc<dyn Fn(&'static str, Option<Duration>) -> BoxFuture<'static, Result<(), Status>> + Send + Sync>;

fn call<T>(client: HealthClient<T>) -> Call
where
    T: GrpcService<tonic::body::Body, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static,
    T::ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static,
{
    Arc::new(move |manner, timeout| {
        let mut client = client.clone();
        let mut request = tonic::Request::new(ask(manner));
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        Box::pin(async move { soon(client.check(request)).await.map(drop) })
    })
}

/// Two clients of that server: under `DeadlineLayer::client()` and under a `TimeoutLayer` with a longer bound.
fn clients(server: &Server) -> [(&'static str, Call); 2] {
    let timeout = TimeoutLayer::builder().after(Duration::from_secs(60)).build().unwrap();
    [
        ("deadline", call(HealthClient::new(DeadlineLayer::client().layer(channel(server))))),
        ("timeout", call(HealthClient::new(timeout.layer(channel(server))))),
    ]
}

/// An axum app that calls upstream in its handler and, on the other route, in its response body. It never mentions a
/// deadline.
fn gateway(upstream: &Call) -> Router {
    let (in_handler, in_body) = (Arc::clone(upstream), Arc::clone(upstream));
    let in_handler = move || async move {
        in_handler("ok", None).await.map_err(|status| (StatusCode::BAD_GATEWAY, status.to_string()))
    };
    let in_body = move || async move {
        let call = async move { in_body("ok", None).await.map(|()| Bytes::from_static(b"done")) };
        Body::from_stream(stream::once(call))
    };
    Router::new()
        .route("/in-the-handler", get(in_handler))
        .route("/in-the-body", get(in_body))
        .layer(DeadlineLayer::server(Duration::from_secs(30)))
}

/// What stayed of the deadline when it reached tonic, and how long the whole call took. `None`: it was too late.
async fn through(
    gateway: &Server,
    upstream: &Manners,
    (version, path): (Version, &str),
    timeout: Option<&str>,
) -> (Option<Duration>, Duration) {
    #[allow(clippy::disallowed_methods, reason = "what sockets take is measured on the real clock")]
    let started = Instant::now();
    let mut request = Request::get(gateway.uri(path));
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let answer = soon(hyper(version).request(request.body(nothing()).unwrap())).await.unwrap();
    let served = answer.status() == 200 && answer.into_body().collect().await.is_ok();
    let took = started.elapsed();
    let arrived = served.then(|| upstream.timeouts().pop().flatten().expect("a deadline arrives"));
    (arrived, took)
}

#[tokio::test]
async fn a_deadline_reaches_the_server_behind_the_handler() {
    let manners = Manners::default();
    let upstream = bare(&manners).await;
    for (name, call) in clients(&upstream) {
        let gateway = Server::axum(gateway(&call)).await;
        for (version, path) in BOTH.into_iter().flat_map(|v| [(v, "/in-the-handler"), (v, "/in-the-body")]) {
            let what = (name, version, path);
            // The server's own bound, where the caller says nothing.
            let (arrived, took) = through(&gateway, &manners, (version, path), None).await;
            let (arrived, whole) = (arrived.unwrap(), Duration::from_secs(30));
            assert!(arrived < whole && arrived + took >= whole, "{what:?}: {arrived:?} after {took:?}");

            // The caller's. On a machine that stands still for so long it is right that it passes: once more then.
            let whole = Duration::from_millis(500);
            let (arrived, took) = loop {
                match through(&gateway, &manners, (version, path), Some("500m")).await {
                    (Some(arrived), took) => break (arrived, took),
                    (None, took) => assert!(took > whole / 2, "{what:?}: out of time after {took:?}"),
                }
            };
            assert!(arrived < whole && arrived + took >= whole, "{what:?}: {arrived:?} after {took:?}");
        }
    }
}

/// tonic's client has a timer on the same header, and answers CANCELLED when it fires.
#[tokio::test]
async fn a_clients_deadline_is_exceeded_and_not_cancelled() {
    let server = bare(&Manners::default()).await;
    for (name, call, timeout) in in_50_ms(&server) {
        let status = call("hangs", timeout).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{name}: {status:?}");
    }

    // This is what it is without us; once it is not, the margin can go.
    let mut request = tonic::Request::new(ask("hangs"));
    request.set_timeout(Duration::from_millis(50));
    let status = HealthClient::new(channel(&server)).check(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
}

/// As above, but the runtime is held up until both timers have fired: the transport's answer is there first then.
#[tokio::test]
async fn a_clients_deadline_is_exceeded_even_if_both_timers_fire_at_once() {
    let manners = Manners::default();
    let server = bare(&manners).await;
    for (name, call, timeout) in in_50_ms(&server) {
        // The connection is there, so that the call itself is all that the 50 ms are for.
        let _ = call("ok", None).await;
        let mut hangs = tokio::spawn(call("hangs", timeout));
        let answer = tokio::select! {
            () = manners.hanging.notified() => {
                // This blocks the one thread of this runtime, on purpose.
                std::thread::sleep(Duration::from_millis(80));
                hangs.await
            }
            // A busy machine may hold it up for so long by itself.
            answer = &mut hangs => answer,
        };
        let status = answer.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{name}: {status:?}");
    }
}

/// Calls that may take 50 ms: by what the caller says, under each layer, and by the operator's own timeout.
fn in_50_ms(server: &Server) -> [(&'static str, Call, Option<Duration>); 3] {
    let short = Duration::from_millis(50);
    let [(deadline, by_deadline), (timeout, by_timeout)] = clients(server);
    let own = TimeoutLayer::builder().after(short).build().unwrap();
    let own = call(HealthClient::new(own.layer(channel(server))));
    [(deadline, by_deadline, Some(short)), (timeout, by_timeout, Some(short)), ("own", own, None)]
}

/// tonic's server has one too, outside of all layers.
#[tokio::test]
async fn a_servers_deadline_is_exceeded_and_not_cancelled() {
    let check = async |server: &Server| {
        let mut request = tonic::Request::new(ask("hangs"));
        request.metadata_mut().insert("grpc-timeout", "50m".parse().unwrap());
        soon(without_timer(server).check(request)).await.unwrap_err().code()
    };
    let manners = Manners::default();
    assert_eq!(check(&bare(&manners).await).await, Code::Cancelled, "this is what it is without us");

    let server = layered!(tonic, manners, DeadlineLayer::server(Duration::from_secs(60)));
    assert_eq!(check(&server).await, Code::DeadlineExceeded);
    let timeout = TimeoutLayer::builder().after(Duration::from_secs(60)).build().unwrap();
    let server = layered!(tonic, manners, timeout);
    assert_eq!(check(&server).await, Code::DeadlineExceeded);
}
