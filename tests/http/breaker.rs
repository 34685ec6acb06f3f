//! The circuit breaker on real traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use buttress::{CircuitBreakerBuilder, CircuitBreakerLayer, DeadlineLayer, Key, OpenTime, State, TimeoutLayer};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::time::sleep;
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tower::Layer;

use crate::{
    health::{Manners, ask, bare, channel, drain, layered},
    rig::{BOTH, Hyper, Server, Version, hyper, nothing, soon},
};

/// Opens at the third failure in a row, and stays open for as long as a test lasts.
fn third() -> CircuitBreakerBuilder {
    CircuitBreakerLayer::builder().consecutive_failures(3).open(OpenTime::Fixed(Duration::from_secs(3_600)))
}

fn state(layer: &CircuitBreakerLayer) -> State {
    layer.handle().snapshot().state
}

async fn status(client: &Hyper, server: &Server, path: &str) -> StatusCode {
    let request = Request::get(server.uri(path)).body(nothing()).unwrap();
    let response = soon(client.request(request)).await.unwrap();
    let status = response.status();
    response.into_body().collect().await.unwrap();
    status
}

fn failing(hits: &Arc<AtomicUsize>) -> Router {
    let hits = Arc::clone(hits);
    let fail = move || async move {
        hits.fetch_add(1, SeqCst);
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Router::new().route("/500", get(fail)).route("/ok", get(|| async { "fine" }))
}

/// axum makes a service of the layer for each route and each connection; the state must not be made with it.
#[tokio::test]
async fn fifty_connections_are_behind_one_breaker() {
    for version in BOTH {
        let (layer, hits) = (third().consecutive_failures(25).minimum_calls(1_000).build().unwrap(), Arc::default());
        let server = Server::axum(failing(&hits).layer(layer.clone())).await;
        for i in 0..50 {
            // A client of its own has a connection of its own.
            let expected = if i < 25 { 500 } else { 503 };
            assert_eq!(status(&hyper(version), &server, "/500").await.as_u16(), expected, "{version:?} {i}");
        }
        assert_eq!((hits.load(SeqCst), state(&layer)), (25, State::Open));
        // It is one for the whole router, other routes included.
        assert_eq!(status(&hyper(version), &server, "/ok").await.as_u16(), 503);
        server.stop().await;
    }
}

/// The same with a breaker for each route.
#[tokio::test]
async fn fifty_connections_share_the_breaker_of_a_route() {
    for version in BOTH {
        let builder = third().consecutive_failures(25).minimum_calls(1_000).per_key(Key::MatchedPath);
        let (layer, hits) = (builder.build().unwrap(), Arc::default());
        let server = Server::axum(failing(&hits).layer(layer.clone())).await;
        for i in 0..50 {
            let client = hyper(version);
            let expected = if i < 25 { 500 } else { 503 };
            assert_eq!(status(&client, &server, "/500").await.as_u16(), expected, "{version:?} {i}");
            assert_eq!(status(&client, &server, "/ok").await.as_u16(), 200, "{version:?} {i}");
        }
        let seen = layer.handle().snapshot();
        assert_eq!((hits.load(SeqCst), seen.keys, seen.open_keys, seen.rejected), (25, 2, 1, 25));
        assert!(layer.handle().for_key("/500").is_some_and(|key| key.snapshot().state == State::Open));
        server.stop().await;
    }
}

#[tokio::test]
async fn it_closes_again_through_probes() {
    let open = OpenTime::Fixed(Duration::from_millis(100));
    let layer = third().consecutive_failures(1).open(open).probes(2).successes_to_close(2).build().unwrap();
    let server = Server::axum(failing(&Arc::default()).layer(layer.clone())).await;
    let client = hyper(Version::H1);
    assert_eq!(status(&client, &server, "/500").await.as_u16(), 500);
    assert_eq!(status(&client, &server, "/ok").await.as_u16(), 503);
    // The open time is the subject.
    sleep(Duration::from_millis(150)).await;
    assert_eq!(status(&client, &server, "/ok").await.as_u16(), 200);
    assert_eq!(status(&client, &server, "/ok").await.as_u16(), 200);
    assert_eq!(state(&layer), State::Closed);
}

/// By a status in the head (unary errors) and by one in the trailers (streams), on the server and on the client.
#[tokio::test]
async fn it_opens_on_grpc_status_wherever_it_is() {
    for on_server in [true, false] {
        for streams in [true, false] {
            let (layer, manners) = (third().build().unwrap(), Manners::default());
            let server = if on_server { layered!(tonic, manners, layer.clone()) } else { bare(&manners).await };
            let other = third().build().unwrap();
            let mine = if on_server { &other } else { &layer };
            let mut client = HealthClient::new(mine.layer(channel(&server)));
            for i in 0..4 {
                assert_eq!(state(&layer), if i < 3 { State::Closed } else { State::Open }, "{on_server} {streams} {i}");
                let code = if streams {
                    match client.watch(ask(13)).await {
                        Ok(stream) => drain(stream.into_inner()).await.1.unwrap_err(),
                        Err(status) => status.code(),
                    }
                } else {
                    client.check(ask(13)).await.unwrap_err().code()
                };
                assert_eq!(code, if i < 3 { Code::Internal } else { Code::Unavailable });
            }
            // NOT_FOUND is the caller's own mistake.
            layer.handle().reset();
            mine.handle().reset();
            for _ in 0..5 {
                assert_eq!(client.check(ask(5)).await.unwrap_err().code(), Code::NotFound);
            }
            assert_eq!(state(&layer), State::Closed);
        }
    }
}

#[tokio::test]
async fn a_connection_that_is_refused_opens_it() {
    let layer = third().build().unwrap();
    let addr = crate::rig::nobody().await;
    let channel = tonic::transport::Channel::builder(format!("http://{addr}").parse().unwrap()).connect_lazy();
    let mut client = HealthClient::new(layer.layer(channel));
    for _ in 0..4 {
        assert_eq!(client.check(ask("ok")).await.unwrap_err().code(), Code::Unavailable);
    }
    let snapshot = layer.handle().snapshot();
    assert_eq!((snapshot.state, snapshot.failures, snapshot.rejected), (State::Open, 3, 1));
}

#[tokio::test]
async fn a_hanging_backend_behind_a_timeout_opens_it_whichever_is_outside() {
    let timeout = || TimeoutLayer::builder().after(Duration::from_millis(50)).build().unwrap();
    let manners = Manners::default();
    let server = bare(&manners).await;
    for breaker_outside in [true, false] {
        let layer = third().build().unwrap();
        for _ in 0..3 {
            assert_eq!(state(&layer), State::Closed);
            let code = if breaker_outside {
                let mut client = HealthClient::new(layer.layer(timeout().layer(channel(&server))));
                client.check(ask("hangs")).await.unwrap_err().code()
            } else {
                let mut client = HealthClient::new(timeout().layer(layer.layer(channel(&server))));
                client.check(ask("hangs")).await.unwrap_err().code()
            };
            assert_eq!(code, Code::DeadlineExceeded);
        }
        assert_eq!(state(&layer), State::Open, "{breaker_outside}");
    }
}

/// Any caller may send a deadline of a few milliseconds; it must not be able to shut the door on all others.
#[tokio::test]
async fn forged_short_deadlines_do_not_open_it() {
    let layer = third().consecutive_failures(1).build().unwrap();
    let manners = Manners::default();
    // Deadline outside, breaker inside, as one would on a server; and a breaker outside of both.
    let outer = third().consecutive_failures(1).build().unwrap();
    let stack = (outer.clone(), DeadlineLayer::server(Duration::from_secs(60)), layer.clone());
    let server = layered!(axum, manners, stack);
    let mut client = crate::health::without_timer(&server);
    for timeout in ["1m", "5m", "20m", "0m"] {
        let mut request = tonic::Request::new(ask("hangs"));
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        assert_eq!(soon(client.check(request)).await.unwrap_err().code(), Code::DeadlineExceeded, "{timeout}");
    }
    for breaker in [&layer, &outer] {
        let snapshot = breaker.handle().snapshot();
        assert_eq!((snapshot.state, snapshot.failures), (State::Closed, 0));
    }
}

/// tonic's channel has a timer of its own on `grpc-timeout`. What a client sets there by hand is its own timeout, and a
/// failure of the backend; under `DeadlineLayer::client()` it is a deadline, and nobody's.
#[tokio::test]
async fn a_timeout_set_by_hand_is_the_clients_own_unless_it_is_said_to_be_a_deadline() {
    let server = bare(&Manners::default()).await;
    let hand_made = || {
        let mut request = tonic::Request::new(ask("hangs"));
        request.set_timeout(Duration::from_millis(50));
        request
    };
    let own = third().consecutive_failures(1).build().unwrap();
    let mut client = HealthClient::new(own.layer(channel(&server)));
    assert_eq!(soon(client.check(hand_made())).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!((state(&own), own.handle().snapshot().failures), (State::Open, 1));

    let callers = third().consecutive_failures(1).build().unwrap();
    let mut client = HealthClient::new(DeadlineLayer::client().layer(callers.layer(channel(&server))));
    assert_eq!(soon(client.check(hand_made())).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!((state(&callers), callers.handle().snapshot().cancelled), (State::Closed, 1));
}

/// One port, one layer, both protocols: each caller is told in its own words when to come back.
#[tokio::test]
async fn a_refusal_speaks_http_on_a_route_and_grpc_to_a_tonic_client() {
    let layer = third().consecutive_failures(1).name("ledger").build().unwrap();
    let routes = tonic::service::Routes::new(Manners::default().server()).into_axum_router();
    let server = Server::axum(failing(&Arc::default()).merge(routes).layer(layer.clone())).await;
    let http = hyper(Version::H1);
    assert_eq!(status(&http, &server, "/500").await.as_u16(), 500);

    let request = Request::get(server.uri("/ok")).body(nothing()).unwrap();
    let response = soon(http.request(request)).await.unwrap();
    let head = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!((response.status().as_u16(), head("content-type")), (503, "application/problem+json".to_owned()));
    let seconds: u64 = head("retry-after").parse().unwrap();
    assert!((3_500..=3_600).contains(&seconds), "{seconds}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((json["policy"].as_str(), json["reason"].as_str()), (Some("circuit_breaker"), Some("circuit_open")));
    assert!(json["retry_after"].as_f64().is_some_and(|t| t > 3_500.0 && t <= 3_600.0), "{json}");
    assert!(!body.windows(6).any(|w| w == b"ledger"), "the name is the operator's own");

    let mut client = HealthClient::new(channel(&server));
    let refused = soon(client.check(ask("ok"))).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "the circuit breaker is open"));
    let delay = tonic_types::StatusExt::get_details_retry_info(&refused).unwrap().retry_delay.unwrap();
    assert!(delay > Duration::from_secs(3_500) && delay <= Duration::from_secs(3_600), "{delay:?}");
    let pushback: u64 = refused.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!(u128::from(pushback).abs_diff(delay.as_millis()) <= 1);
}
