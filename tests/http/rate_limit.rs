//! Rate limits over real connections: one quota behind all of them, the peer's own address, headers, both protocols.

#[cfg(all(feature = "axum", target_os = "linux"))]
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::{Router, routing::get};
use buttress::{AdaptiveRateLayer, Key, LimitHeaders, Quota, RateLimitLayer};
use futures_util::future::join_all;
use http::Request;
use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use tower::Layer;

use crate::{
    health::{Manners, ask, bare, channel, layered},
    rig::{BOTH, Server, Version, hyper, nothing, soon},
};

/// 111: fifty connections behind 10/s; axum makes a service of the layer for each of them.
#[tokio::test]
async fn fifty_connections_pass_exactly_ten() {
    for version in BOTH {
        // The next unit is far away, so that the time this takes does not matter.
        let quota = Quota::per(10, Duration::from_secs(3_600));
        let limit = RateLimitLayer::builder().quota(quota).build().unwrap();
        let app = Router::new().route("/", get(|| async { "hello" })).layer(limit.clone());
        let server = Server::axum(app).await;
        let calls = (0..50).map(|_| async {
            // A client of its own is a connection of its own.
            let request = Request::get(server.uri("/")).body(nothing()).unwrap();
            soon(hyper(version).request(request)).await.unwrap().status().as_u16()
        });
        let statuses = join_all(calls).await;
        assert_eq!(statuses.iter().filter(|s| **s == 200).count(), 10, "{version:?}");
        assert_eq!(statuses.iter().filter(|s| **s == 429).count(), 40, "{version:?}");
        let snapshot = limit.handle().snapshot();
        assert_eq!((snapshot.admitted, snapshot.rejected), (10, 40));
    }
}

/// One request from this loopback address, over a connection of its own. Linux alone has all of 127.0.0.0/8 by itself.
#[cfg(all(feature = "axum", target_os = "linux"))]
async fn from(address: [u8; 4], server: SocketAddr) -> u16 {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(address)), 0)).unwrap();
    let stream = socket.connect(server).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("/").header("host", "x").body(nothing()).unwrap();
    let answer = soon(sender.send_request(request)).await.unwrap();
    let status = answer.status().as_u16();
    drop(http_body_util::BodyExt::collect(answer.into_body()).await.unwrap());
    drop(sender);
    connection.await.unwrap().unwrap();
    status
}

#[cfg(all(feature = "axum", target_os = "linux"))]
#[tokio::test]
async fn each_peer_of_an_axum_server_has_its_quota() {
    let quota = Quota::per(2, Duration::from_secs(3_600));
    let limit = RateLimitLayer::builder().quota(quota).per_key(Key::ConnectInfo).build().unwrap();
    let app = Router::new().route("/", get(|| async { "hello" })).layer(limit.clone());
    let server = Server::start(|listener, stop| async {
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, app).with_graceful_shutdown(stop).await.unwrap();
    })
    .await;
    let mut seen = Vec::new();
    for peer in [1, 1, 1, 2, 2, 2] {
        seen.push(from([127, 0, 0, peer], server.addr).await);
    }
    assert_eq!(seen, [200, 200, 429, 200, 200, 429]);
    assert_eq!(limit.handle().snapshot().keys, 2);
    server.stop().await;
}

#[cfg(feature = "tonic")]
#[tokio::test]
async fn the_peer_of_a_tonic_server_has_its_quota() {
    let quota = Quota::per(2, Duration::from_millis(3_600_000));
    let limit = RateLimitLayer::builder().quota(quota).per_key(Key::ConnectInfo).build().unwrap();
    let manners = Manners::default();
    let server = layered!(tonic, manners, limit.clone());
    for n in 0..3 {
        // A channel of its own, so another port; it is one peer all the same.
        let answer = HealthClient::new(channel(&server)).check(ask("ok")).await;
        assert_eq!(answer.is_ok(), n < 2, "{answer:?}");
        if let Err(status) = answer {
            assert_eq!(status.code(), Code::ResourceExhausted);
            let info = status.get_details_retry_info().unwrap();
            assert!(info.retry_delay.unwrap() > Duration::from_secs(1_700));
        }
    }
    assert_eq!(limit.handle().snapshot().keys, 1);
}

#[tokio::test]
async fn one_port_and_both_protocols_share_one_quota_and_are_told_of_it() {
    let quota = Quota::per(3, Duration::from_secs(3_600));
    let limit = RateLimitLayer::builder().quota(quota).headers(LimitHeaders::Both).build().unwrap();
    let manners = Manners::default();
    let routes = tonic::service::Routes::new(manners.server()).into_axum_router();
    let server = Server::axum(Router::new().route("/", get(|| async {})).merge(routes).layer(limit)).await;
    let plain = async || {
        let request = Request::get(server.uri("/")).body(nothing()).unwrap();
        soon(hyper(Version::H1).request(request)).await.unwrap()
    };
    let mut client = HealthClient::new(channel(&server));
    let left = |value: &str| value.split(";t=").next().unwrap().to_owned();
    let of = |answer: &http::Response<_>| left(answer.headers()["ratelimit"].to_str().unwrap());
    assert_eq!(of(&plain().await), "\"default\";r=2");
    let answer = client.check(ask("ok")).await.unwrap();
    assert_eq!(left(answer.metadata().get("ratelimit").unwrap().to_str().unwrap()), "\"default\";r=1");
    let last = plain().await;
    assert_eq!((last.status().as_u16(), of(&last).as_str()), (200, "\"default\";r=0"));
    let refused = plain().await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["ratelimit-policy"], "\"default\";q=3;w=3600");
    assert_eq!(refused.headers()["x-ratelimit-remaining"], "0");
    let seconds: u32 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1_000..=1_200).contains(&seconds), "{seconds}");
    let status = client.check(ask("ok")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(left(status.metadata().get("ratelimit").unwrap().to_str().unwrap()), "\"default\";r=0");
}

/// Both ends are ours: what the server refuses, the client does not send again before it may.
#[tokio::test]
async fn a_client_keeps_to_what_a_server_says() {
    let limit = RateLimitLayer::builder().quota(Quota::per(1, Duration::from_secs(3_600))).build().unwrap();
    let manners = Manners::default();
    let server = layered!(axum, manners, limit.clone());
    let adaptive = AdaptiveRateLayer::builder().build().unwrap();
    let mut client = HealthClient::new(adaptive.layer(channel(&server)));
    client.check(ask("ok")).await.unwrap();
    for _ in 0..5 {
        assert_eq!(client.check(ask("ok")).await.unwrap_err().code(), Code::ResourceExhausted);
    }
    let (server_side, client_side) = (limit.handle().snapshot(), adaptive.handle().snapshot());
    assert_eq!((server_side.admitted, server_side.rejected), (1, 1), "the other four did not leave the client");
    assert_eq!((client_side.throttled, client_side.rejected), (1, 4));
    assert!(client_side.rate.is_some());
    let untouched = bare(&manners).await;
    client = HealthClient::new(adaptive.layer(channel(&untouched)));
    assert!(client.check(ask("ok")).await.is_err(), "one rate for all that the layer made");
}
