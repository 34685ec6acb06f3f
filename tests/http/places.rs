//! One layer value, in every place where axum, tonic, hyper and plain tower take one.

use std::{io, time::Duration};

use axum::{Router, handler::Handler, routing::get};
use buttress::{
    AdaptiveRateLayer, DeadlineLayer, Error, Outcome, Quota, RateLimitLayer, Reason, Rejection, TimeoutLayer,
    testing::OutcomesLayer,
};
use http::Request;
use http_body_util::BodyExt;
use tonic::service::interceptor::InterceptedService;
use tonic_health::pb::health_client::HealthClient;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::{
    health::{Manners, ask, bare, channel, drain, layered},
    rig::{BOTH, Hyper, Server, Version, hyper, nothing, seen},
};

async fn hello() -> &'static str {
    "hello"
}

/// The layer wherever axum takes one, on a path of its own, and everywhere at once.
macro_rules! router {
    ($layer:expr) => {{
        let l = $layer;
        let one = |path: &str| Router::new().route(path, get(hello));
        let everywhere = Router::new()
            .route("/everywhere", get(hello.layer(l.clone())).layer(l.clone()))
            .route_layer(l.clone())
            .layer((l.clone(), l.clone()))
            .layer(ServiceBuilder::new().layer(l.clone()).layer(l.clone()));
        Router::new()
            .merge(one("/router").layer(l.clone()))
            .merge(one("/route").route_layer(l.clone()))
            .route("/method", get(hello).layer(l.clone()))
            .route("/handler", get(hello.layer(l.clone())))
            .route_service("/service", l.layer(get(hello)))
            .nest("/nested", one("/router").layer(l.clone()))
            .merge(one("/tuple").layer((l.clone(), l.clone(), l.clone())))
            .merge(one("/builder").layer(ServiceBuilder::new().layer(l.clone()).layer(l.clone())))
            .merge(everywhere)
    }};
}

/// The paths of `router!`, and how many times the layer is around each.
const PATHS: [(&str, usize); 9] = [
    ("/router", 1),
    ("/route", 1),
    ("/method", 1),
    ("/handler", 1),
    ("/service", 1),
    ("/nested/router", 1),
    ("/tuple", 3),
    ("/builder", 2),
    ("/everywhere", 7),
];

#[tokio::test]
async fn every_place_in_axum() {
    let outcomes = OutcomesLayer::new();
    let timeout = TimeoutLayer::builder().after(Duration::from_secs(30)).build().unwrap();
    for (app, counted) in [
        (router!(outcomes.clone()), true),
        (router!(timeout), false),
        (router!(DeadlineLayer::server(Duration::from_secs(30))), false),
        (router!(DeadlineLayer::client()), false),
        (router!(RateLimitLayer::builder().quota(Quota::per_second(1_000_000)).build().unwrap()), false),
        (router!(AdaptiveRateLayer::builder().build().unwrap()), false),
    ] {
        let server = Server::axum(app).await;
        for (version, (path, times)) in BOTH.into_iter().flat_map(|v| PATHS.map(|p| (v, p))) {
            let request = Request::get(server.uri(path)).body(nothing()).unwrap();
            let answer = hyper(version).request(request).await.unwrap();
            assert_eq!(answer.status(), 200, "{version:?} {path}");
            assert_eq!(answer.headers()["content-length"], "5", "the size of a body is seen through layers");
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello", "{version:?} {path}");
            let times = if counted { times } else { 0 };
            assert_eq!(seen(&outcomes.handle(), times).await, vec![Outcome::Success; times], "{path}");
        }
    }
}

/// The layer on a tonic server, around a channel, under an interceptor, in a stack and around a hyper client.
macro_rules! over_grpc {
    ($layer:expr) => {{
        let (l, manners) = ($layer, Manners::default());
        for server in [layered!(tonic, manners, l.clone()), layered!(axum, manners, l.clone()), bare(&manners).await] {
            let channel = || l.layer(channel(&server));
            let mark = |mut request: tonic::Request<()>| {
                request.metadata_mut().insert("x-marked", "1".parse().unwrap());
                Ok(request)
            };
            let stack = ServiceBuilder::new().layer(l.clone()).layer(l.clone()).service(channel());
            let over_hyper: Hyper<tonic::body::Body> = hyper(Version::H2);
            assert_calls(HealthClient::new(channel())).await;
            assert_calls(HealthClient::with_interceptor(channel(), mark)).await;
            assert_calls(HealthClient::new(l.layer(InterceptedService::new(channel(), mark)))).await;
            assert_calls(HealthClient::new(stack).max_decoding_message_size(100)).await;
            assert_calls(HealthClient::with_origin(l.layer(over_hyper), server.uri(""))).await;
        }
    }};
}

async fn assert_calls<T>(mut client: HealthClient<T>)
where
    T: tonic::client::GrpcService<tonic::body::Body, Error: Into<BoxError>>,
    T::ResponseBody: http_body::Body<Data = bytes::Bytes, Error: Into<BoxError> + Send> + Send + 'static,
{
    assert_eq!(client.check(ask("ok")).await.unwrap().into_inner().status, 1);
    assert_eq!(client.check(ask("5")).await.unwrap_err().code(), tonic::Code::NotFound);
    let messages = client.watch(ask("ok")).await.unwrap().into_inner();
    assert_eq!(drain(messages).await, (3, Ok(())));
}

