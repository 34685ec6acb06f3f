//! Hedges around real clients: a generated tonic client, streams of it, a bulkhead inside, hyper's pooling client.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::StatusCode,
    routing::{get, post, put},
};
use buttress::{
    BoxError, Budget, BulkheadLayer, HedgeBuilder, HedgeLayer, Outcome, RetryLayer, TimeoutLayer,
    testing::OutcomesLayer,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::{Layer, ServiceBuilder, ServiceExt};

use crate::{
    health::{ask, channel},
    retry::{Raw, echo, framed, grpc, ok},
    rig::{BOTH, Server, hyper, seen, soon},
};

fn hedge() -> HedgeBuilder {
    HedgeLayer::builder().after(Duration::from_millis(20)).budget(Budget::unlimited())
}

/// Does with the n-th attempt what a script says, and notes what was said about attempts before.
#[derive(Clone)]
struct Scripted {
    script: &'static [Does],
    before: Arc<Mutex<Vec<Option<String>>>>,
    given_up: Arc<Notify>,
}

#[derive(Debug, Clone, Copy)]
enum Does {
    Hangs,
    Answers,
    Fails(Code),
    /// In the trailers, behind a head that says nothing.
    FailsLate(Code),
}

/// Tells when its call was dropped.
struct Bell(Arc<Notify>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Scripted {
    fn new(script: &'static [Does]) -> Self {
        Scripted { script, before: Arc::default(), given_up: Arc::default() }
    }

    fn attempts(&self) -> usize {
        self.before.lock().unwrap().len()
    }

    fn hit(&self, metadata: &tonic::metadata::MetadataMap) -> Does {
        let before = metadata.get("grpc-previous-rpc-attempts").map(|v| v.to_str().unwrap().to_owned());
        let mut all = self.before.lock().unwrap();
        all.push(before);
        self.script[all.len() - 1]
    }

    async fn hang<T>(&self) -> T {
        let _bell = Bell(Arc::clone(&self.given_up));
        std::future::pending().await
    }

    async fn serve(&self) -> Server {
        let health = HealthServer::new(self.clone());
        Server::start(|listener, stop| async {
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let server = tonic::transport::Server::builder().add_service(health);
            server.serve_with_incoming_shutdown(incoming, stop).await.unwrap();
        })
        .await
    }
}

#[tonic::async_trait]
impl Health for Scripted {
    async fn check(
        &self,
        r: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        match self.hit(r.metadata()) {
            Does::Hangs => self.hang().await,
            Does::Answers => Ok(tonic::Response::new(HealthCheckResponse { status: 1 })),
            Does::Fails(code) | Does::FailsLate(code) => Err(Status::new(code, "scripted")),
        }
    }

    type WatchStream = stream::Iter<std::vec::IntoIter<Result<HealthCheckResponse, Status>>>;

    async fn watch(&self, r: tonic::Request<HealthCheckRequest>) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let item = match self.hit(r.metadata()) {
            Does::Hangs => self.hang().await,
            Does::Answers => Ok(HealthCheckResponse { status: 1 }),
            Does::FailsLate(code) => Err(Status::new(code, "scripted")),
            Does::Fails(code) => return Err(Status::new(code, "scripted")),
        };
        Ok(tonic::Response::new(stream::iter(vec![item])))
    }
}

// === a generated tonic client ===

#[tokio::test]
async fn the_second_attempt_answers() {
    let (backend, outcomes) = (Scripted::new(&[Does::Hangs, Does::Answers]), OutcomesLayer::new());
    let server = backend.serve().await;
    let (layer, bulkhead) = (hedge().build().unwrap(), BulkheadLayer::builder().limit(2).build().unwrap());
    // With timeouts around it and inside, which do not run out.
    let timeout = TimeoutLayer::builder().after(Duration::from_secs(30)).build().unwrap();
    let stack = ServiceBuilder::new()
        .layer(timeout.clone())
        .layer(layer.clone())
        .layer(timeout)
        .layer(bulkhead.clone())
        .layer(outcomes.clone());
    let mut client = HealthClient::new(stack.service(channel(&server)));
    let answer = soon(client.check(ask("x"))).await.unwrap();
    assert_eq!(answer.get_ref().status, 1);
    // The loser is gone before the answer is there, and tonic has read the winner's trailers.
    assert_eq!(bulkhead.handle().snapshot().in_flight, 0);
    assert_eq!(seen(&outcomes.handle(), 2).await, [Outcome::Cancelled, Outcome::Success]);
    soon(backend.given_up.notified()).await;
    assert_eq!(*backend.before.lock().unwrap(), [None, Some("1".to_owned())]);
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.calls, snapshot.hedges, snapshot.won), (1, 1, 1));
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn codes() {
    use Does::{Answers, Fails, Hangs};
    for (script, answer) in [
        (&[Fails(Code::Unavailable), Answers] as &[_], Ok(1)),
        // It ends all: the first, which hangs, too.
        (&[Hangs, Fails(Code::Internal), Answers], Err(Code::Internal)),
        (&[Hangs, Fails(Code::NotFound), Answers], Err(Code::NotFound)),
        (&[Fails(Code::ResourceExhausted), Answers], Err(Code::ResourceExhausted)),
        (&[Fails(Code::Unavailable), Fails(Code::Unavailable)], Err(Code::Unavailable)),
    ] {
        let backend = Scripted::new(script);
        let server = backend.serve().await;
        let mut client = HealthClient::new(hedge().build().unwrap().layer(channel(&server)));
        let got = soon(client.check(ask("x"))).await.map(|r| r.get_ref().status).map_err(|s| s.code());
        assert_eq!(got, answer, "{script:?}");
    }
}

