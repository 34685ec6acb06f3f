//! What becomes of connections: refused, upgraded, tunnelled, kept alive.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use buttress::{
    Answer, BoxError, CircuitBreakerLayer, DeadlineLayer, FallbackContext, FallbackLayer, Outcome, TimeoutLayer,
    testing::OutcomesLayer,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, transport::Channel};
use tonic_health::pb::health_client::HealthClient;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::{
    health::ask,
    rig::{BOTH, Server, Version, chunk, hyper, nobody, nothing, seen},
};

fn timeout() -> TimeoutLayer {
    TimeoutLayer::builder().after(Duration::from_secs(10)).build().unwrap()
}

#[tokio::test]
async fn a_refused_connection_stays_unavailable() {
    let channel = Channel::builder(format!("http://{}", nobody().await).parse().unwrap()).connect_lazy();
    let bare = HealthClient::new(channel.clone()).check(ask("ok")).await.unwrap_err();
    assert_eq!(bare.code(), Code::Unavailable);

    let (outcomes, timeout) = (OutcomesLayer::new(), timeout());
    let layers = ServiceBuilder::new().layer(outcomes.clone()).layer(timeout.clone()).layer(DeadlineLayer::client());
    let mut client = HealthClient::new(layers.service(channel));
    for _ in 0..2 {
        let status = client.check(ask("ok")).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, bare.message()));
        assert_eq!(outcomes.handle().take(), [Outcome::Failure]);
    }
    assert_eq!(timeout.handle().snapshot().timed_out, 0);
}

#[tokio::test]
async fn a_refused_connection_is_hypers_own_error() {
    let outcomes = OutcomesLayer::new();
    let client = ServiceBuilder::new().layer(outcomes.clone()).layer(timeout()).service(hyper(Version::H1));
    let request = Request::get(format!("http://{}/", nobody().await)).body(nothing()).unwrap();
    assert!(client.oneshot(request).await.unwrap_err().is_connect());
    assert_eq!(outcomes.handle().take(), [Outcome::Failure]);
}

/// Accepts an upgrade or a tunnel, and sends back what it gets through it.
async fn echo(mut request: axum::extract::Request) -> Response {
    let connects = request.method() == Method::CONNECT;
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async {
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
        // It ends with an error when the client leaves without a goodbye.
        let _ = tokio::io::copy(&mut from, &mut to).await;
    });
    if connects {
        return StatusCode::OK.into_response();
    }
    (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, "echo")]).into_response()
}

async fn assert_echoes(upgraded: Upgraded) {
    let mut io = TokioIo::new(upgraded);
    io.write_all(b"is there anybody?").await.unwrap();
    let mut back = [0; 17];
    io.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"is there anybody?");
}

/// The response was over at its head on both sides, and what goes through the connection later says no more.
async fn over_at_the_head<B>(answer: Response<B>, server: Server, sides: [&OutcomesLayer; 2]) {
    for side in sides {
        assert_eq!(seen(&side.handle(), 1).await, [Outcome::Success]);
    }
    assert_echoes(hyper::upgrade::on(answer).await.unwrap()).await;
    server.stop().await;
    for side in sides {
        assert_eq!(side.handle().take(), []);
    }
}

#[tokio::test]
async fn an_upgrade() {
    let (server_side, client_side) = (OutcomesLayer::new(), OutcomesLayer::new());
    let server = Server::axum(Router::new().route("/", get(echo)).layer(server_side.clone())).await;
    let request = Request::get(server.uri("/")).header("connection", "upgrade").header("upgrade", "echo");
    let client = client_side.layer(hyper(Version::H1));
    let answer = client.oneshot(request.body(nothing()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 101);
    over_at_the_head(answer, server, [&server_side, &client_side]).await;
}

#[tokio::test]
async fn a_tunnel_over_http1() {
    let (server_side, client_side) = (OutcomesLayer::new(), OutcomesLayer::new());
    // The target of a CONNECT is no path, so there is no route to name.
    let server = Server::axum(Router::new().fallback(echo).layer(server_side.clone())).await;
    let request = Request::connect(server.uri("")).body(nothing()).unwrap();
    let answer = client_side.layer(hyper(Version::H1)).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    over_at_the_head(answer, server, [&server_side, &client_side]).await;
}

#[tokio::test]
async fn a_tunnel_over_http2() {
    let (server_side, client_side) = (OutcomesLayer::new(), OutcomesLayer::new());
    let app = Router::new().route("/", axum::routing::any(echo)).route("/first", get(|| async {}));
    let server = Server::axum(app.layer(server_side.clone())).await;
    // hyper's pooling client makes no tunnels over HTTP/2.
    let io = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let client = client_side.layer(service_fn(move |request: Request<Full<Bytes>>| {
        let mut sender = sender.clone();
        async move { sender.send_request(request).await }
    }));

    // One call more before, for until the server's settings are here, a client does not know that it may do this.
    let first = Request::get(server.uri("/first")).body(nothing()).unwrap();
    assert_eq!(client.clone().oneshot(first).await.unwrap().status(), 200);
    for side in [&server_side, &client_side] {
        assert_eq!(seen(&side.handle(), 1).await, [Outcome::Success]);
    }

    let mut request = Request::connect(server.uri("/")).body(nothing()).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("echo"));
    let answer = client.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    over_at_the_head(answer, server, [&server_side, &client_side]).await;
}