#[tokio::test]
async fn every_place_in_tonic() {
    over_grpc!(OutcomesLayer::new());
    over_grpc!(TimeoutLayer::builder().after(Duration::from_secs(30)).build().unwrap());
    over_grpc!(DeadlineLayer::server(Duration::from_secs(30)));
    over_grpc!(DeadlineLayer::client());
    over_grpc!(RateLimitLayer::builder().quota(Quota::per_second(1_000_000)).build().unwrap());
    over_grpc!(AdaptiveRateLayer::builder().build().unwrap());
}

/// With `Status` as its error a channel can take the `.flat()` form too.
#[cfg(feature = "tonic")]
#[tokio::test]
async fn a_channel_whose_error_is_a_status() {
    let server = bare(&Manners::default()).await;
    let channel = channel(&server).map_err(|e| tonic::Status::from_error(Box::new(e)));
    let timeout = TimeoutLayer::builder().after(Duration::from_millis(50)).build().unwrap();
    let mut client = HealthClient::new(timeout.flat().layer(channel));
    let status = client.check(ask("hangs")).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert_eq!(Rejection::of(&status).map(Rejection::reason), Some(Reason::Timeout));
}

/// An interceptor that refuses makes an empty body of ours: `ResponseBody` is `Default` for it.
#[tokio::test]
async fn an_interceptor_that_refuses() {
    let (manners, outcomes) = (Manners::default(), OutcomesLayer::new());
    let server = bare(&manners).await;
    let refuse = |_: tonic::Request<()>| Err(tonic::Status::unauthenticated("who are you?"));
    let mut client = HealthClient::with_interceptor(outcomes.layer(channel(&server)), refuse);
    assert_eq!(client.check(ask("ok")).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    assert_eq!(outcomes.handle().take(), [], "the call came to nobody");
    assert_eq!(manners.timeouts(), []);

    let mut client = HealthClient::new(outcomes.layer(InterceptedService::new(channel(&server), refuse)));
    assert_eq!(client.check(ask("ok")).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    assert_eq!(outcomes.handle().take(), [Outcome::Success], "to blame is the caller");
}

#[tokio::test]
async fn a_hyper_client() {
    let server = Server::axum(Router::new().route("/", get(hello))).await;
    let (outcomes, timeout) = (OutcomesLayer::new(), TimeoutLayer::builder().after(Duration::from_secs(30)));
    let layers = (outcomes.clone(), DeadlineLayer::client(), timeout.build().unwrap());
    for version in BOTH {
        let mut client = layers.layer(hyper(version));
        for _ in 0..2 {
            let request = Request::get(server.uri("/")).body(nothing()).unwrap();
            let answer = client.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
            assert_eq!(outcomes.handle().take(), [Outcome::Success]);
        }
    }
}

/// A service of numbers: 0 fails, 1 hangs, the rest comes back.
async fn numbers<E>(n: u32, error: E) -> Result<u32, E> {
    match n {
        0 => Err(error),
        1 => std::future::pending().await,
        n => Ok(n),
    }
}

#[derive(Debug)]
enum Own {
    Broken,
    Refused(Rejection),
}

impl From<Rejection> for Own {
    fn from(rejection: Rejection) -> Self {
        Own::Refused(rejection)
    }
}

impl std::fmt::Display for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Own {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Own::Broken => None,
            Own::Refused(rejection) => Some(rejection),
        }
    }
}

#[tokio::test]
async fn services_that_are_not_http() {
    let (outcomes, timeout) = (OutcomesLayer::new(), TimeoutLayer::builder().after(Duration::from_millis(10)));
    let timeout = timeout.build().unwrap();
    let expected = [Outcome::Success, Outcome::Failure, Outcome::Failure];

    // The error becomes one enum, however many layers there are.
    let plain = ServiceBuilder::new().layer(outcomes.clone().flat()).layer(timeout.clone().plain());
    let plain = plain.service(service_fn(|n| numbers(n, io::Error::other("broken"))));
    assert_eq!(plain.clone().oneshot(2).await.unwrap(), 2);
    assert!(matches!(plain.clone().oneshot(0).await, Err(Error::Inner(e)) if e.to_string() == "broken"));
    let timed_out = plain.oneshot(1).await.unwrap_err();
    assert!(matches!(&timed_out, Error::Rejected(r) if r.reason() == Reason::Timeout));
    assert_eq!(Rejection::of(&timed_out).unwrap().policy(), "timeout");
    assert_eq!(outcomes.handle().take(), expected);

    // The error stays what it was.
    let flat = ServiceBuilder::new().layer(outcomes.clone().flat()).layer(timeout.clone().flat());
    let flat = flat.service(service_fn(|n| numbers(n, Own::Broken)));
    assert_eq!(flat.clone().oneshot(2).await.unwrap(), 2);
    assert!(matches!(flat.clone().oneshot(0).await, Err(Own::Broken)));
    assert!(matches!(flat.oneshot(1).await, Err(Own::Refused(r)) if r.reason() == Reason::Timeout));
    assert_eq!(outcomes.handle().take(), expected);

    // What is no error yet is boxed.
    let boxed = ServiceBuilder::new().layer(outcomes.clone().boxed()).layer(timeout.boxed());
    let boxed = boxed.service(service_fn(|n| numbers(n, "broken")));
    assert_eq!(boxed.clone().oneshot(2).await.unwrap(), 2);
    assert_eq!(boxed.clone().oneshot(0).await.unwrap_err().to_string(), "broken");
    assert_eq!(Rejection::of(&*boxed.oneshot(1).await.unwrap_err()).unwrap().reason(), Reason::Timeout);
    assert_eq!(outcomes.handle().take(), expected);
}
