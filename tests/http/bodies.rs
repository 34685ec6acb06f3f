//! Bodies under a timeout: those that hang, large ones, and slow readers.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use buttress::{DeadlineLayer, Outcome, Reason, Rejection, TimeoutLayer, Until, testing::OutcomesLayer};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};
use http::{Request, header::CONTENT_LENGTH};
use http_body_util::BodyExt;
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tower::{Layer, ServiceBuilder, ServiceExt};

use crate::{
    health::{Manners, ask, bare, channel, drain, layered},
    rig::{BOTH, Server, Version, chunk, hyper, nothing, seen, soon},
};

/// The first runs out in the body because the whole takes too long, the second because nothing comes. Long enough for
/// the head and the first messages to arrive in, on a busy machine too.
fn timeouts() -> [TimeoutLayer; 2] {
    let long = Duration::from_millis(300);
    [TimeoutLayer::builder().after(long).until(Until::End), TimeoutLayer::builder().idle(long)]
        .map(|b| b.build().unwrap())
}

#[tokio::test]
async fn a_grpc_stream_that_hangs_is_ended_by_the_client() {
    for timeout in timeouts() {
        let (outside, inside, by_server) = (OutcomesLayer::new(), OutcomesLayer::new(), OutcomesLayer::new());
        let server = layered!(tonic, Manners::default(), by_server.clone());
        let layers = ServiceBuilder::new().layer(outside.clone()).layer(timeout.clone()).layer(inside.clone());
        let mut client = HealthClient::new(layers.service(channel(&server)));

        let messages = client.watch(ask("hangs")).await.unwrap().into_inner();
        assert_eq!(drain(messages).await, (3, Err(Code::DeadlineExceeded)), "{timeout:?}");
        assert_eq!(outside.handle().take(), [Outcome::Failure]);
        assert_eq!(inside.handle().take(), [Outcome::Failure], "it is the backend that hung");
        assert_eq!(seen(&by_server.handle(), 1).await, [Outcome::Cancelled], "there the caller hung up");
        assert_eq!(timeout.handle().snapshot().timed_out, 1);
    }
}

#[tokio::test]
async fn a_grpc_stream_that_hangs_is_ended_by_the_server() {
    for timeout in timeouts() {
        let (outside, manners) = (OutcomesLayer::new(), Manners::default());
        let layers = ServiceBuilder::new().layer(outside.clone()).layer(timeout.clone()).into_inner();
        let servers = [layered!(tonic, manners, layers.clone()), layered!(axum, manners, layers)];
        for server in servers {
            let messages = HealthClient::new(channel(&server)).watch(ask("hangs")).await.unwrap().into_inner();
            assert_eq!(drain(messages).await, (3, Err(Code::DeadlineExceeded)), "{timeout:?}");
            assert_eq!(seen(&outside.handle(), 1).await, [Outcome::Failure]);
        }
        assert_eq!(timeout.handle().snapshot().timed_out, 2);
    }
}

#[tokio::test]
async fn a_grpc_stream_ends_with_its_deadline() {
    let long = Duration::from_millis(300);
    let (outside, manners) = (OutcomesLayer::new(), Manners::default());
    let layers = ServiceBuilder::new().layer(outside.clone()).layer(DeadlineLayer::server(long)).into_inner();
    // Two layers in one, and one by one with axum's own body between them.
    let routes = tonic::service::Routes::new(manners.server()).into_axum_router();
    let apart = Router::new().merge(routes).layer(DeadlineLayer::server(long)).layer(outside.clone());
    let together = layers.clone();
    let servers = [layered!(tonic, manners, layers), layered!(axum, manners, together), Server::axum(apart).await];
    for server in servers {
        let messages = HealthClient::new(channel(&server)).watch(ask("hangs")).await.unwrap().into_inner();
        assert_eq!(drain(messages).await, (3, Err(Code::DeadlineExceeded)));
        assert_eq!(seen(&outside.handle(), 1).await, [Outcome::Cancelled], "the backend is not to blame");
    }

    let server = bare(&manners).await;
    let mut client = HealthClient::new(outside.layer(DeadlineLayer::client().layer(channel(&server))));
    let mut request = tonic::Request::new(ask("hangs"));
    request.set_timeout(long);
    let messages = client.watch(request).await.unwrap().into_inner();
    assert_eq!(drain(messages).await, (3, Err(Code::DeadlineExceeded)));
    assert_eq!(outside.handle().take(), [Outcome::Cancelled]);
}

