//! What HTTP responses come to, seen by hyper's client and by an axum server, each exactly once, over both versions.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use buttress::{
    Outcome::{self, *},
    testing::OutcomesLayer,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{Method, Request, header::CONTENT_LENGTH};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt};

use crate::rig::{BOTH, Server, Version, chunk, hyper, nothing, seen, soon};

/// What the client does with the response.
#[derive(Debug, Clone, Copy)]
enum Client {
    /// Reads it to its end; it has this status and these bytes.
    Reads(u16, &'static str),
    /// Reads exactly these bytes, and never asks whether there are more.
    ReadsNoFurther(&'static str),
    /// Leaves after the first bytes.
    LeavesInTheBody,
    /// Leaves before there is an answer.
    LeavesBeforeTheHead,
    /// Reads, and the body breaks off after these bytes.
    SeesItBreak(&'static str),
    /// Gets no answer at all.
    GetsNothing,
}
use Client::*;

/// Method, path, what the client does, what the call was for the server and for the client.
const TABLE: &[(Method, &str, Client, Outcome, Outcome)] = &[
    (Method::GET, "/empty", Reads(200, ""), Success, Success),
    (Method::GET, "/sized", Reads(200, "hello world"), Success, Success),
    (Method::GET, "/sized", ReadsNoFurther("hello world"), Success, Success),
    (Method::GET, "/announced", Reads(200, "hello world"), Success, Success),
    (Method::GET, "/announced", ReadsNoFurther("hello world"), Success, Success),
    (Method::GET, "/chunked", Reads(200, "hello world"), Success, Success),
    (Method::GET, "/trailers", Reads(200, "hello world"), Success, Success),
    (Method::GET, "/knows-its-end", Reads(200, "hello world"), Success, Success),
    (Method::GET, "/knows-it-is-empty", Reads(200, ""), Success, Success),
    (Method::POST, "/sized", Reads(200, "hello world"), Success, Success),
    (Method::HEAD, "/sized", Reads(200, ""), Success, Success),
    (Method::HEAD, "/chunked", Reads(200, ""), Success, Success),
    (Method::HEAD, "/endless", Reads(200, ""), Success, Success),
    (Method::HEAD, "/500", Reads(500, ""), Failure, Failure),
    (Method::GET, "/204", Reads(204, ""), Success, Success),
    (Method::GET, "/304", Reads(304, ""), Success, Success),
    (Method::GET, "/304-announced", Reads(304, ""), Success, Success),
    (Method::GET, "/404", Reads(404, "no"), Success, Success),
    (Method::GET, "/429", Reads(429, "later"), Throttled, Throttled),
    (Method::GET, "/500", Reads(500, "oh"), Failure, Failure),
    (Method::GET, "/503-endless", LeavesInTheBody, Failure, Failure),
    (Method::GET, "/endless", LeavesInTheBody, Cancelled, Cancelled),
    (Method::GET, "/endless-announced", LeavesInTheBody, Cancelled, Cancelled),
    (Method::GET, "/hangs", LeavesBeforeTheHead, Cancelled, Cancelled),
    (Method::GET, "/breaks", SeesItBreak("hello"), Failure, Failure),
    (Method::GET, "/breaks-announced", SeesItBreak("hello"), Failure, Failure),
    (Method::GET, "/panics-in-the-body", SeesItBreak("hello"), Failure, Failure),
    (Method::GET, "/panics", GetsNothing, Failure, Failure),
];

#[tokio::test]
async fn every_response_has_one_outcome_on_each_side() {
    for version in BOTH {
        for case in TABLE {
            soon(one_call(version, case)).await;
        }
    }
}

/// On a server and a connection of its own, so that closing both shows whether more is said than the one outcome.
async fn one_call(version: Version, case: &(Method, &str, Client, Outcome, Outcome)) {
    let (method, path, does, by_server, by_client) = case.clone();
    let (server_side, client_side) = (OutcomesLayer::new(), OutcomesLayer::new());
    let signals = Signals::default();
    let server = Server::axum(app(signals.clone()).layer(server_side.clone())).await;
    let client = client_side.layer(hyper(version));

    let request = Request::builder().method(method).uri(server.uri(path)).body(nothing()).unwrap();
    let answer = client.oneshot(request);
    match does {
        GetsNothing => drop(answer.await.unwrap_err()),
        LeavesBeforeTheHead => tokio::select! {
            answer = answer => panic!("{answer:?}"),
            () = signals.hanging.notified() => {}
        },
        _ => {
            let answer = answer.await.unwrap();
            assert_eq!(answer.version() == http::Version::HTTP_2, version == Version::H2);
            if let Reads(status, _) = does {
                assert_eq!(answer.status(), status);
            }
            read(does, &signals, answer.into_body()).await;
        }
    }

    let what = (version, case);
    assert_eq!(seen(&client_side.handle(), 1).await, [by_client], "{what:?}, client");
    assert_eq!(seen(&server_side.handle(), 1).await, [by_server], "{what:?}, server");
    server.stop().await;
    assert_eq!(client_side.handle().take(), [], "{what:?}, client, when all was closed");
    assert_eq!(server_side.handle().take(), [], "{what:?}, server, when all was closed");
}

async fn read<B>(does: Client, signals: &Signals, body: B)
where
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let mut body = pin!(body);
    let mut text = Vec::new();
    let broke = loop {
        match body.frame().await {
            None => break false,
            Some(Err(_)) => break true,
            Some(Ok(frame)) => text.extend(frame.into_data().unwrap_or_default()),
        }
        match does {
            LeavesInTheBody => return,
            ReadsNoFurther(all) if text.len() == all.len() => return assert_eq!(text, all.as_bytes()),
            _ => signals.arrived.notify_one(),
        }
    };
    match does {
        Reads(_, all) => assert_eq!((broke, &*text), (false, all.as_bytes())),
        SeesItBreak(part) => assert_eq!((broke, &*text), (true, part.as_bytes())),
        _ => panic!("the end came too early: {does:?}"),
    }
}

/// What the two sides tell each other past the wire.
#[derive(Clone, Default)]
struct Signals {
    /// The handler has begun to hang.
    hanging: Arc<Notify>,
    /// The first bytes have reached the client.
    arrived: Arc<Notify>,
}

/// Answers in all manners.
fn app(signals: Signals) -> Router {
    Router::new()
        .route("/empty", get(async || {}))
        .route("/sized", any(|| async { "hello world" }))
        .route("/announced", get(async || announced(chunks())))
        .route("/chunked", get(async || Body::from_stream(chunks())))
        .route("/trailers", get(async || Body::new(StreamBody::new(chunks_and_trailers()))))
        .route("/knows-its-end", get(async || Body::new(KnowsItsEnd(Some("hello world")))))
        .route("/knows-it-is-empty", get(async || Body::new(KnowsItsEnd(None))))
        .route("/204", get(async || StatusCode::NO_CONTENT))
        .route("/304", get(async || StatusCode::NOT_MODIFIED))
        .route("/304-announced", get(async || (StatusCode::NOT_MODIFIED, [(CONTENT_LENGTH, "11")])))
        .route("/404", get(async || (StatusCode::NOT_FOUND, "no")))
        .route("/429", get(async || (StatusCode::TOO_MANY_REQUESTS, "later")))
        .route("/500", get(async || (StatusCode::INTERNAL_SERVER_ERROR, "oh")))
        .route("/503-endless", get(async || (StatusCode::SERVICE_UNAVAILABLE, Body::from_stream(endless()))))
        .route("/endless", get(async || Body::from_stream(endless())))
        .route("/endless-announced", get(async || announced(endless())))
        .route("/hangs", get(hangs))
        .route("/breaks", get(|s| async { Body::from_stream(breaks(s)) }))
        .route("/breaks-announced", get(|s| async { announced(breaks(s)) }))
        .route(
            "/panics-in-the-body",
            get(|State(s)| async { Body::from_stream(one_then(s, || panic!("in the body"))) }),
        )
        .route("/panics", get(panics))
        .with_state(signals)
}

async fn hangs(State(signals): State<Signals>) {
    signals.hanging.notify_one();
    std::future::pending().await
}

/// A stream of which only the header says that it has 11 bytes.
fn announced<E: std::error::Error + Send + Sync + 'static>(
    chunks: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Response {
    ([(CONTENT_LENGTH, "11")], Body::from_stream(chunks)).into_response()
}

fn chunks() -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::iter([chunk("hello"), chunk(" "), chunk("world")])
}

fn chunks_and_trailers() -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("x"))]);
    chunks().map(|c| c.map(Frame::data)).chain(stream::iter([Ok(Frame::trailers(trailers))]))
}

/// A body of unknown length that says when nothing is left. hyper does not poll it to its end.
struct KnowsItsEnd(Option<&'static str>);

impl http_body::Body for KnowsItsEnd {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|text| chunk(text).map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

fn endless() -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::iter([chunk("hello")]).chain(stream::pending())
}

/// The first chunk has reached the client before the stream goes on: of a body that breaks at once hyper may send none.
fn breaks(State(signals): State<Signals>) -> impl Stream<Item = Result<Bytes, io::Error>> {
    one_then(signals, || Err(io::Error::other("it broke")))
}

fn one_then(
    signals: Signals,
    end: impl FnOnce() -> Result<Bytes, io::Error> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, io::Error>> {
    let end = async move {
        signals.arrived.notified().await;
        end()
    };
    stream::iter([Ok(Bytes::from_static(b"hello"))]).chain(stream::once(end))
}

async fn panics() {
    panic!("in the handler");
}