/// An error behind a head that says nothing is seen where it has come already, as it mostly has. Where it comes later
/// the head has won, and the error is the caller's.
#[tokio::test]
async fn early_trailers() {
    let backend = Scripted::new(&[Does::FailsLate(Code::Unavailable), Does::Answers]);
    let server = backend.serve().await;
    let layer = hedge().build().unwrap();
    let mut client = HealthClient::new(layer.layer(channel(&server)));
    let mut messages = soon(client.watch(ask("x"))).await.unwrap().into_inner();
    match soon(messages.message()).await {
        Ok(message) => assert_eq!((message.unwrap().status, backend.attempts()), (1, 2)),
        Err(status) => assert_eq!((status.code(), backend.attempts()), (Code::Unavailable, 1)),
    }
}

/// One attempt of a retry is one group of attempts of the hedge inside.
#[tokio::test]
async fn inside_a_retry() {
    let backend = Scripted::new(&[
        Does::Fails(Code::Unavailable),
        Does::Fails(Code::Unavailable),
        Does::Fails(Code::Unavailable),
        Does::Answers,
    ]);
    let server = backend.serve().await;
    let (hedge, retry) = (hedge().build().unwrap(), RetryLayer::builder().build().unwrap());
    let stack = ServiceBuilder::new().layer(retry.clone()).layer(hedge.clone()).service(channel(&server));
    soon(HealthClient::new(stack).check(ask("x"))).await.unwrap();
    assert_eq!(backend.attempts(), 4);
    assert_eq!((retry.handle().snapshot().attempts, hedge.handle().snapshot().hedges), (2, 2));
}

// === bodies ===

fn body(chunks: Vec<Bytes>) -> UnsyncBoxBody<Bytes, BoxError> {
    let frames = stream::iter(chunks).then(|chunk| async {
        tokio::task::yield_now().await;
        Ok(Frame::data(chunk))
    });
    UnsyncBoxBody::new(StreamBody::new(frames))
}