/// `/endless` is chunked, `/announced` says that it has more than comes, of `/silent` nothing comes.
fn endless() -> Router {
    let hello = || Body::from_stream(stream::iter([chunk("hello")]).chain(stream::pending()));
    Router::new()
        .route("/endless", get(async move || hello()))
        .route("/announced", get(async move || ([(CONTENT_LENGTH, "11")], hello())))
        .route("/silent", get(async || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>())))
}

const ENDLESS: [(Version, &str); 6] = [
    (Version::H1, "/endless"),
    (Version::H1, "/announced"),
    (Version::H1, "/silent"),
    (Version::H2, "/endless"),
    (Version::H2, "/announced"),
    (Version::H2, "/silent"),
];

#[tokio::test]
async fn an_http_body_that_hangs_is_ended_by_the_client() {
    let server = Server::axum(endless().route("/", get(async || {}))).await;
    for at in ENDLESS {
        // Both at once: each of them waits for its timeout.
        future::join_all(timeouts().map(|timeout| assert_ended_here(&server, at, timeout))).await;
    }
}

async fn assert_ended_here(server: &Server, (version, path): (Version, &str), timeout: TimeoutLayer) {
    let get = |path| Request::get(server.uri(path)).body(nothing()).unwrap();
    let client = hyper(version);
    // The connection is there, so that the time is that of the body alone.
    client.request(get("/")).await.unwrap();
    let (outside, inside) = (OutcomesLayer::new(), OutcomesLayer::new());
    let layers = ServiceBuilder::new().layer(outside.clone()).layer(timeout.clone()).layer(inside.clone());
    let mut body = pin!(layers.service(client).oneshot(get(path)).await.unwrap().into_body());
    if path != "/silent" {
        assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "hello");
    }

    let error = soon(body.frame()).await.unwrap().unwrap_err();
    let rejection = Rejection::of(&*error).unwrap_or_else(|| panic!("{version:?} {path}: {error:?}"));
    assert_eq!((rejection.reason(), rejection.policy()), (Reason::Timeout, "timeout"));
    assert!(soon(body.frame()).await.is_none(), "the error is the end");
    assert_eq!(outside.handle().take(), [Outcome::Failure]);
    assert_eq!(inside.handle().take(), [Outcome::Failure]);
    assert_eq!(timeout.handle().snapshot().timed_out, 1);
}

/// No clean end: a client must not take the half for the whole.
async fn assert_breaks_off(server: &Server, (version, path): (Version, &str)) {
    let request = Request::get(server.uri(path)).body(nothing()).unwrap();
    let mut body = hyper(version).request(request).await.unwrap().into_body();
    if path != "/silent" {
        assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "hello");
    }
    let end = soon(body.frame()).await.map(|f| f.map(drop));
    assert!(matches!(end, Some(Err(_))), "{version:?} {path}: {end:?}");
}

#[tokio::test]
async fn an_http_body_that_hangs_is_broken_off_by_the_server() {
    for timeout in timeouts() {
        let outside = OutcomesLayer::new();
        let app = endless().layer(ServiceBuilder::new().layer(outside.clone()).layer(timeout.clone()));
        let server = Server::axum(app).await;
        future::join_all(ENDLESS.map(|at| assert_breaks_off(&server, at))).await;
        assert_eq!(seen(&outside.handle(), 6).await, [Outcome::Failure; 6]);
        assert_eq!(timeout.handle().snapshot().timed_out, 6);
    }
}

#[tokio::test]
async fn an_http_body_that_hangs_is_broken_off_at_its_deadline() {
    // One by one, with axum's own body between them.
    let (outside, inside) = (OutcomesLayer::new(), OutcomesLayer::new());
    let deadline = DeadlineLayer::server(Duration::from_millis(300));
    let app = endless().layer(inside.clone()).layer(deadline.clone()).layer(outside.clone());
    let server = Server::axum(app).await;
    future::join_all(ENDLESS.map(|at| assert_breaks_off(&server, at))).await;
    for side in [outside, inside] {
        assert_eq!(seen(&side.handle(), 6).await, [Outcome::Cancelled; 6], "the backend is not to blame");
    }
    assert_eq!(deadline.handle().snapshot().deadline_exceeded, 6);
}