/// axum takes the body from the answer to a HEAD. A bare hyper server gets it and, over HTTP/1.1, drops it unread.
#[tokio::test]
async fn a_head_request_whose_answer_has_a_body() {
    let outcomes = OutcomesLayer::new();
    let inner = service_fn(|_: Request<Incoming>| async {
        let body = stream::iter([chunk("hello")]).chain(stream::pending());
        Ok::<_, Infallible>(Response::builder().header("content-length", 11).body(Body::from_stream(body)).unwrap())
    });
    let service = TowerToHyperService::new(outcomes.layer(inner));
    let server = Server::start(|listener, _| async move {
        let (io, _) = listener.accept().await.unwrap();
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await.unwrap();
    })
    .await;
    let request = Request::head(server.uri("/")).body(nothing()).unwrap();
    let answer = hyper(Version::H1).oneshot(request).await.unwrap();
    assert_eq!(answer.headers()["content-length"], "11");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "");
    assert_eq!(seen(&outcomes.handle(), 1).await, [Outcome::Success]);
    server.stop().await;
    assert_eq!(outcomes.handle().take(), []);
}

/// What a service answers on a bare hyper server, which passes bodies on as they are: its status, its `Content-Length`,
/// its body.
async fn answer_of<S, B>(version: Version, method: Method, service: S) -> (StatusCode, Option<u64>, Bytes)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let service = TowerToHyperService::new(service);
    let server = Server::start(|listener, _| async move {
        let (io, _) = listener.accept().await.unwrap();
        let io = TokioIo::new(io);
        match version {
            Version::H1 => hyper::server::conn::http1::Builder::new().serve_connection(io, service).await.unwrap(),
            Version::H2 => {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server.serve_connection(io, service).await.unwrap();
            }
        }
    })
    .await;
    let request = Request::builder().method(method).uri(server.uri("/")).body(nothing()).unwrap();
    let (head, body) = hyper(version).oneshot(request).await.unwrap().into_parts();
    let length = head.headers.get("content-length").map(|length| length.to_str().unwrap().parse().unwrap());
    let body = body.collect().await.unwrap().to_bytes();
    server.stop().await;
    (head.status, length, body)
}

/// RFC 9110, 9.3.2. hyper's client takes a body behind the answer to a HEAD for a broken HTTP/2.
#[tokio::test]
async fn a_refusal_of_head_has_no_body() {
    let never = service_fn(|_: Request<Incoming>| std::future::pending::<Result<Response<Body>, Infallible>>());
    let breaker = CircuitBreakerLayer::builder().build().unwrap();
    breaker.handle().force_open().unwrap();
    let late = TimeoutLayer::builder().after(Duration::from_millis(10)).build().unwrap();
    let sorry = |_: &FallbackContext<'_>| {
        Answer::Http(http::Response::builder().status(503).body(Bytes::from_static(b"sorry")).unwrap())
    };
    for version in BOTH {
        for method in [Method::GET, Method::HEAD] {
            let answers = [
                answer_of(version, method.clone(), breaker.layer(never)).await,
                answer_of(version, method.clone(), late.layer(never)).await,
                answer_of(version, method.clone(), FallbackLayer::from_fn(sorry).layer(breaker.layer(never))).await,
            ];
            for ((status, length, body), (expected, least)) in answers.into_iter().zip([(503, 99), (504, 99), (503, 5)])
            {
                assert_eq!(status, expected, "{version:?} {method}");
                assert!(length >= Some(least), "{version:?} {method} {expected}: {length:?}");
                assert_eq!(body.len() as u64, if method == Method::GET { length.unwrap() } else { 0 });
            }
        }
    }
}

/// Counts the response bodies that are alive.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Alive(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test]
async fn a_hundred_idle_connections_hold_nothing() {
    for version in BOTH {
        let (server_side, client_side) = (OutcomesLayer::new(), OutcomesLayer::new());
        let alive = Arc::<AtomicUsize>::default();
        let answer = {
            let alive = Arc::clone(&alive);
            move || {
                let mine = Alive::new(&alive);
                let chunks = stream::iter([chunk("hello "), chunk("world")]).inspect(move |_| {
                    let _ = &mine;
                });
                async { Body::from_stream(chunks) }
            }
        };
        let server = Server::axum(Router::new().route("/", get(answer)).layer(server_side.clone())).await;

        // A client has a pool of its own, so each holds one connection.
        let clients: Vec<_> = (0..100).map(|_| client_side.layer(hyper(version))).collect();
        for client in &clients {
            let request = Request::get(server.uri("/")).body(nothing()).unwrap();
            let answer = client.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello world");
        }
        for side in [&server_side, &client_side] {
            assert_eq!(seen(&side.handle(), 100).await, [Outcome::Success; 100], "{version:?}");
        }
        // The end of a body is booked a moment before it is dropped.
        while alive.load(SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        drop(clients);
        server.stop().await;
        for side in [&server_side, &client_side] {
            assert_eq!(side.handle().take(), [], "{version:?}");
        }
    }
}