/// The first attempt reads the body and hangs, the second gets all of it.
#[tokio::test]
async fn a_streamed_body_is_sent_twice_whole() {
    for version in BOTH {
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let saw = Arc::clone(&bodies);
        let handler = move |body: Body| {
            let saw = Arc::clone(&saw);
            async move {
                let whole = body.collect().await.unwrap().to_bytes();
                let first = {
                    let mut saw = saw.lock().unwrap();
                    saw.push(whole);
                    saw.len() == 1
                };
                if first {
                    std::future::pending::<()>().await;
                }
                "well"
            }
        };
        let server = Server::axum(Router::new().route("/", put(handler))).await;
        let layer = hedge().build().unwrap();
        let chunks: Vec<_> = (0..20u8).map(|n| Bytes::from(vec![n; 1_000])).collect();
        let request = Request::put(server.uri("/")).body(body(chunks.clone())).unwrap();
        let response = soon(layer.layer(hyper(version)).oneshot(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "well");
        assert_eq!(*bodies.lock().unwrap(), [chunks.concat(), chunks.concat()]);
    }
}

/// The first attempt has all of a client's stream and hangs; the second gets all of it again.
#[tokio::test]
async fn a_client_stream_is_sent_twice_whole() {
    let uploads = Arc::new(Mutex::new(Vec::new()));
    let saw = Arc::clone(&uploads);
    let upload = move |body: Body| {
        let saw = Arc::clone(&saw);
        async move {
            let whole = body.collect().await.unwrap().to_bytes();
            let first = {
                let mut saw = saw.lock().unwrap();
                saw.push(whole);
                saw.len() == 1
            };
            if first {
                std::future::pending::<()>().await;
            }
            let answer = Frame::data(Bytes::from_static(&[0, 0, 0, 0, 2, b'o', b'k']));
            grpc(Body::new(StreamBody::new(stream::iter([Ok::<_, BoxError>(answer), Ok(ok())]))))
        }
    };
    let server = Server::axum(Router::new().route("/raw/upload", post(upload))).await;
    let mut client = tonic::client::Grpc::new(hedge().build().unwrap().layer(channel(&server)));
    let messages: Vec<_> = (0..40u8).map(|n| Bytes::from(vec![n; 500])).collect();
    client.ready().await.unwrap();
    let request = tonic::Request::new(stream::iter(messages.clone()));
    let path = http::uri::PathAndQuery::from_static("/raw/upload");
    let answer = soon(client.client_streaming(request, path, Raw)).await.unwrap();
    assert_eq!(answer.get_ref(), "ok");
    let whole = framed(&messages);
    assert_eq!(*uploads.lock().unwrap(), [whole.clone(), whole]);
}

/// Several attempts read one stream, whose messages come one by one, each after the echo of that before: the first to
/// answer keeps it.
#[tokio::test]
async fn a_stream_in_both_directions_never_hangs() {
    let server = Server::axum(Router::new().route("/raw/echo", post(echo))).await;
    for (cap, extra) in [(64 * 1024, 1), (64 * 1024, 3), (500, 2), (0, 1)] {
        let layer = hedge().after(Duration::ZERO).max(extra).replay_cap(cap).build().unwrap();
        let mut client = tonic::client::Grpc::new(layer.layer(channel(&server)));
        client.ready().await.unwrap();
        let (to, messages) = mpsc::channel(1);
        to.send(Bytes::from("0")).await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/raw/echo");
        let request = tonic::Request::new(ReceiverStream::new(messages));
        let mut back = soon(client.streaming(request, path, Raw)).await.unwrap().into_inner();
        for n in 0..50u32 {
            assert_eq!(soon(back.message()).await.unwrap().unwrap(), n.to_string());
            to.send(Bytes::from((n + 1).to_string())).await.unwrap();
        }
        drop(to);
        soon(back.message()).await.unwrap();
        assert!(soon(back.message()).await.unwrap().is_none());
        assert_eq!(layer.handle().snapshot().hedges, if cap == 0 { 0 } else { u64::from(extra) });
    }
}

/// Past the cap there is no second attempt: the first goes on alone.
#[tokio::test]
async fn a_body_past_the_cap_is_sent_once() {
    let hits = Arc::new(AtomicUsize::new(0));
    let hit = Arc::clone(&hits);
    let handler = move |body: Body| {
        hit.fetch_add(1, SeqCst);
        async move {
            let whole = body.collect().await.unwrap().to_bytes();
            tokio::time::sleep(Duration::from_millis(60)).await;
            whole.len().to_string()
        }
    };
    let server = Server::axum(Router::new().route("/", put(handler))).await;
    let layer = hedge().replay_cap(5_000).build().unwrap();
    let chunks: Vec<_> = (0..20u8).map(|n| Bytes::from(vec![n; 1_000])).collect();
    for version in BOTH {
        let request = Request::put(server.uri("/")).body(body(chunks.clone())).unwrap();
        let response = soon(layer.layer(hyper(version)).oneshot(request)).await.unwrap();
        assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "20000");
    }
    assert_eq!((hits.load(SeqCst), layer.handle().snapshot().hedges), (2, 0));
}

