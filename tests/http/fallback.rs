//! Fallbacks on real traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use buttress::{Answer, FallbackContext, FallbackLayer, LastGood, TimeoutLayer};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use prost::Message;
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};
use tower::Layer;

use crate::{
    health::{Manners, ask, bare, channel},
    rig::{BOTH, Hyper, Server, chunk, hyper, nobody, nothing, soon},
};

/// NOT_SERVING, said by nobody.
const DEGRADED: HealthCheckResponse = HealthCheckResponse { status: 2 };

fn not_serving(c: &FallbackContext<'_>) -> Answer {
    assert!(c.grpc);
    Answer::GrpcMessage(DEGRADED.encode_to_vec().into())
}

#[tokio::test]
async fn a_generated_client_reads_the_message_where_nobody_listens() {
    let channel = Endpoint::from_shared(format!("http://{}", nobody().await)).unwrap().connect_lazy();
    let layer = FallbackLayer::from_fn(not_serving);
    let mut client = HealthClient::new(layer.layer(channel));
    let answer = soon(client.check(HealthCheckRequest::default())).await.unwrap();
    assert_eq!(answer.into_inner(), DEGRADED);
    // The same message is a whole stream.
    let mut stream = soon(client.watch(HealthCheckRequest::default())).await.unwrap().into_inner();
    assert_eq!(soon(stream.message()).await.unwrap(), Some(DEGRADED));
    assert_eq!(soon(stream.message()).await.unwrap(), None);
    assert_eq!(layer.handle().snapshot().answered, 2);
}

#[tokio::test]
async fn failures_and_hanging_backends_are_answered_and_answers_are_not() {
    let manners = Manners::default();
    let server = bare(&manners).await;
    let timeout = TimeoutLayer::builder().after(Duration::from_millis(100)).build().unwrap();
    let mut client = HealthClient::new(FallbackLayer::from_fn(not_serving).layer(timeout.layer(channel(&server))));
    for (service, status) in [("ok", Ok(1)), ("14", Ok(2)), ("hangs", Ok(2)), ("5", Err(tonic::Code::NotFound))] {
        let answer = soon(client.check(ask(service))).await;
        assert_eq!(answer.map(|a| a.into_inner().status).map_err(|e| e.code()), status, "{service}");
    }
    // What has sent messages goes on to its own end.
    let mut stream = soon(client.watch(ask("13"))).await.unwrap().into_inner();
    for _ in 0..3 {
        assert_eq!(soon(stream.message()).await.unwrap().unwrap().status, 1);
    }
    assert_eq!(soon(stream.message()).await.unwrap_err().code(), tonic::Code::Internal);
    drop((client, stream));
    server.stop().await;
}

#[tokio::test]
async fn a_channel_to_nobody_has_another_one_as_its_backup() {
    let manners = Manners::default();
    let server = bare(&manners).await;
    let dead = Endpoint::from_shared(format!("http://{}", nobody().await)).unwrap().connect_lazy();
    let layer = FallbackLayer::to_service(channel(&server));
    let mut client = HealthClient::new(layer.layer(dead));
    assert_eq!(soon(client.check(ask("ok"))).await.unwrap().into_inner().status, 1);
    assert_eq!(layer.handle().snapshot().answered, 1);
    // A backup that fails as well is not heard: the first error comes back.
    let error = soon(client.check(ask("13"))).await.unwrap_err();
    assert_eq!((error.code(), layer.handle().snapshot().passed_on), (tonic::Code::Unavailable, 1));
    drop((client, layer));
    server.stop().await;
}

async fn get_text(client: &Hyper, server: &Server, path: &str) -> (StatusCode, bool, String) {
    let request = Request::get(server.uri(path)).body(nothing()).unwrap();
    let response = soon(client.request(request)).await.unwrap();
    let (parts, body) = response.into_parts();
    let text = soon(body.collect()).await.unwrap().to_bytes();
    (parts.status, parts.headers.contains_key("x-degraded"), String::from_utf8(text.to_vec()).unwrap())
}

#[tokio::test]
async fn a_router_answers_with_its_last_good_answer() {
    let (broken, hits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let handler = {
        let (broken, hits) = (Arc::clone(&broken), Arc::clone(&hits));
        move || async move {
            hits.fetch_add(1, SeqCst);
            if broken.load(SeqCst) {
                return Err(StatusCode::INTERNAL_SERVER_ERROR);
            }
            let chunks =
                ["a ", "stream ", "of chunks"].map(|c| Ok::<_, std::io::Error>(Bytes::from_static(c.as_bytes())));
            Ok(Body::from_stream(futures_util::stream::iter(chunks)))
        }
    };
    let last_good = LastGood::new(1 << 20, Duration::from_secs(60));
    let layer = FallbackLayer::last_good(last_good.clone()).header(true);
    let server =
        Server::axum(Router::new().route("/", get(handler.clone())).route("/other", get(handler)).layer(layer)).await;
    for version in BOTH {
        broken.store(false, SeqCst);
        let client = hyper(version);
        let good = (StatusCode::OK, false, "a stream of chunks".to_owned());
        assert_eq!(get_text(&client, &server, "/").await, good, "{version:?}");
        broken.store(true, SeqCst);
        assert_eq!(get_text(&client, &server, "/").await, (good.0, true, good.2), "{version:?}");
        assert_eq!(get_text(&client, &server, "/other").await.0, 500);
    }
    assert_eq!(hits.load(SeqCst), 6);
    server.stop().await;
}

/// axum and hyper write the length of a body into the answer to a HEAD, and one that was kept has none.
#[tokio::test]
async fn a_kept_answer_to_head_has_the_length_of_the_live_one() {
    let broken = Arc::new(AtomicBool::new(false));
    let answer = |body: fn() -> Body| {
        let broken = Arc::clone(&broken);
        get(move || async move { if broken.load(SeqCst) { Err(StatusCode::BAD_GATEWAY) } else { Ok(body()) } })
    };
    let app = Router::new()
        .route("/sized", answer(|| Body::from("hello")))
        .route("/empty", answer(Body::empty))
        .route("/streamed", answer(|| Body::from_stream(futures_util::stream::iter([chunk("hello")]))))
        .layer(FallbackLayer::last_good(LastGood::new(1 << 20, Duration::from_secs(60))).header(true));
    let server = Server::axum(app).await;
    for version in BOTH {
        let client = hyper(version);
        for (path, length) in [("/sized", Some("5")), ("/empty", Some("0")), ("/streamed", None)] {
            for is_broken in [false, true] {
                broken.store(is_broken, SeqCst);
                let request = Request::head(server.uri(path)).body(nothing()).unwrap();
                let answer = soon(client.request(request)).await.unwrap();
                let said = answer.headers().get("content-length").map(|length| length.to_str().unwrap());
                assert_eq!(answer.headers().contains_key("x-degraded"), is_broken);
                assert_eq!(said, length, "{version:?} {path} {is_broken}");
            }
        }
    }
    server.stop().await;
}
