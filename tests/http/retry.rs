//! Retries around real clients: a generated tonic client, streams of it in both directions, hyper's pooling client.

use std::{
    future::ready,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post, put},
    serve::ListenerExt,
};
use buttress::{
    Attempts, Backoff, BoxError, Budget, Deadline, Error, Outcome, Reason, Rejection, Retry, RetryBuilder, RetryLayer,
    Stopped, TimeoutLayer, testing::OutcomesLayer,
};
use bytes::{Buf, BufMut, Bytes};
use futures_util::{StreamExt, stream};
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper_util::{
    client::legacy::{
        Client as Pooling,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::{
    health::{ask, channel},
    rig::{Server, Version, hyper, nobody, soon},
};

fn retry() -> RetryBuilder {
    RetryLayer::builder().backoff(Backoff::Constant(Duration::from_millis(2))).budget(Budget::unlimited())
}

// === a generated tonic client ===

/// Fails a number of times, then answers; and notes what was said about attempts before.
#[derive(Clone)]
struct Shaky {
    fails: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Option<String>>>>,
    code: Code,
}

impl Shaky {
    fn new(fails: usize, code: Code) -> Self {
        Shaky { fails: Arc::new(AtomicUsize::new(fails)), seen: Arc::default(), code }
    }

    fn hit(&self, metadata: &tonic::metadata::MetadataMap) -> Result<(), Status> {
        let before = metadata.get("grpc-previous-rpc-attempts").map(|v| v.to_str().unwrap().to_owned());
        self.seen.lock().unwrap().push(before);
        let fails = self.fails.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        if fails { Err(Status::new(self.code, "shaky")) } else { Ok(()) }
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
impl Health for Shaky {
    async fn check(
        &self,
        r: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        self.hit(r.metadata())?;
        Ok(tonic::Response::new(HealthCheckResponse { status: 1 }))
    }

    type WatchStream = stream::Iter<std::vec::IntoIter<Result<HealthCheckResponse, Status>>>;

    /// An error in the trailers, behind a head that says nothing.
    async fn watch(&self, r: tonic::Request<HealthCheckRequest>) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let item = self.hit(r.metadata()).map(|()| HealthCheckResponse { status: 1 });
        Ok(tonic::Response::new(stream::iter(vec![item])))
    }
}

fn numbers(n: &[&str]) -> Vec<Option<String>> {
    n.iter().map(|n| (!n.is_empty()).then(|| (*n).to_owned())).collect()
}

#[tokio::test]
async fn unavailable_twice_is_one_ok() {
    let (backend, outcomes, layer) = (Shaky::new(2, Code::Unavailable), OutcomesLayer::new(), retry().build().unwrap());
    let server = backend.serve().await;
    let stack = ServiceBuilder::new().layer(layer.clone()).layer(outcomes.clone());
    let mut client = HealthClient::new(stack.service(channel(&server)));
    let answer = soon(client.check(ask("x"))).await.unwrap();
    assert_eq!(answer.get_ref().status, 1);
    assert_eq!(answer.extensions().get(), Some(&Attempts { made: 3, stopped: Stopped::Succeeded }));
    assert_eq!(*backend.seen.lock().unwrap(), numbers(&["", "1", "2"]));
    // Inside each attempt is seen by itself.
    assert_eq!(outcomes.handle().take(), [Outcome::Failure, Outcome::Failure, Outcome::Success]);
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn an_interceptor_goes_around_it() {
    let (backend, layer) = (Shaky::new(1, Code::Unavailable), retry().build().unwrap());
    let server = backend.serve().await;
    let mut client = HealthClient::with_interceptor(layer.layer(channel(&server)), |mut r: tonic::Request<()>| {
        r.metadata_mut().insert("x-who", "me".parse().unwrap());
        Ok(r)
    });
    soon(client.check(ask("x"))).await.unwrap();
    assert_eq!(backend.seen.lock().unwrap().len(), 2);
}

/// Errors that a server puts behind its head are there in time, mostly: that is what the first look is for. Where they
/// come later they are waited for only on request.
#[tokio::test]
async fn early_trailers() {
    let backend = Shaky::new(2, Code::Unavailable);
    let server = backend.serve().await;
    let layer = retry().peek(Duration::from_secs(20)).build().unwrap();
    let mut client = HealthClient::new(layer.layer(channel(&server)));
    let mut messages = soon(client.watch(ask("x"))).await.unwrap().into_inner();
    assert!(soon(messages.message()).await.unwrap().is_some());
    assert!(soon(messages.message()).await.unwrap().is_none());
    assert_eq!(*backend.seen.lock().unwrap(), numbers(&["", "1", "2"]));
}

#[tokio::test]
async fn what_is_not_retried() {
    for code in [Code::Internal, Code::InvalidArgument, Code::ResourceExhausted] {
        let backend = Shaky::new(9, code);
        let server = backend.serve().await;
        let mut client = HealthClient::new(retry().build().unwrap().layer(channel(&server)));
        assert_eq!(soon(client.check(ask("x"))).await.unwrap_err().code(), code);
        assert_eq!(backend.seen.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn nobody_listens() {
    let layer = retry().build().unwrap();
    let channel = Channel::builder(format!("http://{}", nobody().await).parse().unwrap()).connect_lazy();
    let status = soon(HealthClient::new(layer.layer(channel)).check(ask("x"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(layer.handle().snapshot().attempts, 3);

    // A POST that was never sent; nothing of its body was read, so its length does not matter.
    let long = UnsyncBoxBody::new(Full::new(Bytes::from(vec![7; 100_000])).map_err(|e| match e {}));
    for (body, attempts) in [(body(vec![]), 6), (body(vec![Bytes::from(vec![7; 100_000])]), 9), (long, 12)] {
        let request = Request::post(format!("http://{}/", nobody().await)).body(body).unwrap();
        soon(layer.layer(hyper(Version::H1)).oneshot(request)).await.unwrap_err();
        assert_eq!(layer.handle().snapshot().attempts, attempts);
    }
}

/// A connection that ends with such an error, once it is known.
struct Breaks(tokio::io::DuplexStream, Arc<Mutex<Option<io::ErrorKind>>>);

impl AsyncRead for Breaks {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let ends = *self.1.lock().unwrap();
        match ends {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None => Pin::new(&mut self.0).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Breaks {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Connection for Breaks {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// A connection that is in use may end with an error that one of connecting could have, too.
#[tokio::test]
async fn a_post_that_was_read_is_not_sent_again() {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    for kind in [ConnectionRefused, HostUnreachable, NetworkUnreachable] {
        let arrivals = Arc::new(AtomicUsize::new(0));
        let arrived = Arc::clone(&arrivals);
        let connect = service_fn(move |_: http::Uri| {
            let (ours, mut theirs) = tokio::io::duplex(1 << 16);
            let (ends, arrived) = (Arc::new(Mutex::new(None)), Arc::clone(&arrived));
            let connection = TokioIo::new(Breaks(ours, Arc::clone(&ends)));
            tokio::spawn(async move {
                let mut read = Vec::new();
                while !read.ends_with(b"order") {
                    theirs.read_buf(&mut read).await.unwrap();
                }
                arrived.fetch_add(1, SeqCst);
                *ends.lock().unwrap() = Some(kind);
                // Wakes the reader.
                theirs.write_all(b"x").await.unwrap();
            });
            ready(Ok::<_, io::Error>(connection))
        });
        let client = Pooling::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connect);
        let request = Request::post("http://shop/").body(Full::new(Bytes::from("order"))).unwrap();
        soon(retry().build().unwrap().layer(client).oneshot(request)).await.unwrap_err();
        assert_eq!(arrivals.load(SeqCst), 1, "{kind}");
    }
}

// === gRPC streams ===

/// Messages that are bytes.
#[derive(Clone, Copy)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

type Client = tonic::client::Grpc<Retry<Channel>>;

async fn client(layer: &RetryLayer, server: &Server) -> Client {
    let mut client = tonic::client::Grpc::new(layer.layer(channel(server)));
    client.ready().await.unwrap();
    client
}

#[derive(Clone, Default)]
struct Uploads {
    /// How many answers say UNAVAILABLE.
    fails: Arc<AtomicUsize>,
    /// Is the upload read before the failure is told?
    reads: bool,
    seen: Arc<Mutex<Vec<Bytes>>>,
}

fn unavailable() -> Response {
    let headers = [(header::CONTENT_TYPE, "application/grpc"), (HeaderName::from_static("grpc-status"), "14")];
    (headers, Body::empty()).into_response()
}

pub(crate) fn grpc(frames: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/grpc")], frames).into_response()
}

pub(crate) fn ok() -> Frame<Bytes> {
    Frame::trailers(HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]))
}

async fn upload(State(uploads): State<Uploads>, body: Body) -> Response {
    let fails = uploads.fails.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
    if fails && !uploads.reads {
        uploads.seen.lock().unwrap().push(Bytes::new());
        return unavailable();
    }
    let Ok(whole) = body.collect().await else { return unavailable() };
    uploads.seen.lock().unwrap().push(whole.to_bytes());
    if fails {
        return unavailable();
    }
    let answer = [0, 0, 0, 0, 2, b'o', b'k'];
    grpc(Body::new(StreamBody::new(stream::iter([
        Ok::<_, BoxError>(Frame::data(Bytes::copy_from_slice(&answer))),
        Ok(ok()),
    ]))))
}

/// Sends the same message back.
pub(crate) async fn echo(body: Body) -> Response {
    let data = body.into_data_stream().map(|data| data.map(Frame::data));
    grpc(Body::new(StreamBody::new(data.chain(stream::iter([Ok(ok())])))))
}

fn streams(uploads: &Uploads) -> Router {
    Router::new().route("/raw/upload", post(upload)).route("/raw/echo", post(echo)).with_state(uploads.clone())
}

async fn send(client: &mut Client, messages: Vec<Bytes>) -> Result<tonic::Response<Bytes>, Status> {
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/raw/upload");
    soon(client.client_streaming(tonic::Request::new(stream::iter(messages)), path, Raw)).await
}

pub(crate) fn framed(messages: &[Bytes]) -> Vec<u8> {
    let mut whole = Vec::new();
    for message in messages {
        whole.push(0);
        whole.put_u32(message.len() as u32);
        whole.extend_from_slice(message);
    }
    whole
}

#[tokio::test]
async fn a_client_stream_is_replayed_whole() {
    for reads in [true, false] {
        let uploads = Uploads { fails: Arc::new(AtomicUsize::new(2)), reads, ..Uploads::default() };
        let server = Server::axum(streams(&uploads)).await;
        let mut client = client(&retry().build().unwrap(), &server).await;
        let messages: Vec<_> = (0..40u8).map(|n| Bytes::from(vec![n; 500])).collect();
        let answer = send(&mut client, messages.clone()).await.unwrap();
        assert_eq!(answer.get_ref(), "ok");
        let seen = uploads.seen.lock().unwrap();
        assert_eq!(seen.len(), 3);
        let whole = framed(&messages);
        assert!(seen.iter().enumerate().all(|(n, s)| *s == whole || n < 2 && !reads));
    }
}

#[tokio::test]
async fn a_hundred_kibibytes_at_a_cap_of_64_are_sent_once() {
    let uploads = Uploads { fails: Arc::new(AtomicUsize::new(9)), reads: true, ..Uploads::default() };
    let server = Server::axum(streams(&uploads)).await;
    let layer = retry().build().unwrap();
    let mut client = client(&layer, &server).await;
    let messages: Vec<_> = (0..100u8).map(|n| Bytes::from(vec![n; 1024])).collect();
    assert_eq!(send(&mut client, messages.clone()).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(*uploads.seen.lock().unwrap(), [framed(&messages)]);
    // One that is below is sent as often as it may be.
    assert!(send(&mut client, messages[..50].to_vec()).await.is_err());
    assert_eq!(uploads.seen.lock().unwrap().len(), 1 + 3);
    assert_eq!(layer.handle().snapshot().attempts, 4);
}

/// Each message is sent only after the one before it has come back: whoever waits for more than is there waits for
/// ever.
#[tokio::test]
async fn a_stream_in_both_directions_never_hangs() {
    let server = Server::axum(streams(&Uploads::default())).await;
    for cap in [64 * 1024, 500, 0] {
        let mut client = client(&retry().replay_cap(cap).build().unwrap(), &server).await;
        let (to, messages) = mpsc::channel(1);
        to.send(Bytes::from("0")).await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/raw/echo");
        let request = tonic::Request::new(ReceiverStream::new(messages));
        let mut back: Streaming<Bytes> = soon(client.streaming(request, path, Raw)).await.unwrap().into_inner();
        for n in 0..50u32 {
            assert_eq!(soon(back.message()).await.unwrap().unwrap(), n.to_string());
            to.send(Bytes::from((n + 1).to_string())).await.unwrap();
        }
        drop(to);
        soon(back.message()).await.unwrap();
        assert!(soon(back.message()).await.unwrap().is_none());
    }
}

// === hyper ===

fn body(chunks: Vec<Bytes>) -> UnsyncBoxBody<Bytes, BoxError> {
    let frames = stream::iter(chunks).then(|chunk| async {
        tokio::task::yield_now().await;
        Ok(Frame::data(chunk))
    });
    UnsyncBoxBody::new(StreamBody::new(frames))
}

#[tokio::test]
async fn one_connection_for_all_attempts() {
    for (version, backoff, size) in [
        (Version::H1, 20, 10),
        (Version::H1, 20, 8_000),
        (Version::H1, 0, 10),
        (Version::H2, 20, 8_000),
        (Version::H2, 0, 8_000),
    ] {
        let (hits, connections, seen) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (hit, saw, connected) = (Arc::clone(&hits), Arc::clone(&seen), Arc::clone(&connections));
        let handler = move |body: Body| {
            let status = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK];
            let (status, saw) = (status[hit.fetch_add(1, SeqCst)], Arc::clone(&saw));
            async move {
                let whole = body.collect().await.unwrap().to_bytes();
                saw.lock().unwrap().push(whole);
                (status, vec![b'x'; size])
            }
        };
        let server = Server::start(|listener, stop| async move {
            let listener = listener.tap_io(move |_| _ = connected.fetch_add(1, SeqCst));
            axum::serve(listener, Router::new().route("/", put(handler))).with_graceful_shutdown(stop).await.unwrap();
        })
        .await;
        let layer = retry().backoff(Backoff::Constant(Duration::from_millis(backoff))).build().unwrap();
        let chunks: Vec<_> = (0..20u8).map(|n| Bytes::from(vec![n; 1_000])).collect();
        let request = Request::put(server.uri("/")).body(body(chunks.clone())).unwrap();
        let client = hyper(version);
        let response = soon(layer.layer(client.clone()).oneshot(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.extensions().get(), Some(&Attempts { made: 3, stopped: Stopped::Succeeded }));
        assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes().len(), size);
        assert_eq!(*seen.lock().unwrap(), [(); 3].map(|()| chunks.concat()));
        assert_eq!(connections.load(SeqCst), 1, "{version:?} {backoff} ms {size} bytes");
        drop(client);
        server.stop().await;
    }
}

/// A body that fails is nobody's second attempt, and its error is the caller's.
#[tokio::test]
async fn a_body_that_fails() {
    let server = Server::axum(Router::new().route("/", put(async |_: Bytes| StatusCode::OK))).await;
    let layer = retry().build().unwrap();
    let frames = stream::iter([Ok(Frame::data(Bytes::from("half"))), Err(BoxError::from("the disk is gone"))]);
    let request = Request::put(server.uri("/")).body(UnsyncBoxBody::new(StreamBody::new(frames))).unwrap();
    soon(layer.layer(hyper(Version::H1)).oneshot(request)).await.unwrap_err();
    assert_eq!(layer.handle().snapshot().attempts, 1);
}

/// On an axum router: a handler that calls something shaky, itself under a layer.
#[tokio::test]
async fn around_an_axum_router() {
    let hits = Arc::new(AtomicUsize::new(0));
    let hit = Arc::clone(&hits);
    let app = Router::new()
        .route(
            "/",
            get(async move || if hit.fetch_add(1, SeqCst) < 2 { Err(StatusCode::BAD_GATEWAY) } else { Ok("well") }),
        )
        .layer(retry().build().unwrap());
    for method in [Method::GET, Method::HEAD] {
        hits.store(0, SeqCst);
        let request = Request::builder().method(method).uri("/").body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        assert_eq!((response.status(), hits.load(SeqCst)), (StatusCode::OK, 3));
    }
}

/// Answers with a status that a handler has made of a timeout of its own. Its clones are never ready.
struct PassesOn(Rejection, bool);

impl Clone for PassesOn {
    fn clone(&self) -> Self {
        PassesOn(self.0.clone(), false)
    }
}

impl Service<Request<Full<Bytes>>> for PassesOn {
    type Response = Response<Full<Bytes>>;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        if self.1 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        ready(Ok(Status::from(self.0.clone()).into_http()))
    }
}

/// The last answer comes back where there is no time for another, and still says what it was.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_kept_says_what_it_was() {
    let timeout = TimeoutLayer::builder().after(Duration::from_millis(1)).build().unwrap().plain();
    let hangs = service_fn(|()| std::future::pending::<Result<(), io::Error>>());
    let Err(Error::Rejected(rejection)) = timeout.layer(hangs).oneshot(()).await else { panic!("no timeout") };
    for attempts in [1, 2] {
        let outcomes = OutcomesLayer::new();
        let layer = retry().attempts(attempts).build().unwrap();
        let service = outcomes.layer(layer.layer(PassesOn(rejection.clone(), true)));
        let request =
            Request::builder().header(header::CONTENT_TYPE, "application/grpc").body(Full::default()).unwrap();
        let answer = Deadline::after(Duration::from_secs(5)).scope(service.oneshot(request)).await.unwrap();
        assert_eq!(Rejection::in_response(&answer).map(Rejection::reason), Some(Reason::Timeout), "{attempts}");
        assert_eq!(outcomes.handle().take(), [Outcome::Failure], "{attempts}");
    }
}