/// 20 MB that repeat nowhere near.
fn large() -> Bytes {
    let words = (0..20_000_000_u64 / 8).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    words.flatten().collect()
}

/// In pieces of no round size. `pulled` is how many bytes were asked for so far.
fn pieces(all: Bytes, pulled: Arc<AtomicUsize>) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    const PIECE: usize = 40_009;
    stream::iter((0..all.len().div_ceil(PIECE)).map(move |n| {
        let piece = all.slice(n * PIECE..all.len().min((n + 1) * PIECE));
        pulled.fetch_add(piece.len(), SeqCst);
        Ok(piece)
    }))
}

/// Twenty megabytes through layers on both sides, by a reader that stops `pauses` times for longer than `idle`.
async fn read_large(version: Version, idle: Duration, pauses: usize) {
    let all = large();
    let pulled = Arc::<AtomicUsize>::default();
    let bound = || TimeoutLayer::builder().after(Duration::from_secs(60)).until(Until::End).idle(idle).build().unwrap();
    let (server_side, client_side, outcomes) = (bound(), bound(), OutcomesLayer::new());
    let body = {
        let (all, pulled) = (all.clone(), Arc::clone(&pulled));
        async move || Body::from_stream(pieces(all, pulled))
    };
    let layers = (outcomes.clone(), DeadlineLayer::server(Duration::from_secs(60)), server_side.clone());
    let server = Server::axum(Router::new().route("/", get(body)).layer(layers)).await;

    let client = client_side.layer(hyper(version));
    let request = Request::get(server.uri("/")).body(nothing()).unwrap();
    let mut body = pin!(client.oneshot(request).await.unwrap().into_body());
    let mut read = 0;
    for pause in 0.. {
        let Some(frame) = soon(body.frame()).await else { break };
        let data = frame.unwrap().into_data().unwrap();
        assert!(data == all[read..read + data.len()], "{version:?}: other bytes, {read} or a little further in");
        read += data.len();
        if pause < pauses {
            // The reader is slow: this is what must not count as silence of the backend.
            tokio::time::sleep(idle * 3 / 2).await;
            assert!(pulled.load(SeqCst) < all.len(), "all of it fits into buffers, so nobody waits for the reader");
        }
    }
    assert_eq!(read, all.len(), "{version:?}");
    assert_eq!(seen(&outcomes.handle(), 1).await, [Outcome::Success]);
    assert_eq!(server_side.handle().snapshot().timed_out, 0);
    assert_eq!(client_side.handle().snapshot().timed_out, 0);
}

#[tokio::test]
async fn twenty_megabytes_arrive_as_they_were_sent() {
    for version in BOTH {
        read_large(version, Duration::from_secs(30), 0).await;
    }
}

#[tokio::test]
async fn a_slow_reader_is_not_an_idle_backend() {
    // Long enough for the next frame to come in on a busy machine.
    let idle = Duration::from_millis(250);
    let [h1, h2] = BOTH.map(|version| read_large(version, idle, 2));
    tokio::join!(h1, h2);
}

#[tokio::test]
async fn a_steady_backend_is_not_idle_however_long_it_takes() {
    let bound = || TimeoutLayer::builder().idle(Duration::from_millis(300)).build().unwrap();
    // Together longer than `idle`, each of them much shorter.
    let ticks = || {
        stream::iter(0..6).then(async |_| {
            tokio::time::sleep(Duration::from_millis(70)).await;
            chunk("tick ")
        })
    };
    let app = Router::new().route("/", get(async move || Body::from_stream(ticks())));
    let server = Server::axum(app.layer(bound())).await;
    future::join_all(BOTH.map(async |version| {
        let request = Request::get(server.uri("/")).body(nothing()).unwrap();
        let answer = bound().layer(hyper(version)).oneshot(request).await.unwrap();
        let read = soon(answer.into_body().collect()).await.unwrap();
        assert_eq!(read.to_bytes(), "tick ".repeat(6), "{version:?}");
    }))
    .await;
}