/// The body passes the cap only when both attempts read it: one of them gets the rest, the other one is given up, and
/// to what is inside it is a call that was cancelled.
#[tokio::test]
async fn a_body_that_passes_the_cap_later_goes_to_one_of_them() {
    for version in BOTH {
        let (both, reading) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let (told, reads) = (Arc::clone(&both), Arc::clone(&reading));
        let handler = move |body: Body| {
            let (told, reads) = (Arc::clone(&told), Arc::clone(&reads));
            async move {
                let mut frames = body.into_data_stream();
                let mut length = 0;
                while let Some(Ok(chunk)) = frames.next().await {
                    if length == 0 && reads.fetch_add(1, SeqCst) == 1 {
                        told.notify_one();
                    }
                    length += chunk.len();
                }
                if length == 20_000 { (StatusCode::OK, length.to_string()) } else { (StatusCode::OK, "cut".to_owned()) }
            }
        };
        let server = Server::axum(Router::new().route("/", put(handler))).await;
        let (layer, outcomes) = (hedge().replay_cap(5_000).build().unwrap(), OutcomesLayer::new());
        let first = stream::once(async { Ok::<_, BoxError>(Frame::data(Bytes::from(vec![0; 1_000]))) });
        // The rest comes once both attempts have had the beginning.
        let rest = stream::iter(0..19u8).then(move |n| {
            let both = Arc::clone(&both);
            async move {
                if n == 0 {
                    both.notified().await;
                }
                Ok(Frame::data(Bytes::from(vec![n; 1_000])))
            }
        });
        let request =
            Request::put(server.uri("/")).body(UnsyncBoxBody::new(StreamBody::new(first.chain(rest)))).unwrap();
        let stack = ServiceBuilder::new().layer(layer.clone()).layer(outcomes.clone()).service(hyper(version));
        let response = soon(stack.oneshot(request)).await.unwrap();
        assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "20000", "{version:?}");
        assert_eq!(layer.handle().snapshot().hedges, 1);
        let mut ends = seen(&outcomes.handle(), 2).await;
        ends.sort_by_key(|end| *end as u8);
        assert_eq!(ends, [Outcome::Success, Outcome::Cancelled], "{version:?}");
    }
}

/// On an axum router, around a handler.
#[tokio::test]
async fn around_an_axum_router() {
    let hits = Arc::new(AtomicUsize::new(0));
    let hit = Arc::clone(&hits);
    let app = Router::new()
        .route(
            "/",
            get(async move || {
                if hit.fetch_add(1, SeqCst) == 0 {
                    std::future::pending::<()>().await;
                }
                "well"
            }),
        )
        .layer(hedge().build().unwrap());
    let response = soon(app.oneshot(Request::get("/").body(Body::empty()).unwrap())).await.unwrap();
    assert_eq!((response.status(), hits.load(SeqCst)), (StatusCode::OK, 2));
}
