//! Uploads that are streamed on, and whose callers give up in the middle: no failure of the backend.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    routing::any,
};
use buttress::{BoxError, CircuitBreakerLayer, OpenTime, RetryLayer, State};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt};

use crate::rig::{Server, Version, hyper, soon};

fn touchy() -> CircuitBreakerLayer {
    let open = OpenTime::Fixed(std::time::Duration::from_secs(60));
    CircuitBreakerLayer::builder().consecutive_failures(1).open(open).build().unwrap()
}

/// A part of a body, and, once that has come, its source is gone.
fn upload(came: Arc<Notify>) -> UnsyncBoxBody<Bytes, BoxError> {
    let part = stream::once(async { Ok(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 9, 1]))) });
    let gone = stream::once(async move {
        came.notified().await;
        Err(BoxError::from("the caller has gone"))
    });
    StreamBody::new(part.chain(gone)).boxed_unsync()
}

/// Reads all of a body before it answers; or answers at once, with what comes of it.
async fn backend(came: Arc<Notify>) -> Server {
    let (reads, echoes) = (Arc::clone(&came), came);
    let app = Router::new()
        .route(
            "/reads",
            any(move |body: Body| async move {
                reads.notify_one();
                to_bytes(body, usize::MAX).await.map_or("cut", |_| "whole")
            }),
        )
        .route(
            "/echoes",
            any(move |body: Body| async move {
                let came = body.into_data_stream().inspect(move |part| part.iter().for_each(|_| echoes.notify_one()));
                Body::from_stream(came)
            }),
        );
    Server::axum(app).await
}

#[tokio::test]
async fn a_caller_that_gives_up_its_upload_opens_no_breaker() {
    let came = Arc::new(Notify::new());
    let server = backend(Arc::clone(&came)).await;
    for (version, path) in [(Version::H1, "/reads"), (Version::H2, "/reads"), (Version::H2, "/echoes")] {
        for retries in [false, true] {
            let (breaker, client) = (touchy(), hyper(version));
            let request = Request::put(server.uri(path)).body(upload(Arc::clone(&came))).unwrap();
            let ended = if retries {
                let retry = RetryLayer::builder().build().unwrap();
                let response = soon(breaker.layer(retry.layer(client)).oneshot(request)).await;
                assert_eq!(retry.handle().snapshot().attempts, 1);
                match response {
                    Ok(response) => soon(response.into_body().collect()).await.is_err(),
                    Err(_) => true,
                }
            } else {
                match soon(breaker.layer(client).oneshot(request)).await {
                    Ok(response) => soon(response.into_body().collect()).await.is_err(),
                    Err(_) => true,
                }
            };
            let seen = breaker.handle().snapshot();
            let what = format!("{version:?} {path} {retries}");
            assert_eq!((ended, seen.state, seen.calls, seen.cancelled), (true, State::Closed, 0, 1), "{what}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn nor_does_one_of_a_channel() {
    let came = Arc::new(Notify::new());
    let server = backend(Arc::clone(&came)).await;
    let breaker = touchy();
    let channel = crate::health::channel(&server);
    let request = Request::post(server.uri("/reads")).header("content-type", "application/grpc");
    let request = request.body(tonic::body::Body::new(upload(came))).unwrap();
    assert!(soon(breaker.layer(channel).oneshot(request)).await.is_err());
    let seen = breaker.handle().snapshot();
    assert_eq!((seen.state, seen.calls, seen.cancelled), (State::Closed, 0, 1));
    server.stop().await;
}
